"""The study: settings are chosen on validation data, then methods are compared with confidence intervals.

plan.py reads the study's file, cells.py trains and tests, choice.py searches and freezes the settings, analysis.py has
the statistics, and report.py and plots.py present them.
"""
