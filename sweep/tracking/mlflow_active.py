"""MLflow's active run: where functions such as mlflow.log_metric log to if they are given no run."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import mlflow

from sweep.tracking.mlflow_internals import set_aside_active_runs


@contextmanager
def no_active_run() -> Iterator[None]:
    """Begin without an active run: MLflow would prefer it to MLFLOW_RUN_ID. It is active again afterwards.

    The runs that are made active meanwhile are ended. Else the next trial of the process would log to them, too.
    """
    with set_aside_active_runs():
        try:
            yield
        finally:
            while mlflow.active_run() is not None:
                with suppress(Exception):  # the store is away; MLflow has forgotten the run before it asks the store
                    mlflow.end_run()
