"""sweep/trial/predictions.py: what a run's model predicts for the test split, against the model that is loaded."""

import errno
import logging
from pathlib import Path
from typing import Any, ClassVar

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import trained as models
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor, nn
from torch_datasets import Curve
from trained import allow, held_out, own, passengers, table, text, trained

from sweep import load_model
from sweep.tracking.folders import RunFolder
from sweep.tracking.mlflow_models import write_model
from sweep.trial import predictions
from sweep.trial.predictor import Predictor
from sweep.utils.errors import ConfigError


def predicted(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "predictions.parquet")


def test_rows_are_numbered_in_the_order_of_the_data(tmp_path: Path) -> None:
    trained(tmp_path, *table(tmp_path))
    found = predicted(tmp_path)
    frame = passengers()
    assert list(found.columns) == ["row", "truth", "prediction", "probability_lost", "probability_saved"]
    assert_array_equal(found.truth, frame.fate[found.row])
    model = load_model(tmp_path)
    assert_array_equal(found.prediction, model.predict(frame.loc[found.row]))
    shares = found[["probability_lost", "probability_saved"]]
    assert_allclose(shares, model.predict_proba(frame.loc[found.row]), rtol=1e-6)
    assert len(set(found.row)) == len(found) == 18


def test_numbers_are_in_the_targets_own_units(tmp_path: Path) -> None:
    training, test = trained(tmp_path, "data=diabetes", "split.max_samples=200")
    found, (x, y) = predicted(tmp_path), held_out(training)
    assert list(found.columns) == ["row", "truth", "prediction"]
    assert_array_equal(found.truth, y[:, 0])
    assert_allclose(found.prediction, load_model(tmp_path).predict(x), rtol=1e-6)
    assert np.square(found.prediction - found.truth).mean() == pytest.approx(test["test/mse"], rel=1e-5)


def test_quantiles_labels_and_targets_have_columns_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(monkeypatch)
    cases = {
        "quantile": ("data=diabetes", "task=quantile"),
        "pair": own("pair"),
        "labels": own("labels"),
    }
    found = {}
    for name, overrides in cases.items():
        training, _ = trained(tmp_path / name, *overrides)
        found[name], (x, y) = predicted(tmp_path / name), held_out(training)
        columns = [column for column in found[name] if column.startswith("prediction")]
        assert_allclose(found[name][columns], load_model(tmp_path / name).predict(x), rtol=1e-5)
        assert_array_equal(found[name].filter(regex="^truth"), y)
    assert list(found["quantile"].columns) == ["row", "truth", *(f"prediction_{q}" for q in (0.1, 0.5, 0.9))]
    assert list(found["pair"].columns) == ["row", "truth_0", "truth_1", "prediction_0", "prediction_1"]
    of_labels = [f"{what}_{i}" for what in ("truth", "prediction", "probability") for i in range(3)]
    assert list(found["labels"].columns) == ["row", *of_labels]


def test_tokens_and_pixels_are_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch)
    pixelwise = (f"model._target_={models.__name__}.Pixelwise", "~model.widths", "~model.activation", "~model.dropout")
    for name, overrides in {"text": text(tmp_path), "pixels": (*own("pixels"), *pixelwise)}.items():
        training, _ = trained(tmp_path / name, *overrides)
        found, (x, _) = predicted(tmp_path / name), held_out(training)
        model = load_model(tmp_path / name)
        assert list(found.columns) == ["row", "truth", "prediction"]
        assert [
            np.array([*row]).tolist() if name == "text" else [[*line] for line in row] for row in found.prediction
        ] == (model.predict(x).tolist())


def test_a_trial_of_a_study_has_none(tmp_path: Path) -> None:
    trained(tmp_path, "data=diabetes", in_study=True)
    assert {path.name for path in tmp_path.iterdir()} >= {"best.pt"}
    assert not (tmp_path / "predictions.parquet").exists()


def test_a_failure_is_a_warning_and_a_full_disk_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a" / "predictions.parquet").mkdir(parents=True)  # a folder is in the way
    with caplog.at_level(logging.WARNING, logger="sweep"):
        _, test = trained(tmp_path / "a", "data=diabetes")
    assert "test/mse" in test
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("warning: predictions.parquet: cannot be written (")
    left = {path.name for path in (tmp_path / "a").iterdir()}
    assert left == {"best.pt", "checkpoint.pt", "model.yaml", "predictions.parquet"}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(predictions, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        trained(tmp_path / "b", "data=diabetes")
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"best.pt", "checkpoint.pt", "model.yaml"}


