"""Models trained in this process, without a run: data of each kind, and a best.pt in a folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from torch import Tensor, nn

from sweep import Samples, compose
from sweep.config.schema import validate
from sweep.testing import TrialInMemory
from sweep.trial.builtin import BuiltInTraining
from sweep.trial.function import FunctionTraining
from sweep.trial.prepare import load_data, load_samples

QUICK = ("trainer.epochs=2", "scheduler=constant", "optimizer.lr=0.01", "trainer.threads=1")


def labels() -> Samples:
    x = np.random.default_rng(0).normal(5, 2, size=(96, 4))
    return Samples(name="labels", task="multilabel", x=x, y=(x[:, :3] + x[:, 3:] > 10).astype(int))


def pixels() -> Samples:
    x = np.random.default_rng(0).normal(1, 2, size=(96, 2, 4, 5))
    return Samples(name="pixels", task="segmentation", x=x, y=x.argmax(axis=1), classes=("land", "sea"))


def counts() -> Samples:
    """Events of a rate from 1 to 150 that the inputs determine."""
    rng = np.random.default_rng(0)
    x = rng.normal(3, 1, size=(240, 2))
    y = rng.poisson(np.exp(3 + (x[:, :1] - 3) + 0.5 * (x[:, 1:] - 3))).astype(float)
    return Samples(name="counts", task="regression", x=x, y=y)


def pair() -> Samples:
    x = np.random.default_rng(0).normal(size=(96, 3))
    return Samples(name="pair", task="regression", x=x, y=np.stack([100 + 20 * x[:, 0], x[:, 1] - x[:, 2]], axis=1))


class Pixelwise(nn.Module):
    """Works on the channels of each pixel."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.movedim(1, -1)).movedim(-1, 1)


def passengers(n: int = 120) -> pd.DataFrame:
    """A table with all kinds of columns, and a target of two names."""
    rng = np.random.default_rng(1)
    age = rng.normal(40, 12, n).round(1)
    city = rng.choice(["Oslo", "Rome", "Bonn"], n)
    frame = pd.DataFrame({"id": np.arange(n), "age": age, "city": city, "fare": rng.gamma(2, 20, n)})
    frame.loc[::9, "age"] = np.nan
    frame["day"] = pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 300, n), unit="D")
    frame["fate"] = np.where((frame.age.fillna(40) > 40) ^ (city == "Rome"), "saved", "lost")
    return frame


TABLE = ("data=table", "data.task=classification", "data.target=fate", "data.drop=[id]", "data.categorical=auto")
TABLE += ("data.missing=indicator", "data.dates=[day]", "data.max_one_hot=2")


def table(folder: Path) -> tuple[str, ...]:
    """The overrides for a table of passengers that is written to the folder."""
    passengers().to_csv(folder / "passengers.csv", index=False)
    return (*TABLE, f"data.path={folder / 'passengers.csv'}")


def text(folder: Path) -> tuple[str, ...]:
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    small = ("model=transformer", "model.width=16", "model.n_layers=1", "model.n_heads=2")
    return ("data=text", f"data.path={folder / 'text.txt'}", "data.block_size=16", *small)


def own(name: str) -> tuple[str, ...]:
    """The overrides for a data option of this module; `allow` must have been called."""
    return (f"data._target_={__name__}.{name}", *(f"~data.{key}" for key in compose([]).data if key != "_target_"))


def allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEP_TARGETS", f"{__name__}.*")


def trained(folder: Path, *overrides: str, in_study: bool = False) -> tuple[BuiltInTraining, dict[str, float]]:
    """Train in this process. Return the training, and the metrics on the test split.

    The folder gets what a run's has: best.pt, and outside a study predictions.parquet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    training = BuiltInTraining(validate(compose([*QUICK, *overrides])))
    trial: Any = TrialInMemory(folder)
    if not in_study:
        trial.number = None
    return training, training(trial)


def held_out(training: BuiltInTraining) -> tuple[NDArray, NDArray]:
    """The inputs and targets of the test split in their own units, before any encoding."""
    samples, splits = load_samples(training.config), load_data(training.config).splits
    assert isinstance(samples, Samples)
    return samples.x[splits.test_rows], samples.y[splits.test_rows]


def function_training(call: str) -> FunctionTraining:
    """The training of a run by a function that is named, on the CPU."""
    overrides = ("trainer=function", f"trainer.call={call}", "trainer.device=cpu", "tracking=off")
    return FunctionTraining(validate(compose(overrides)))
