"""Losses and metrics of a model on a split."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from sweep.config.metrics import loss_name
from sweep.training.tensors import TensorData, TensorSplit

LossFn = Callable[[Tensor, Tensor], Tensor]
Forward = Callable[[Tensor], Tensor]
_EVAL_BATCH = 4096

_LOSSES: dict[str, LossFn] = {"mse": functional.mse_loss, "cross_entropy": functional.cross_entropy}


def loss_function(name: str, task: str) -> LossFn:
    """Return the function for the mean loss over a batch. `loss_name` lists the names."""
    return _LOSSES[loss_name(name, task)]


@torch.no_grad()
def evaluate(forward: Forward, split: TensorSplit, data: TensorData, loss_fn: LossFn) -> dict[str, float]:
    """Return the `measures` of a model on a split, as numbers."""
    return _read(**measures(predict(forward, split), split, data, loss_fn))


def measures(outputs: Tensor, split: TensorSplit, data: TensorData, loss_fn: LossFn) -> dict[str, Tensor]:
    """Compute the loss in the normalised units of training, and the metrics in the target's own units.

    Regression gives `loss`, `mse`, `mae` and `r2`. `r2` is 1 - SSE / SST, averaged over the targets that vary; if none
    varies, it is left out. Classification gives `loss` and `accuracy`. Each has shape ().

    Args:
        outputs: (n, out_features).
        split: the samples that the outputs belong to.
        data: gives the scale of the targets, `y_std`.
        loss_fn: the mean loss over a batch.
    """
    if not split.y.is_floating_point():
        hits = (outputs.argmax(dim=1) == split.y).float().mean()
        return {"loss": loss_fn(outputs, split.y), "accuracy": hits}
    y_std = data.y_std.double()  # in its own units, a target's square may overflow float32
    error = (outputs - split.y) * y_std  # (n, n_targets)
    squared = error.square().mean(dim=0)  # (n_targets,)
    variance = (split.y * y_std).var(dim=0, correction=0)
    found = {"loss": loss_fn(outputs, split.y), "mse": squared.mean(), "mae": error.abs().mean()}
    varied = split.y.amax(dim=0) > split.y.amin(dim=0)
    if varied.any():
        r2 = torch.where(varied, 1 - squared / variance, 0.0)
        found["r2"] = r2.sum() / varied.sum()
    return found


@torch.no_grad()
def test(forward: Forward, data: TensorData, loss_fn: LossFn, noise: float | None) -> dict[str, float]:
    """Return a model's loss and metrics on the test split, as `test/loss` and so on.

    noise: as in `Samples`; if it is known, `noise_floor` is included.
    """
    outputs = predict(forward, data.test)
    found = measures(outputs, data.test, data, loss_fn)
    if noise is not None and data.test.clean is not None:
        found |= noise_floor(outputs, data.test, data, noise)
    return {f"test/{name}": value for name, value in _read(**found).items()}


def noise_floor(outputs: Tensor, split: TensorSplit, data: TensorData, noise: float) -> dict[str, Tensor]:
    """Compute how far a model is above the irreducible error, in units of the noise's variance sigma^2.

    `excess` is the mean squared error against the noiseless targets, over sigma^2; 0 is perfect. `noise_ratio` is the
    mean squared error against the noisy targets, over sigma^2; the best possible is about 1.

    Args:
        outputs: (n, n_targets), normalised.
        split: the samples that the outputs belong to, with `clean`.
        data: gives the scale of the targets, `y_std`.
        noise: sigma, in the target's own units.
    """
    assert split.clean is not None
    y_std = data.y_std.double()
    return {
        "noise_ratio": ((outputs - split.y) * y_std).square().mean() / noise**2,
        "excess": ((outputs - split.clean) * y_std).square().mean() / noise**2,
    }


def predict(forward: Forward, split: TensorSplit) -> Tensor:
    """Compute the outputs (n, out_features) in float32 or float64, at most 4096 samples at a time."""
    return in_single_precision(torch.cat([forward(x) for x in split.x.split(_EVAL_BATCH)]))


def in_single_precision(outputs: Tensor) -> Tensor:
    """Return the outputs in float32, or unchanged if they are float64."""
    return outputs if outputs.dtype == torch.float64 else outputs.float()


def is_finite(metrics: dict[str, float]) -> bool:
    return all(math.isfinite(value) for value in metrics.values())


def _read(**values: Tensor) -> dict[str, float]:
    numbers = torch.stack([v.double() for v in values.values()]).tolist()  # one synchronisation for all
    return dict(zip(values, numbers, strict=True))
