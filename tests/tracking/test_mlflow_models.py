"""sweep/tracking/mlflow_models.py: MLflow's model answers as the run's own; without a store. test_mlflow.py has one."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import invocations
from mlflow.tracking import MlflowClient
from numpy.testing import assert_array_equal
from processes import make_store
from trained import held_out, passengers, table, text, trained

from sweep import ConfigError, compose, load_model
from sweep.config.nodes import Tracking
from sweep.config.schema import validate
from sweep.tracking.folders import RunFolder
from sweep.tracking.mlflow_artifacts import ArtifactPlaces
from sweep.tracking.mlflow_models import send_model, write_model
from sweep.tracking.store import Store
from sweep.trial.prepare import load_data
from sweep.utils.files import to_yaml


def of_mlflow(folder: Path) -> Any:
    write_model(RunFolder(folder), folder / "model")
    return mlflow.pyfunc.load_model(str(folder / "model"))


def served(model: Any, folder: Path) -> list[Any]:
    """What `mlflow models serve` answers to the example of the model."""
    request = (folder / "model" / "serving_input_example.json").read_text()
    answer = invocations(request, "application/json", model, model.metadata.get_input_schema())
    assert answer.status == 200
    return json.loads(answer.response)["predictions"]


def test_a_table_is_matched_by_the_signature(tmp_path: Path) -> None:
    trained(tmp_path, *table(tmp_path))
    model, own = of_mlflow(tmp_path), load_model(tmp_path)
    frame = passengers()
    assert_array_equal(model.predict(frame), own.predict(frame))  # with further columns and empty cells
    columns = [(column.name, str(column.type), column.required) for column in model.metadata.get_input_schema()]
    assert columns == [
        ("age", "DataType.double", False),
        ("city", "Any", False),
        ("fare", "DataType.double", False),
        ("day", "Any", False),
    ]
    example = model.input_example
    assert list(example.columns) == ["age", "city", "fare", "day"]
    assert set(example.city) <= {"Oslo", "Rome", "Bonn"}
    shown = frame.iloc[pd.read_parquet(tmp_path / "predictions.parquet").row[:2]]
    assert_array_equal(model.predict(example), own.predict(shown))
    assert_array_equal(served(model, tmp_path), own.predict(shown))
    assert_array_equal(pd.to_datetime(example.day), shown.day)
    with pytest.raises(MlflowException, match="double"):
        model.predict(frame.assign(age="old"))


def test_an_example_may_have_a_name_that_the_training_split_did_not_have(tmp_path: Path) -> None:
    overrides = (*table(tmp_path), "data.max_one_hot=200", "data.missing=error", "data.drop=[id,age]")
    frame, rows = passengers(), load_data(validate(compose([*overrides]))).splits.test_rows
    frame.loc[rows, "city"] = [f"Village {row}" for row in rows]
    frame.to_csv(tmp_path / "passengers.csv", index=False)
    trained(tmp_path, *overrides)
    model, own = of_mlflow(tmp_path), load_model(tmp_path)
    assert_array_equal(model.predict(model.input_example), own.predict(frame.loc[rows[:2]]))


@pytest.mark.parametrize("data", ["numbers", "images", "tokens"])
def test_arrays_are_taken_as_they_are(data: str, tmp_path: Path) -> None:
    overrides = {"numbers": ("data=diabetes",), "images": ("data=digits",), "tokens": text(tmp_path)}[data]
    training, _ = trained(tmp_path, *overrides)
    model, own = of_mlflow(tmp_path), load_model(tmp_path)
    x: Any = held_out(training)[0]
    if data == "numbers":
        x = pd.DataFrame(x, columns=own.features)
    assert_array_equal(model.predict(x), own.predict(x))
    assert_array_equal(model.predict(model.input_example), own.predict(x[:2]))
    assert_array_equal(np.array(served(model, tmp_path), own.predict(x).dtype), own.predict(x[:2]))
    assert {file.name for file in (tmp_path / "model").iterdir()} >= {"MLmodel", "requirements.txt", "data"}
    required = (tmp_path / "model" / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in required} == {"hydra-sweep", "torch", "mlflow"}


def test_a_link_in_somebody_elses_run_is_not_followed(tmp_path: Path) -> None:
    make_store(tmp_path)
    outputs = tmp_path / "outputs"
    store = Store(f"sqlite:///{outputs / 'mlflow.db'}", outputs / "mlartifacts")
    client = MlflowClient(store.uri)
    run_id = client.create_run("0").info.run_id
    array = {"dtype": "float64", "shape": [-1, 1]}
    secret = tmp_path / "secret"
    secret.write_text(to_yaml({"inputs": array, "outputs": array, "example": [[1.0]]}))
    for linked in ("best.pt", "model.yaml"):
        folder = RunFolder(tmp_path / linked)
        folder.create()
        for path in (folder.best, folder.signature):
            shutil.copy(secret, path)
        (folder.path / linked).unlink()
        (folder.path / linked).symlink_to(secret)
        send_model(client, ArtifactPlaces(client, store), folder, run_id, "mine")
    assert client.list_artifacts(run_id) == []
    assert client.search_registered_models() == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"register": "a/b"}, "without / and :"),
        ({"register": " "}, "without / and :"),
        ({"register": "a", "model": False}, "needs tracking.mlflow and tracking.model"),
        ({"register": "a", "mlflow": False}, "needs tracking.mlflow and tracking.model"),
    ],
)
def test_a_name_that_cannot_be_registered_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        Tracking(**changes)
    assert caught.value.key == "tracking.register"
