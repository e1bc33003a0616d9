"""Creation of an embedded MLflow store, which MLflow itself does not protect from a crash or a second process."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow.tracking import MlflowClient

from sweep.tracking.store import sqlite_url


@contextmanager
def first_start(path: Path | None) -> Iterator[None]:
    """Hold a lock while the tables of an embedded store are created, since two first starts of MLflow would race.

    `path` is the lock file; None for a store that needs no lock.
    """
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_tables(uri: str) -> None:
    """Create a new SQLite store under a temporary name and rename it.

    If MLflow is killed while it creates one itself, it leaves a file that it cannot use.
    """
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or "?" in uri or path.exists():
        return
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=path.parent) as folder:
        made = Path(folder) / path.name
        MlflowClient(sqlite_url(made)).search_experiments(max_results=1)
        if not path.exists():
            os.rename(made, path)