class Counting(nn.Module):
    """Notes how many samples it gets while it is evaluated."""

    sizes: ClassVar[list[int]] = []

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            self.sizes.append(len(x))
        return self.layer(x)


COUNTING = (f"model._target_={__name__}.Counting", "~model.widths", "~model.activation", "~model.dropout")


@pytest.mark.parametrize("of_datasets", [False, True])
def test_the_test_split_is_computed_once(of_datasets: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEP_TARGETS", f"{__name__}.*,torch_datasets.*")
    curve = ("data._target_=torch_datasets.curve", "data.noise=0", "~data.domain", "~data.seed")
    data = curve if of_datasets else ("data=diabetes", "split.test=0.2")
    n_test = 20 if of_datasets else 88
    Counting.sizes.clear()
    trained(tmp_path, *data, *COUNTING, "trainer.batch_size=256" if not of_datasets else "trainer.batch_size=68")
    assert len(predicted(tmp_path)) == n_test
    assert Counting.sizes.count(n_test) == 1


def test_an_error_of_a_task_in_predicting_leaves_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(self: Predictor, outputs: Tensor) -> None:
        raise ValueError("no such class")

    _, expected = trained(tmp_path / "a", "data=diabetes")
    monkeypatch.setattr(Predictor, "decoded", fails)
    with caplog.at_level(logging.WARNING, logger="sweep"):
        _, test = trained(tmp_path / "b", "data=diabetes")
    assert test == expected
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "warning: model.yaml: cannot be written (no such class); MLflow gets no model"
    assert not (tmp_path / "b" / "predictions.parquet").exists()


def test_a_model_of_torch_datasets_predicts_and_its_samples_are_numbered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEP_TARGETS", "torch_datasets.*")
    _, test = trained(tmp_path, "data._target_=torch_datasets.curve", "data.noise=0", "~data.domain", "~data.seed")
    found, model = predicted(tmp_path), load_model(tmp_path)
    points = Curve(20, first=-0.9)
    x, y = (np.stack([points[i][part].numpy() for i in range(len(points))]) for part in (0, 1))
    assert_array_equal(found.row, np.arange(20))
    assert_array_equal(found.truth, y[:, 0])
    assert_allclose(found.prediction, model.predict(x), rtol=1e-5)
    assert np.square(found.prediction - found.truth).mean() == pytest.approx(test["test/mse"], rel=1e-5)


def test_data_without_a_test_split_have_a_model_for_mlflow_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SWEEP_TARGETS", "torch_datasets.*")
    data = ("data._target_=torch_datasets.curve", "data.noise=0", "+data.test=false", "~data.domain", "~data.seed")
    _, test = trained(tmp_path, *data)
    assert test == {}
    assert caplog.messages == []
    assert not (tmp_path / "predictions.parquet").exists()
    write_model(RunFolder(tmp_path), tmp_path / "model")
    served: Any = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    x = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]
    assert_array_equal(served.predict(x), load_model(tmp_path).predict(x))
    assert served.input_example.shape == (2, 1)


def test_a_model_of_batches_of_its_own_gives_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEP_TARGETS", "torch_datasets.*")
    own_kind = ("data._target_=torch_datasets.dicts", *(f"~data.{key}" for key in ("n", "noise", "domain", "seed")))
    linear = ("model=linear", "+model.in_features=1", "+model.out_features=1")
    trained(tmp_path, *own_kind, *linear, "task._target_=torch_datasets.Weighted", "~task.loss")
    assert not (tmp_path / "predictions.parquet").exists()
    model = load_model(tmp_path)
    with pytest.raises(ConfigError, match="takes batches of its own kind; call `module`"):
        model.predict(np.zeros((2, 1)))
    assert not model.module.training


def test_what_is_no_class_has_no_name(tmp_path: Path) -> None:
    """A loss may ignore some pixels, and labels may be true and false."""
    names = predictions._names_of(np.array([[0, 1], [255, -1]]), np.array(["land", "sea"]))
    assert names.tolist() == [["land", "sea"], [None, None]]
    column = predictions._array(names[1])
    assert column.to_pylist() == [None, None]
