"""The loss and the metrics of a split whose batches come one after another."""

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sweep.tasks.task import TensorTask


class SplitValues:
    """Collects the batches of a split.

    The loss is the mean over the samples: each batch counts by what its mean divides by. A `Metric` is updated batch by
    batch, and a function that is marked as a mean is averaged. For other functions (`TensorTask.whole`), the outputs
    and targets of all batches are kept.
    """

    def __init__(self, task: "TensorTask", names: Collection[str] | None = None) -> None:
        """Start without batches. names: of the values to compute; by default the loss and all metrics."""
        names = ("loss", *task.metrics) if names is None else names
        self._task, self._names = task, task.order(names)
        self._means = {name: _Mean() for name in ("loss", *task.means) if name in names}
        self._whole = [name for name in task.whole if name in names]
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._collecting = {name: metric for name, metric in task.collecting.items() if name in names}
        for metric in self._collecting.values():
            metric.reset()

    def add(self, outputs: Tensor, targets: Tensor, *weights: Tensor) -> None:
        """Add a batch: outputs, targets and, if samples have some, weights."""
        measured = self._task.measured(outputs, targets)
        for name, mean in self._means.items():
            if name == "loss":
                mean.add(*self._task.loss_and_size(outputs, targets, *weights))
            else:
                mean.add(self._task.value(name, outputs, targets), self._task.count(name, measured[1]))
        for metric in self._collecting.values():
            metric.update(*measured)
        if self._whole:
            self._kept.append((outputs, targets))

    def leave_out(self, names: Collection[str]) -> None:
        """Do not compute these `Metric`s."""
        self._names = [name for name in self._names if name not in names]
        for name in names:
            self._collecting.pop(name).reset()

    def computed(self) -> dict[str, Tensor]:
        """Compute the values, of shape () each. A metric without a value is left out."""
        found: dict[str, Tensor | None] = {name: mean.value for name, mean in self._means.items()}
        joined = [torch.cat(parts) for parts in zip(*self._kept, strict=True)]
        found |= {name: self._task.value(name, *joined) for name in self._whole}
        for name, metric in self._collecting.items():
            found[name] = metric.compute()
            metric.reset()
        return {name: value for name in self._names if (value := found[name]) is not None}


class _Mean:
    """The mean of values that count by their weights."""

    def __init__(self) -> None:
        self._total, self._weight = torch.zeros(()), 0.0

    def add(self, value: Tensor | None, weight: int | Tensor) -> None:
        assert value is not None, "a mean has a value"
        term = torch.where(torch.as_tensor(weight > 0), value.double() * weight, 0.0)  # the mean of nothing is NaN
        self._total, self._weight = self._total.to(term) + term, self._weight + weight

    @property
    def value(self) -> Tensor:
        return self._total / self._weight
