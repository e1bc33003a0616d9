"""The storage of a study, which is a journal file or a database, and the lock that the study's processes share.

`open_storage` takes a URL, or None for a file in the study's folder. The Optuna storage that it returns survives
kill -9. `RetryPolicy` waits for a server that is unavailable for a while.
"""
