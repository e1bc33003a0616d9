"""Contenders that are tuned alike and tested against each other; a client of studies.

In: the options to compare. Out: statistics, a verdict, a table and a picture.
"""
