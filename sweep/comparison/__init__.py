"""Comparisons: tune contenders with the same budget and test them against each other. Each part is a study.

In: the options to compare. Out: statistics, a verdict, tables and a plot.
"""
