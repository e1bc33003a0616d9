"""Silences Optuna's log, since sweep reports progress itself."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import optuna

_lock = threading.Lock()
_before: list[int] = []  # the log's verbosity before each block that is open; the first is the program's own


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Let Optuna log only errors inside the `with` block. Blocks of several threads may overlap."""
    with _lock:
        _before.append(optuna.logging.get_verbosity())
        optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        with _lock:
            if len(_before) == 1:
                optuna.logging.set_verbosity(_before[0])
            _before.pop()
