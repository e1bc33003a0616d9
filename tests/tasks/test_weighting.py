"""sweep/tasks/weighting.py: samples with weights count like samples that are there several times."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sweep.tasks import Binary, Classification, LanguageModel, Multilabel, Pinball, Quantile, Regression, Segmentation
from sweep.tasks.task import TensorTask
from sweep.tasks.weighting import check_weighting
from sweep.utils.errors import ConfigError

N = 12
TIMES = torch.arange(N) % 4  # 0, 1, 2 and 3
CLASS_WEIGHTS = torch.tensor([0.2, 3.0, 1.0])
MEAN, STD = torch.zeros(2), torch.ones(2)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def classes(n_classes: int, *shape: int) -> Tensor:
    return torch.randint(n_classes, shape, generator=torch.Generator().manual_seed(1))


def classifying(loss: nn.Module) -> tuple[TensorTask, Tensor, Tensor]:
    return Classification(loss, {}, 3), drawn(N, 3).log_softmax(1), classes(3, N)


def regressing(loss: nn.Module) -> tuple[TensorTask, Tensor, Tensor]:
    return Regression(loss, {}, MEAN, STD), drawn(N, 2), 1.5 * drawn(2, N).T.abs()


CASES: dict[str, tuple[TensorTask, Tensor, Tensor]] = {
    "mse": regressing(nn.MSELoss()),
    "huber": regressing(nn.HuberLoss(delta=0.5)),
    "poisson": regressing(nn.PoissonNLLLoss(full=True)),
    "quantile": (Quantile(Pinball([0.1, 0.6]), {}, MEAN, STD, [0.1, 0.6]), drawn(N, 4), drawn(2, N).T),
    "cross_entropy": classifying(nn.CrossEntropyLoss()),
    "balanced": classifying(nn.CrossEntropyLoss(weight=CLASS_WEIGHTS)),
    "smoothed": classifying(nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, label_smoothing=0.2)),
    "ignoring": classifying(nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, ignore_index=1)),
    "nll": classifying(nn.NLLLoss(weight=CLASS_WEIGHTS)),
    "margin": classifying(nn.MultiMarginLoss(weight=CLASS_WEIGHTS)),
    "binary": (Binary(nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)), {}), drawn(N, 1), classes(2, N)),
    "multilabel": (Multilabel(nn.BCEWithLogitsLoss(pos_weight=CLASS_WEIGHTS), {}, 3), drawn(N, 3), classes(2, N, 3)),
    "segmentation": (
        Segmentation(nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, ignore_index=2), {}, 3),
        drawn(N, 3, 4, 5),
        classes(3, N, 4, 5),
    ),
    "language_model": (LanguageModel(nn.CrossEntropyLoss(ignore_index=2), {}, 3), drawn(N, 4, 3), classes(3, N, 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_weight_of_3_counts_like_three_samples(case: str) -> None:
    task, outputs, targets = CASES[case]
    task.to(torch.device("cpu"), torch.float64)
    check_weighting(task, outputs, targets)
    repeated = (values.repeat_interleave(TIMES, dim=0) for values in (outputs, targets))
    expected = task.loss_of(*repeated)
    assert task.loss_of(outputs, targets, 5.0 * TIMES).item() == pytest.approx(expected.item(), rel=1e-12)
    assert task.values(outputs, targets, TIMES)["loss"].item() == pytest.approx(expected.item(), rel=1e-12)
    assert task.loss_of(outputs, targets).item() != pytest.approx(expected.item(), rel=1e-3), "weights must matter"


@pytest.mark.parametrize("case", CASES)
def test_a_batch_without_weight_has_no_loss_and_no_gradient(case: str) -> None:
    task, outputs, targets = CASES[case]
    task.to(torch.device("cpu"), torch.float64)
    outputs = outputs.clone().requires_grad_()
    loss = task.loss_of(outputs, targets, torch.zeros(N))
    loss.backward()
    assert loss.item() == 0
    assert outputs.grad is not None
    assert torch.equal(outputs.grad, torch.zeros_like(outputs))


def test_a_sample_without_weight_does_not_count_though_its_loss_overflows() -> None:
    task = CASES["mse"][0]
    outputs = torch.tensor([[1.0, 1.0], [1e30, 0.0]], requires_grad=True)
    loss = task.loss_of(outputs, torch.zeros(2, 2), torch.tensor([0.5, 0.0]))
    loss.backward()
    assert loss.item() == 1.0
    assert outputs.grad is not None
    assert outputs.grad.tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_nor_does_it_though_its_gradient_overflows() -> None:
    task = CASES["poisson"][0]
    outputs = torch.tensor([[1.0, 1.0], [100.0, 1.0]], requires_grad=True)
    task.loss_of(outputs, torch.ones(2, 2), torch.tensor([0.5, 0.0])).backward()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()
    assert outputs.grad[1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_split_in_batches_has_the_loss_of_the_whole(case: str, weighted: bool) -> None:
    task, outputs, targets = CASES[case]
    task.to(torch.device("cpu"), torch.float64)
    weights = [TIMES + 0.5] * weighted
    parts = zip(*(values.split(5) for values in (outputs, targets, *weights)), strict=True)
    assert torch.allclose(task.values_by_batch(parts)["loss"], task.loss_of(outputs, targets, *weights))


def test_large_and_small_weights_are_relative() -> None:
    task, outputs, targets = CASES["mse"]
    found = [task.loss_of(outputs.float(), targets.float(), scale * TIMES).item() for scale in (1.0, 1e36, 1e-36)]
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)


class Deviation(nn.Module):
    """A loss of one's own: the root of the mean square, so not the mean of the losses of samples."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        squares = (outputs - targets).square()
        return squares if self.reduction == "none" else squares.mean().sqrt()


class Constant(Deviation):
    """A loss of one's own that ignores its reduction."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().mean()


class Scaled(Regression):
    """A task of one's own that overrides the loss."""

    def loss_of(self, outputs: Tensor, targets: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 2 * super().loss_of(outputs, targets)


@pytest.mark.parametrize(
    ("kind", "loss", "says"),
    [
        (Regression, partial(functional.mse_loss, reduction="mean"), "the loss mse_loss cannot weight samples"),
        (Regression, nn.MSELoss(reduction="sum"), "needs a loss with reduction=mean, but that of MSELoss is sum"),
        (Regression, Deviation(), "is not the mean of the losses of samples"),
        (Regression, Constant(), "cannot weight samples (shape"),
        (Scaled, nn.MSELoss(), "the task Scaled has a loss_of of its own, without the argument `weights`"),
    ],
)
def test_a_loss_that_cannot_weight_samples_is_refused(kind: Any, loss: Any, says: str) -> None:
    task = kind(loss, {}, MEAN, STD)
    with pytest.raises(ConfigError) as caught:
        check_weighting(task, drawn(N, 2), drawn(2, N).T)
    assert caught.value.key == "data.weight"
    assert says in caught.value.problem
    assert "leave data.weight out" in caught.value.problem or "reduction=mean" in caught.value.problem
    assert "\n" not in caught.value.problem
