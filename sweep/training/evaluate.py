"""Losses and metrics of a model on a split."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from sweep.tasks import Task, TensorTask
from sweep.training.data import Batch, Forward, See, Split, TrainingData, n_samples
from sweep.training.tensors import TensorData, TensorSplit, predict


@torch.no_grad()
def evaluate(forward: Forward, split: Split, task: TensorTask) -> dict[str, float]:
    """Return the loss, in the normalised units of training, and the task's metrics on a split."""
    return _read(**split.values(forward, task))


@torch.no_grad()
def evaluate_each(outputs: Tensor, split: TensorSplit, task: TensorTask) -> list[dict[str, float]]:
    """Return the loss and the metrics of each of several models, as `evaluate` does.

    Metrics that torch can vectorise are computed for all models at once, others model by model.

    Args:
        outputs: (n, N, ...), of each model for each sample of the split.
        split: the samples.
        task: the loss and the metrics.
    """
    try:
        stacked = vmap(lambda of_one: task.function_values(of_one, *split.labels))(outputs)
    except Exception:  # vmap, or your own function, may raise anything; model by model shows the actual error
        return [_read(**task.values(of_one, *split.labels)) for of_one in outputs]
    names = list(stacked)
    rows = torch.stack([values.double() for values in stacked.values()], dim=1).tolist()
    found = [dict(zip(names, row, strict=True)) for row in rows]
    if task.collects:
        for of_model, of_one in zip(found, outputs, strict=True):
            of_model |= _read(**task.collected_values(of_one, split.y))
    return [{name: of_model[name] for name in task.order(of_model)} for of_model in found]


@torch.no_grad()
def evaluate_batches(model: nn.Module, split: Split, task: Task) -> dict[str, float]:
    """Return the loss and the metrics of a task that is not a `TensorTask`: the loss is the mean over the samples."""
    total, n_seen = torch.zeros(()), 0
    for metric in task.metrics.values():
        metric.reset()
    for batch in split.batches():
        n = n_samples(batch)
        loss = task.loss(model, batch).double() * n
        total, n_seen = total.to(loss) + loss, n_seen + n
        outputs, targets = task.outputs(model, batch), targets_of(task, batch)
        for metric in task.metrics.values():
            metric.update(outputs, targets)
    found = {"loss": total / n_seen, **{name: metric.compute() for name, metric in task.metrics.items()}}
    return _read(**found)


def targets_of(task: Task, batch: Batch) -> Any:
    """Return what metrics get beside outputs: the task's `targets(batch)`, or the second of a pair, or the batch."""
    own: Callable[[Batch], Any] | None = getattr(task, "targets", None)
    if own is not None:
        return own(batch)
    return batch[1] if isinstance(batch, tuple | list) and len(batch) == 2 else batch


@torch.no_grad()
def test(
    forward: Forward, data: TrainingData, task: TensorTask, noise: float | None, see: See | None
) -> dict[str, float]:
    """Return a model's loss and metrics on the test split, as `test/loss` and so on; nothing if there is none.

    Args:
        forward: computes the outputs.
        data: has the test split.
        task: the loss and the metrics.
        noise: as in `Samples`; if it is known, `noise_floor` is included.
        see: called with each batch and its outputs, as in `Split.values`.
    """
    if data.test is None:
        return {}
    if noise is None or not isinstance(data, TensorData):
        found = data.test.values(forward, task, see)
    else:
        outputs = predict(forward, data.test)
        found = task.values(outputs, *data.test.labels)
        data.test.show(outputs, see)
        if data.test.clean is not None and outputs.shape == data.test.clean.shape:
            found |= noise_floor(task.on_target_scale(outputs), data.test, data, noise)
    return {f"test/{name}": value for name, value in _read(**found).items()}


def noise_floor(outputs: Tensor, split: TensorSplit, data: TensorData, noise: float) -> dict[str, Tensor]:
    """Compute how far a model is above the irreducible error, in units of the noise's variance sigma^2.

    `excess` is the mean squared error against the noiseless targets, over sigma^2; 0 is perfect. `noise_ratio` is the
    mean squared error against the noisy targets, over sigma^2; the best possible is about 1.

    Args:
        outputs: (n, n_targets), normalised; no logarithms.
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


def is_finite(metrics: dict[str, float]) -> bool:
    return all(math.isfinite(value) for value in metrics.values())


def _read(**values: Tensor) -> dict[str, float]:
    numbers = torch.stack([v.double() for v in values.values()]).tolist()  # one synchronisation for all
    return dict(zip(values, numbers, strict=True))
