"""sweep/trial/build_task.py: tasks from config nodes, and the errors of those that cannot be built or do not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import refusals
import torch
from torch import Tensor, nn

from sweep import ConfigError, Outcome, Samples, compose, run_trial
from sweep.config.nodes import Split
from sweep.config.schema import validate
from sweep.data.split import divide
from sweep.tasks import TensorTask
from sweep.trial.build_task import build_task

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3))
CLASSES = Samples(name="c", task="classification", x=X, y=np.repeat([0, 1, 1, 1, 2], 12))
PAIR = Samples(name="p", task="classification", x=X, y=np.repeat([0, 1, 1], 20))
LABELS = Samples(name="l", task="multilabel", x=X, y=(X > 0.5).astype(int))
NUMBERS = Samples(name="n", task="regression", x=X, y=X[:, :2])
NUMBER = Samples(name="one", task="regression", x=X, y=X[:, :1])


def task_of(samples: Samples, *overrides: str) -> Any:
    return build_task(validate(compose(overrides)).task, samples, divide(samples, Split()), CPU)


def refusal(samples: Samples, *overrides: str) -> ConfigError:
    return refusals.refusal(lambda: task_of(samples, *overrides))


@pytest.mark.parametrize(
    ("samples", "option", "n_outputs"),
    [
        (CLASSES, "auto", 3),
        (NUMBERS, "auto", 2),
        (LABELS, "auto", 3),
        (PAIR, "binary", 1),
        (NUMBERS, "quantile", 6),
    ],
)
def test_a_task_says_how_many_outputs_its_model_needs(samples: Samples, option: str, n_outputs: int) -> None:
    assert task_of(samples, f"task={option}").out_features == n_outputs


def test_weights_balance_the_classes_of_the_training_split() -> None:
    y = divide(CLASSES, Split()).train.y
    weights = torch.tensor([len(y) / (3 * (y == c).sum()) for c in range(3)], dtype=torch.float32)
    outputs, targets = torch.randn(9, 3), torch.arange(9) % 3
    found = task_of(CLASSES, "task=classification", "task.loss.weight=balanced").loss_of(outputs, targets)
    assert found == nn.functional.cross_entropy(outputs, targets, weights)
    given = task_of(CLASSES, "task=classification", "task.loss.weight=[1,0,2]").loss_of(outputs, targets)
    assert given == nn.functional.cross_entropy(outputs, targets, torch.tensor([1.0, 0.0, 2.0]))


def test_positives_are_weighted_by_the_training_split() -> None:
    y = divide(PAIR, Split()).train.y
    weight = torch.tensor((y == 0).sum() / (y == 1).sum())
    outputs, targets = torch.randn(8, 1), torch.arange(8) % 2
    found = task_of(PAIR, "task=binary", "task.loss.pos_weight=balanced").loss_of(outputs, targets)
    expected = nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], targets.float(), pos_weight=weight)
    assert found.item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("samples", "overrides", "key", "says"),
    [
        (NUMBERS, ("task=classification",), "task", "needs data for classification, but these are for regression"),
        (CLASSES, ("task=regression",), "task", "needs data for regression, but these are for classification"),
        (CLASSES, ("task=binary",), "task", "binary needs two classes, but the data have 3"),
        (NUMBERS, ("task=quantile", "task.quantiles=[0.9,0.1]"), "task.quantiles", "must rise"),
        (
            CLASSES,
            ("task=classification", "task.loss.weight=[1,2]"),
            "task.loss.weight",
            "has 2 numbers, but the task n",
        ),
        (
            CLASSES,
            ("task=classification", "task.loss.weight=even"),
            "task.loss.weight",
            "must be balanced, null or a l",
        ),
        (NUMBERS, ("task/loss=poisson",), "task.loss", "must not be normalised; set split.normalize=false"),
        (
            NUMBER,
            ("task/loss=cross_entropy",),
            "task.loss",
            "is a cross entropy, which is 0 for one number",
        ),
        (CLASSES, ("+task.loss.smoothing=0.1",), "task.loss.smoothing", "CrossEntropyLoss takes no such argument"),
        (
            CLASSES,
            ("+task.metrics.f={_target_: torchmetrics.F1Score, beta: 2}",),
            "task.metrics.f.beta",
            "multiple values",
        ),
        (CLASSES, ("+task.metrics.f=3",), "task.metrics.f", "needs a _target_"),
    ],
)
def test_what_does_not_fit_is_refused(samples: Samples, overrides: tuple[str, ...], key: str, says: str) -> None:
    error = refusal(samples, *overrides)
    assert error.key == key
    assert says in error.problem


class Margin:
    """A task of one's own: a loss of two outputs of the model, a batch at a time, and a metric that collects."""

    def __init__(self, metrics: dict[str, Any], margin: float) -> None:
        self.metrics, self.margin = metrics, margin

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        scores = model(x)
        return (self.margin - scores.gather(1, y[:, None]) + scores.logsumexp(1, keepdim=True)).mean()

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0])


@pytest.mark.process
def test_a_task_of_ones_own_trains_and_its_metrics_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcome(*overrides: str) -> Outcome:
        base = (
            f"output_dir={tmp_path}",
            "tracking=off",
            "data=digits",
            "trainer.epochs=3",
            "+task.metrics.f1.goal=maximize",
        )
        f1 = ("+task.metrics.f1._target_=torchmetrics.F1Score", "+task.metrics.f1.average=macro")
        more = ("+task.metrics.f1.task=multiclass", "+task.metrics.f1.num_classes=10")
        return run_trial(compose([*base, *f1, *more, *overrides]))

    monkeypatch.setenv("SWEEP_TARGETS", f"{__name__}.*")
    own = outcome(f"task._target_={__name__}.Margin", "+task.margin=1.0", "trainer.monitor=val/f1")
    builtin = outcome("trainer.monitor=val/f1")
    assert own.history["val/loss"].values == pytest.approx(builtin.history["val/loss"].values + 1.0, rel=1e-4)
    assert own.history["val/f1"].values == pytest.approx(builtin.history["val/f1"].values, rel=1e-6)
    assert own.metrics["test/f1"] == pytest.approx(builtin.metrics["test/f1"], rel=1e-6)
    assert isinstance(task_of(CLASSES), TensorTask)
