"""What every other folder may use: errors, files, signals, seeds, the terminal.

Nothing here knows a config, a run or a study; it imports only Python's own library, PyYAML and Rich.
"""
