"""The tables of the four benchmarks, made from the folders that the scripts write.

folders.py finds the runs, cells.py averages them, rows.py arranges a benchmark's cells in rows, published.py holds the
papers' numbers, notes.py reports what is missing or mixed, and printing.py, latex.py and curves.py show the tables and
curves.
"""
