"""data.weight: a run on a table whose rows have weights, from the file to the results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL
from torch import Tensor, nn

from sweep import ConfigError, Outcome, compose, run_trial
from sweep.config.schema import validate
from sweep.tracking.upload_process import UploadProcess
from sweep.trial.prepare import load_data

N = 96


def saved(path: Path, **changes: Any) -> tuple[str, ...]:
    """Write a table with a column of weights, and return what loads it."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 2))
    columns = {"a": x[:, 0], "b": x[:, 1], "w": rng.integers(0, 4, N), "y": x @ [1, 2] + rng.normal(size=N)}
    pd.DataFrame({**columns, **changes}).to_csv(path, index=False)
    return ("data=table", f"data.path={path}", "data.target=y", "data.weight=w", *SMALL[1:])


@pytest.fixture
def trained(tmp_path: Path, upload_process: UploadProcess) -> Callable[..., Outcome]:
    def train(*overrides: str, **changes: Any) -> Outcome:
        own = saved(tmp_path / "table.csv", **changes)
        cfg = compose(["tracking=off", f"output_dir={tmp_path}/outputs", *own, *overrides])
        return run_trial(cfg, upload_process=upload_process)

    return train


@pytest.mark.process
def test_the_losses_of_a_run_are_weighted_and_its_metrics_are_not(
    trained: Callable[..., Outcome], tmp_path: Path
) -> None:
    outcome = trained()
    found = pd.read_parquet(outcome.folder / "predictions.parquet")
    config = validate(compose(saved(tmp_path / "table.csv")))
    splits, frame = load_data(config).splits, pd.read_csv(tmp_path / "table.csv")
    squares, weights = (found.prediction - found.truth) ** 2, frame.w[found.row]
    assert len(set(weights)) > 2
    expected = np.average(squares, weights=weights) / splits.y_std[0] ** 2
    assert outcome.metrics["test/loss"] == pytest.approx(expected, rel=1e-4)
    assert outcome.metrics["test/mse"] == pytest.approx(squares.mean(), rel=1e-4)


@pytest.mark.process
def test_equal_weights_change_nothing_but_rounding(trained: Callable[..., Outcome]) -> None:
    equal, none = trained(w=np.full(N, 0.3)), trained("data.weight=null", "data.drop=[w]", w=np.arange(N) ** 2)
    for name in ("train/loss", "val/loss", "val/mse"):
        assert equal.history[name].values == pytest.approx(none.history[name].values, rel=1e-4)


class Own:
    """A task of one's own."""

    def __init__(self, metrics: dict[str, Any]) -> None:
        self.metrics = metrics

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[0]) - batch[1]).square().mean()

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0])


@pytest.mark.process
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("task=regression", "task.loss._target_=torch.nn.functional.l1_loss"), "the loss l1_loss cannot weight"),
        ((f"task._target_={__name__}.Own",), "the task Own is no sweep.tasks.TensorTask, so it cannot weight samples"),
    ],
)
def test_what_cannot_weight_samples_is_refused(
    trained: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], says: str
) -> None:
    monkeypatch.setenv("SWEEP_TARGETS", f"{__name__}.*")
    with pytest.raises(ConfigError) as caught:
        trained(*overrides)
    assert caught.value.key == "data.weight"
    assert says in caught.value.problem
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "changes", "says"),
    [
        ((), {"w": ["heavy"] * N}, "column 'w' is 'heavy', not a finite float32 number"),
        ((), {"w": [1.0, None] * (N // 2)}, "column 'w' is empty or NaN"),
        ((), {"w": [-1.0] * N}, "column 'w' is -1, below 0"),
        ((), {"w": [0.0] * N}, "holds no weight above 0"),
        ((), {"w": [0.0, 0.0, 0.0, 1.0] + [0.0] * (N - 4)}, "holds no weight above 0 for the"),
        ((), {"w": [2e38] * N}, "whose sum is not finite in float32; divide them by a constant"),
        (("data.weight=y",), {}, "'y' is a target too"),
        (("data.features=[a,w]",), {}, "'w' is a feature too; name it in data.weight only"),
        (("data.categorical=[w]",), {}, "'w' is a feature too; name it in data.weight only"),
    ],
)
def test_weights_that_cannot_be_are_refused(
    tmp_path: Path, overrides: tuple[str, ...], changes: dict[str, Any], says: str
) -> None:
    config = validate(compose([*saved(tmp_path / "table.csv", **changes), *overrides]))
    with pytest.raises(ConfigError) as caught:
        load_data(config)
    assert caught.value.key == "data.weight"
    assert says in caught.value.problem
    assert "\n" not in str(caught.value)


def test_other_weights_are_other_data(tmp_path: Path) -> None:
    """So that a study notices them when it is resumed."""
    digests = set()
    for weights in (np.ones(N), np.arange(N)):
        config = validate(compose(saved(tmp_path / "table.csv", w=weights)))
        digests.add(load_data(config).description["digest"])
    assert len(digests) == 2
