"""Figures that the documents quote, each made by a command: ``make bench`` runs all of them.

cases/ holds one question a file. Each library, ours among them, answers in a process of its own (child.py), which
knows it through an adapter (libraries/); this process only asks (process.py), compares (measure.py) and tells
(figures.py, report.py). So no library's threads stall another's, and none runs under settings that another made.
"""
