"""All uses of MLflow's private functions. The tables it keeps are in mlflow_bulk.py, which checks their columns itself.

If MLflow changes something that is used here, tests/tracking/test_mlflow_internals.py names it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal

from mlflow.entities import DatasetInput
from mlflow.tracking import fluent
from mlflow.utils import validation


def check_dataset(dataset: DatasetInput) -> None:
    """Raise MlflowException if MLflow rejects the description of a data set."""
    validation._validate_dataset_inputs([dataset])


@lru_cache(4096)
def check_key(kind: Literal["metric", "param", "tag"], key: str) -> None:
    """Raise MlflowException if MLflow rejects the key."""
    if kind == "metric":
        validation._validate_metric(key, 0.0, 0, 0)
    elif kind == "param":
        validation._validate_param(key, "")
    else:
        validation._validate_tag(key, "")


@contextmanager
def set_aside_active_runs() -> Iterator[None]:
    """Take the active runs from this thread, and give them back at the end of the `with` block."""
    active = fluent._active_run_stack
    before = active.get()
    active.set([])
    try:
        yield
    finally:
        active.set(before)


def runs_of_thread() -> list[str]:
    """Return the ids of the runs that are active in this thread, and of the one that ended last, if there are any."""
    ended = fluent._last_active_run_id.get()
    return [*(run.info.run_id for run in fluent._active_run_stack.get()), *([] if ended is None else [ended])]
