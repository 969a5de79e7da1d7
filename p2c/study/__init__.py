"""The study: settings chosen on validation data, then methods compared with confidence intervals.

plan.py reads what is to be done, cells.py trains and tests, choice.py searches and freezes what was found, analysis.py
has the statistics, report.py and plots.py show them.
"""
