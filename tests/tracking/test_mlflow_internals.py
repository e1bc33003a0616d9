"""sweep/tracking/mlflow_internals.py: that MLflow still has what it takes, and that it still means the same."""

import mlflow
import pytest
from mlflow.entities import Dataset, DatasetInput
from mlflow.exceptions import MlflowException
from mlflow.utils import validation

from sweep.tracking.mlflow_internals import check_dataset, check_key, set_aside_active_runs

USED = ("_validate_dataset_inputs", "_validate_metric", "_validate_param", "_validate_tag")


@pytest.mark.parametrize("name", USED)
def test_mlflow_has_the_function(name: str) -> None:
    message = (
        f"MLflow {mlflow.__version__} has changed validation.{name}; sweep/tracking/mlflow_internals.py has to follow"
    )
    assert callable(getattr(validation, name, None)), message


@pytest.mark.parametrize("kind", ["metric", "param", "tag"])
def test_a_key_is_refused_as_mlflow_refuses_it(kind) -> None:
    check_key(kind, "val/loss")
    with pytest.raises(MlflowException):
        check_key(kind, "a/../b")


def test_a_data_set_is_refused_as_mlflow_refuses_it() -> None:
    check_dataset(DatasetInput(Dataset("sine", "d1", "local", "{}")))
    with pytest.raises(MlflowException):
        check_dataset(DatasetInput(Dataset("s" * 501, "d1", "local", "{}")))


def test_active_runs_are_set_aside_and_given_back(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with mlflow.start_run() as own:
        with set_aside_active_runs():
            assert mlflow.active_run() is None, f"MLflow {mlflow.__version__} keeps its active runs elsewhere"
        active = mlflow.active_run()
        assert active is not None
        assert active.info.run_id == own.info.run_id
