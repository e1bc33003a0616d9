"""sweep/tasks: each task's loss and metrics against formulas, scikit-learn and torchmetrics computed alone."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from sklearn.metrics import f1_score, log_loss, mean_pinball_loss, roc_auc_score
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn import functional

from sweep.tasks import Binary, Classification, LanguageModel, Multilabel, Pinball, Quantile, Regression, Segmentation
from sweep.tasks import metrics as functions
from sweep.tasks import split_values as of_splits
from sweep.tasks.losses import balanced_pos_weights, balanced_weights
from sweep.training.evaluate import evaluate_each
from sweep.training.tensors import TensorSplit

N = 40


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def drawn(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.normal(size=shape))


def numbers(task: Any, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    return {name: value.item() for name, value in task.values(outputs, targets).items()}


def test_metrics_of_regression_are_in_the_targets_own_units(rng: np.random.Generator) -> None:
    mean, std = torch.tensor([100.0, -3.0]), torch.tensor([20.0, 0.5])
    metrics = {"mape": torchmetrics.MeanAbsolutePercentageError(), "mine": lambda o, t: (o - t).abs().max()}
    outputs, targets = drawn(rng, N, 2), drawn(rng, N, 2)
    found = numbers(Regression(nn.HuberLoss(), metrics, mean, std), outputs, targets)
    guess, truth = outputs * std + mean, targets * std + mean
    assert found == pytest.approx(
        {
            "loss": functional.huber_loss(outputs, targets).item(),
            "mape": ((guess - truth).abs() / truth.abs()).mean().item(),
            "mine": (guess - truth).abs().max().item(),
        }
    )


def test_the_root_of_the_mean_squared_error(rng: np.random.Generator) -> None:
    outputs, targets, std = drawn(rng, N, 1), drawn(rng, N, 1), torch.tensor([7.0])
    found = numbers(Regression(nn.MSELoss(), {"rmse": functions.rmse}, torch.zeros(1), std), outputs, targets)
    assert found["rmse"] == pytest.approx(7 * math.sqrt(found["loss"]))


def test_quantiles_have_scikit_learns_pinball_loss_and_the_shares_below_them(rng: np.random.Generator) -> None:
    quantiles = [0.1, 0.5, 0.9]
    metrics: dict[str, Any] = {
        name: lambda o, t, f=function: f(o, t, quantiles)
        for name, function in (("pinball", functions.pinball), ("coverage", functions.coverage_error))
    }
    mean, std = torch.tensor([5.0, 0.0]), torch.tensor([2.0, 3.0])
    task = Quantile(Pinball(quantiles), metrics, mean, std, quantiles)
    assert task.out_features == 6
    outputs, targets = drawn(rng, N, 6), drawn(rng, N, 2)
    found = numbers(task, outputs, targets)

    def pinball(outputs: Tensor, targets: Tensor) -> float:
        pairs = [(target, place) for target in range(2) for place in range(3)]
        losses = [
            mean_pinball_loss(targets[:, t], outputs[:, 3 * t + place], alpha=quantiles[place]) for t, place in pairs
        ]
        return float(np.mean(losses))

    wide = std.repeat_interleave(3), mean.repeat_interleave(3)
    assert found["loss"] == pytest.approx(pinball(outputs, targets))
    assert found["pinball"] == pytest.approx(pinball(outputs * wide[0] + wide[1], targets * std + mean))
    shares = [(targets[:, t] <= outputs[:, 3 * t + q]).double().mean().item() for t in range(2) for q in range(3)]
    assert found["coverage"] == pytest.approx(np.abs(np.array(shares) - quantiles * 2).mean())


def test_a_constant_quantile_is_best_at_the_quantile_of_the_targets(rng: np.random.Generator) -> None:
    targets = drawn(rng, 2001, 1)
    candidates = torch.linspace(-3, 3, 601)
    losses = [Pinball([0.8])(torch.full((2001, 1), c.item()), targets).item() for c in candidates]
    assert candidates[int(np.argmin(losses))].item() == pytest.approx(targets.quantile(0.8).item(), abs=0.02)


def test_a_binary_task_needs_one_logit(rng: np.random.Generator) -> None:
    outputs, targets = drawn(rng, N, 1), torch.from_numpy(rng.integers(0, 2, N))
    metrics = {
        "accuracy": functions.accuracy,
        "f1": torchmetrics.F1Score(task="binary"),
        "auroc": torchmetrics.AUROC(task="binary"),
    }
    found = numbers(Binary(nn.BCEWithLogitsLoss(), metrics), outputs, targets)
    odds, truth = outputs.squeeze(1).sigmoid().numpy(), targets.numpy()
    assert found == pytest.approx(
        {
            "loss": log_loss(truth, odds),
            "accuracy": ((odds > 0.5) == truth).mean(),
            "f1": f1_score(truth, odds > 0.5),
            "auroc": roc_auc_score(truth, odds),
        },
        rel=1e-5,
    )


def test_a_multilabel_task_has_a_logit_for_each_label(rng: np.random.Generator) -> None:
    outputs, targets = drawn(rng, N, 3), torch.from_numpy(rng.integers(0, 2, (N, 3)))
    metrics = {
        "accuracy": functions.accuracy,
        "f1": torchmetrics.F1Score(task="multilabel", num_labels=3, average="macro"),
    }
    found = numbers(Multilabel(nn.BCEWithLogitsLoss(), metrics, 3), outputs, targets)
    predicted = (outputs.sigmoid() > 0.5).numpy()
    assert found["accuracy"] == pytest.approx((predicted == targets.numpy()).mean())
    assert found["f1"] == pytest.approx(f1_score(targets.numpy(), predicted, average="macro"), rel=1e-5)


def test_segmentation_counts_every_pixel(rng: np.random.Generator) -> None:
    outputs, targets = drawn(rng, 4, 3, 5, 6), torch.from_numpy(rng.integers(0, 3, (4, 5, 6)))
    iou = torchmetrics.JaccardIndex(task="multiclass", num_classes=3)
    task = Segmentation(nn.CrossEntropyLoss(), {"accuracy": functions.accuracy, "iou": iou}, 3)
    assert task.out_shape(targets) == outputs.shape
    predicted = outputs.argmax(dim=1)
    shares = [((predicted == c) & (targets == c)).sum() / ((predicted == c) | (targets == c)).sum() for c in range(3)]
    found = numbers(task, outputs, targets)
    assert found["accuracy"] == pytest.approx((predicted == targets).double().mean().item())
    assert found["iou"] == pytest.approx(float(np.mean(shares)), rel=1e-5)


def test_a_language_model_predicts_each_position(rng: np.random.Generator) -> None:
    outputs, targets = drawn(rng, 4, 7, 5), torch.from_numpy(rng.integers(0, 5, (4, 7)))
    metrics = {"accuracy": functions.accuracy, "bits_per_token": functions.bits_per_token}
    task = LanguageModel(nn.CrossEntropyLoss(), metrics, 5)
    assert task.out_shape(targets) == outputs.shape
    found = numbers(task, outputs, targets)
    odds = outputs.softmax(dim=-1).gather(-1, targets.unsqueeze(-1))
    assert found["bits_per_token"] == pytest.approx(-odds.log2().mean().item())
    assert found["loss"] == pytest.approx(found["bits_per_token"] * math.log(2))
    assert found["accuracy"] == pytest.approx((outputs.argmax(-1) == targets).double().mean().item())


def test_classes_are_weighted_as_scikit_learn_balances_them(rng: np.random.Generator) -> None:
    y = rng.choice(4, size=100, p=[0.5, 0.3, 0.15, 0.05])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=y)
    assert balanced_weights(torch.bincount(torch.from_numpy(y), minlength=4)).tolist() == pytest.approx(expected)
    assert balanced_weights(torch.tensor([4, 0])).tolist() == [0.5, 0.0]
    assert balanced_pos_weights(torch.tensor([20, 50, 0]), 100).tolist() == [4.0, 1.0, 1.0]


def by_batch(task: Any, *batches: tuple[Tensor, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in task.values_by_batch(batches).items()}


def test_means_need_no_outputs_but_those_of_a_batch(rng: np.random.Generator) -> None:
    """Of batches of other sizes and lengths, with positions that the loss leaves out."""
    metrics = {"accuracy": functions.accuracy, "bits_per_token": functions.bits_per_token}
    task = LanguageModel(nn.CrossEntropyLoss(), metrics, 5)
    assert (set(task.means), task.whole) == ({"accuracy", "bits_per_token"}, [])
    outputs, targets = drawn(rng, 9, 7, 5), torch.from_numpy(rng.integers(0, 5, (9, 7)))
    targets[4:, 3:] = -100
    found = by_batch(task, (outputs[:4], targets[:4]), (outputs[4:8], targets[4:8]), (outputs[8:], targets[8:]))
    whole = numbers(task, outputs, targets)
    assert found["accuracy"] == pytest.approx(whole["accuracy"], rel=1e-6)
    assert found["bits_per_token"] == pytest.approx(whole["bits_per_token"], rel=1e-12)
    ragged = by_batch(task, (outputs[:4], targets[:4]), (outputs[4:, :3], targets[4:, :3]))
    assert ragged["bits_per_token"] == pytest.approx(whole["bits_per_token"], rel=1e-12)
    empty = (outputs[8:, 3:], targets[8:, 3:])  # no token counts
    assert by_batch(task, (outputs, targets), empty)["bits_per_token"] == found["bits_per_token"]


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_mean_over_more_batches_than_are_kept(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    task = Regression(nn.MSELoss(), {"mse": functions.mse}, torch.zeros(1), torch.full((1,), 3.0))
    batches = [*zip(drawn(rng, 10, 1).split(3), drawn(rng, 10, 1).split(3), strict=True)]
    expected = by_batch(task, *batches)
    monkeypatch.setattr(of_splits, "_MOST_PENDING", most)
    assert by_batch(task, *batches) == expected


def test_what_is_no_mean_gets_the_whole_split(rng: np.random.Generator) -> None:
    r2, mse = functions.r2, partial(functions.mse)
    task = Regression(nn.MSELoss(), {"r2": r2, "mse": mse}, torch.zeros(1), torch.full((1,), 3.0))
    assert (set(task.means), task.whole) == ({"mse"}, ["r2"])
    outputs, targets = drawn(rng, 10, 1), drawn(rng, 10, 1)
    found = by_batch(task, (outputs[:7], targets[:7]), (outputs[7:], targets[7:]))
    assert found == pytest.approx(numbers(task, outputs, targets), rel=1e-12)
    assert list(found) == ["loss", "r2", "mse"]
    chosen = task.values_by_batch([(outputs, targets)], ["r2"])
    assert list(chosen) == ["r2"]


def test_logarithms_are_measured_as_the_numbers_that_they_mean(rng: np.random.Generator) -> None:
    outputs, targets = drawn(rng, N, 1), torch.from_numpy(rng.poisson(2.0, (N, 1))).double()
    metrics = {"mse": functions.mse, "mape": torchmetrics.MeanAbsolutePercentageError()}
    scale = (torch.full((1,), 5.0), torch.full((1,), 2.0))
    task = Regression(nn.PoissonNLLLoss(), metrics, *scale)
    found = numbers(task, outputs, targets)
    rates = numbers(Regression(nn.PoissonNLLLoss(log_input=False), metrics, *scale), outputs.exp(), targets)
    assert found == pytest.approx(rates, rel=1e-6)


def test_metrics_of_several_models_at_once_equal_those_of_each_alone(rng: np.random.Generator) -> None:
    """Those that torch can vectorise, those of torchmetrics, and a function that vmap cannot map."""
    targets = torch.from_numpy(rng.integers(0, 3, N))
    split = TensorSplit(torch.zeros(N, 1), targets, None)
    outputs = drawn(rng, 5, N, 3)
    f1 = torchmetrics.F1Score(task="multiclass", num_classes=3, average="macro")
    vectorised = Classification(nn.CrossEntropyLoss(), {"f1": f1, "accuracy": functions.accuracy}, 3)
    branching = {"sign": lambda o, t: o.sum() if o.sum().item() > 0 else -o.sum(), "accuracy": functions.accuracy}
    for task in (vectorised, Classification(nn.CrossEntropyLoss(), branching, 3)):
        together = evaluate_each(outputs, split, task)
        for of_one, found in zip(outputs, together, strict=True):
            alone = numbers(task, of_one, targets)
            assert list(found) == list(alone)
            assert found == pytest.approx(alone, rel=1e-9)


def test_the_loss_gets_what_is_formed_for_it_once(rng: np.random.Generator) -> None:
    class Counting(Regression):
        n = 0

        def for_loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            self.n += 1
            return super().for_loss(outputs, targets)

    class WithItsOwn(Regression):
        def loss_of(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
            return super().loss_of(outputs, targets, weights) + 1

    counting = Counting(nn.MSELoss(), {}, torch.zeros(1), torch.ones(1))
    own = WithItsOwn(nn.MSELoss(), {}, torch.zeros(1), torch.ones(1))
    outputs, targets = drawn(rng, 10, 1), drawn(rng, 10, 1)
    batches = [(outputs[:7], targets[:7]), (outputs[7:], targets[7:])]
    loss = by_batch(counting, *batches)["loss"]
    assert counting.n == 2
    assert by_batch(own, *batches)["loss"] == pytest.approx(loss + 1)
