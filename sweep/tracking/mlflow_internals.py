"""All uses of MLflow's private functions. The tables it keeps are in mlflow_bulk.py, which checks their columns itself.

If MLflow changes something that is used here, tests/tracking/test_mlflow_internals.py names it.
"""

from functools import lru_cache
from typing import Literal

from mlflow.entities import DatasetInput
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
