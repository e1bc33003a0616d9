"""Metrics as functions of the outputs and targets of a whole split. `torch.vmap` can map each over several models."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from sweep.tasks import losses

F = TypeVar("F", bound=Callable[..., Any])
Count = Callable[[Tensor], int | Tensor]  # of targets

_IGNORED = -100  # torch's cross-entropy leaves out targets of this value


def mean_over(count: Count) -> Callable[[F], F]:
    """Mark a metric as a mean. If the outputs of a split are large, it is computed batch by batch.

    count: of the targets that the metric gets: the number of values that the mean is over.
    """

    def marked(function: F) -> F:
        with_count: Any = function
        with_count.mean_over = count
        return function

    return marked


def count_of(metric: Any) -> Count | None:
    """Return what `mean_over` has marked a metric with; None if it is not marked."""
    while isinstance(metric, partial):
        metric = metric.func
    return getattr(metric, "mean_over", None)


@mean_over(torch.Tensor.numel)
def mse(outputs: Tensor, targets: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Return the mean squared error over samples and targets.

    Args:
        outputs: (N, n_targets).
        targets: (N, n_targets).
        scale: (n_targets,), one unit of outputs and targets in the units of the result.
    """
    return _squared(outputs, targets, scale).mean()


def rmse(outputs: Tensor, targets: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Return the root of the mean squared error. Arguments are as for `mse`."""
    return mse(outputs, targets, scale).sqrt()


@mean_over(torch.Tensor.numel)
def mae(outputs: Tensor, targets: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Return the mean absolute error. Arguments are as for `mse`."""
    return ((outputs - targets) * scale).abs().mean()


def r2(outputs: Tensor, targets: Tensor, scale: Tensor | float = 1.0) -> Tensor | None:
    """Return 1 - SSE / SST, averaged over the targets that vary; None if none varies. Arguments are as for `mse`."""
    varied = targets.amax(dim=0) > targets.amin(dim=0)
    if not varied.any():
        return None
    variance = (targets * scale).var(dim=0, correction=0)
    values = torch.where(varied, 1 - _squared(outputs, targets, scale) / variance, 0.0)
    return values.sum() / varied.sum()


def _squared(outputs: Tensor, targets: Tensor, scale: Tensor | float) -> Tensor:
    """Return the mean squared error of each target, (n_targets,)."""
    return ((outputs - targets) * scale).square().mean(dim=0)


@mean_over(torch.Tensor.numel)
def pinball(outputs: Tensor, targets: Tensor, quantiles: Sequence[float]) -> Tensor:
    """Return the mean pinball loss; see `sweep.tasks.Pinball`.

    Args:
        outputs: (N, n_targets, n_quantiles).
        targets: (N, n_targets, 1).
        quantiles: (n_quantiles,).
    """
    return losses.pinball(outputs, targets, outputs.new_tensor(quantiles)).mean()


def coverage_error(outputs: Tensor, targets: Tensor, quantiles: Sequence[float]) -> Tensor:
    """Return |share of targets below the quantile - quantile|, averaged over quantiles and targets.

    Arguments are as for `pinball`.
    """
    shares = (targets <= outputs).to(outputs.dtype).mean(dim=0)  # (n_targets, n_quantiles)
    return (shares - outputs.new_tensor(quantiles)).abs().mean()


@mean_over(torch.Tensor.numel)
def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of correct predictions.

    Args:
        outputs: (N, n_classes, ...) scores of classes, or probabilities of the shape of the targets.
        targets: (N, ...) class indices, or 0 and 1.
    """
    predicted = outputs > 0.5 if outputs.ndim == targets.ndim else outputs.argmax(dim=1)
    return (predicted == targets).float().mean()


@mean_over(lambda targets: (targets != _IGNORED).sum())
def bits_per_token(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy in bits.

    Args:
        outputs: (N, n_classes), logits.
        targets: (N,), class indices.
    """
    return functional.cross_entropy(outputs, targets) / math.log(2)
