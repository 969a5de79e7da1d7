"""The tables of the four benchmarks, from folders as the scripts write them.

folders.py finds the runs, cells.py averages, rows.py puts a benchmark's cells into rows, published.py has the papers'
numbers, notes.py says what is missing or mixed, printing.py and curves.py show it.
"""
