"""Weights of samples: the weighted mean of a loss, from a loss that torch can leave unreduced."""

import copy
from inspect import signature
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sweep.utils.errors import ConfigError, one_line

if TYPE_CHECKING:
    from sweep.tasks.task import TensorTask

_KEY, _ADVICE = "data.weight", "choose a loss of torch.nn, or leave data.weight out"
_AGREES = 1e-3  # relative; a mean over another number of elements is further off


def unreduced(loss: object) -> nn.Module:
    """Return a copy of a loss that returns the loss of each element. It shares the loss's tensors.

    Raises ConfigError unless the loss is a module with reduction="mean", as those of `torch.nn` are.
    """
    function = getattr(loss, "func", loss)  # of a partial
    name = getattr(function, "__name__", type(function).__name__)
    reduction = getattr(loss, "reduction", None)
    if not isinstance(loss, nn.Module) or reduction is None:
        problem = f"the loss {name} cannot weight samples, as it is no module with the argument `reduction`"
        raise ConfigError(_KEY, f"{problem}; {_ADVICE}")
    if reduction != "mean":
        raise ConfigError(_KEY, f"needs a loss with reduction=mean, but that of {name} is {reduction}")
    of_each = copy.copy(loss)
    of_each.__dict__["reduction"] = "none"
    return of_each


def weighted_mean(of_each: nn.Module, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return sum(w * l) / sum(w * c), of shape (); 0 if all weights are 0.

    l are the losses of the elements, and c says how much each of them counts in the mean that torch computes without
    weights of samples (see `_counts`). So equal weights give that mean. The elements of a sample share its weight. A
    sample whose weight is 0 does not count even if its loss is infinite.

    Args:
        of_each: an `unreduced` loss.
        outputs: as the loss takes them, the elements of the first sample first.
        targets: likewise.
        weights: (B,).
    """
    n = weights.shape[0]  # not `len`, which a trace takes for a constant
    losses = of_each(_without_uncounted(outputs, weights), targets)
    counts = _counts(of_each, targets)
    losses = losses.reshape(n, -1)  # (B, elements of a sample)
    shares = weights.to(losses.dtype).unsqueeze(1)  # (B, 1)
    total = shares.expand_as(losses).sum() if counts is None else (shares * counts.reshape(n, -1)).sum()
    shares = shares / torch.where(total > 0, total, 1.0)  # first: the products cannot overflow
    return (shares * torch.where(shares > 0, losses, 0.0)).sum()


def _without_uncounted(outputs: Tensor, weights: Tensor) -> Tensor:
    """Return the outputs with 0 for samples of weight 0, so that their gradients, 0 times a derivative, are numbers."""
    of_sample = outputs.shape[0] // weights.shape[0]
    counts = (weights > 0).unsqueeze(1).expand(-1, of_sample).reshape(outputs.shape[0], *[1] * (outputs.ndim - 1))
    return torch.where(counts, outputs, 0.0)


def _counts(loss: object, targets: Tensor) -> Tensor | None:
    """Return how much each element counts in torch's mean; None if all count 1.

    The losses of classes divide by the weights of the targets' classes, without those that are ignored.
    """
    if not isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) or targets.is_floating_point():
        return None
    counted = targets != loss.ignore_index
    if loss.weight is None:
        return counted
    return loss.weight[targets.where(counted, 0)] * counted


def size_of_mean(loss: object, targets: Tensor, weights: Tensor | None) -> Tensor | int:
    """Return how much a batch counts in the mean over several: the number of samples, or what the mean divides by.

    Args:
        loss: the mean loss. Those of classes divide by the weights of the targets' classes.
        targets: of the batch, as the loss takes them.
        weights: (B,), those of the samples; None if all count the same.
    """
    counts = _counts(loss, targets)
    if weights is None:
        return len(targets) if counts is None else counts.sum()
    return weights.sum() if counts is None else (weights.unsqueeze(1) * counts.reshape(len(weights), -1)).sum()


def check_weighting(task: "TensorTask", outputs: Tensor, targets: Tensor) -> None:
    """Raise ConfigError unless the task's loss can weight samples.

    Args:
        task: the loss.
        outputs: of the model for a batch.
        targets: of the batch.
    """
    name = type(task).__name__
    if "weights" not in signature(task.loss_of).parameters:
        raise ConfigError(_KEY, f"the task {name} has a loss_of of its own, without the argument `weights`; {_ADVICE}")
    try:
        plain = task.loss_of(outputs, targets)
        found = task.loss_of(outputs, targets, torch.ones(len(targets), device=outputs.device))
    except ConfigError:
        raise
    except Exception as error:  # your own loss may raise anything
        raise ConfigError(_KEY, f"the loss cannot weight samples ({one_line(error)}); {_ADVICE}") from error
    if plain.isfinite() and not torch.isclose(found, plain, rtol=_AGREES):
        raise ConfigError(_KEY, f"the loss is not the mean of the losses of samples; {_ADVICE}")
