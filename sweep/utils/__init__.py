"""Helpers that every other folder may use: errors, files, signals, seeds, the terminal.

Nothing here depends on configs, runs or studies. On import, these modules load only the standard library, PyYAML
and Rich.
"""
