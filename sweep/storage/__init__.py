"""Where a study is kept: a journal file, or a database; the lock that its processes share.

In: a URL, or None for a file in the study's folder. Out: an Optuna storage that survives kill -9, and a server that is
away for a while.
"""
