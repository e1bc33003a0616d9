"""A trial's run in MLflow, made before the trial is trained, so that what trains it can log to that run by itself.

The upload process finds the run later by its tag, and adds what sweep records. Imports MLflow only when a run is made.
"""

import functools
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sweep.tracking.folders import Busy, RunFolder
from sweep.tracking.journal import first
from sweep.tracking.store import Store
from sweep.utils.environment import environment
from sweep.utils.errors import one_line
from sweep.utils.terminal import complain

if TYPE_CHECKING:
    from sweep.tracking.mlflow_client import Uploader

_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}  # as the upload process has
_RETRY_AFTER_S = 60.0  # meanwhile, no trial waits for a store that did not answer


@contextmanager
def unshared(key: str) -> Iterator[None]:
    """Print one line, once in a process, if MLflow's functions make a run of their own in the `with` block.

    `key` is the config key with which they would log to the run of the trial instead.
    """
    before = _own_runs()
    yield
    if not {*_own_runs()} <= {*before}:
        _say_how(key)


def _own_runs() -> list[str]:
    """Return the runs that MLflow's functions have made active in this thread."""
    if "mlflow" not in sys.modules:
        return []
    from sweep.tracking.mlflow_internals import runs_of_thread

    return runs_of_thread()


@functools.cache
def _say_how(key: str) -> None:
    complain(
        f"note: what trains the trials logs to MLflow by itself, to other runs; {key}=true gives it the trial's run"
    )


@functools.cache
def shared_runs(store: Store) -> "SharedRuns":
    """Return this process's `SharedRuns` of a store."""
    return SharedRuns(store)


class SharedRuns:
    """The runs of one store that training functions log to by themselves."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._uploader: Uploader | None = None
        self._next_try = 0.0  # by `time.monotonic`
        self._has_warned = False

    @contextmanager
    def shared(self, run: RunFolder) -> Iterator[None]:
        """Name the run in MLflow's environment variables, as long as it is trained.

        If MLflow is away, print one line about it, and leave the variables as they are.

        Args:
            run: the folder of a run whose record has begun.
        """
        if (run_id := self._run_id(run)) is None:
            yield
            return
        from sweep.tracking.mlflow_active import no_active_run

        variables = {"MLFLOW_TRACKING_URI": self._store.uri, "MLFLOW_RUN_ID": run_id, "MLFLOW_EXPERIMENT_ID": None}
        with environment({**variables, "MLFLOW_EXPERIMENT_NAME": _experiment(run)}), no_active_run():
            yield

    def _run_id(self, run: RunFolder) -> str | None:
        """Return the id of the run, which is made if it is missing; None if MLflow is away."""
        if time.monotonic() < self._next_try:
            return None
        try:
            with environment({name: os.environ.get(name, value) for name, value in _PATIENCE.items()}):
                return self._made_uploader().claim(run)
        except Busy:
            problem = "another process is sending it"
        except Exception as error:  # of any kind, since MLflow must never fail a trial
            problem = one_line(error)
            self._next_try = time.monotonic() + _RETRY_AFTER_S
        if not self._has_warned:
            complain(f"warning: MLflow has no run for what trains a trial to log to ({problem}); it trains without one")
        self._has_warned = True
        return None

    def _made_uploader(self) -> "Uploader":
        if self._uploader is None:
            from sweep.tracking.mlflow_client import Uploader

            self._uploader = Uploader(self._store)
        return self._uploader


def _experiment(run: RunFolder) -> str:
    start = first(run.journal, "start")
    assert start is not None, "its record has begun"
    return start["experiment"]
