"""The loss and the metrics of a split whose batches come one after another."""

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sweep.tasks.task import TensorTask

_MOST_PENDING = 1000  # values that are kept as tensors
MOST_JOINED = 2**16  # numbers in outputs that metrics get at once


class SplitValues:
    """Collects the batches of a split.

    The loss is the mean over the samples: each batch counts by what its mean divides by. Metrics get several small
    batches at once, since that takes less time: a `Metric` is updated with them, and a function that is marked as a
    mean is averaged. For other functions (`TensorTask.whole`), the outputs and targets of all batches are kept.
    """

    def __init__(self, task: "TensorTask", names: Collection[str] | None = None) -> None:
        """Start without batches. names: of the values to compute; by default the loss and all metrics."""
        names = ("loss", *task.metrics) if names is None else names
        self._task, self._names = task, task.order(names)
        self._loss = _Mean() if "loss" in names else None
        self._means = {name: _Mean() for name in task.means if name in names}
        self._whole = [name for name in task.whole if name in names]
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._collecting = {name: metric for name, metric in task.collecting.items() if name in names}
        for metric in self._collecting.values():
            metric.reset()
        self._joined: list[tuple[Tensor, Tensor]] = []  # batches that the metrics have not got yet
        self._n_joined = 0  # the numbers in their outputs

    def add(self, outputs: Tensor, targets: Tensor, *weights: Tensor) -> None:
        """Add a batch: outputs, targets and, if samples have some, weights."""
        if self._loss is not None:
            self._loss.add(*self._task.loss_and_size(outputs, targets, *weights))
        if self._means or self._collecting:
            self._join(outputs, targets)
        if self._whole:
            self._kept.append((outputs, targets))

    def _join(self, outputs: Tensor, targets: Tensor) -> None:
        if self._joined and not all(map(_can_be_joined, self._joined[-1], (outputs, targets))):
            self._measure()
        self._joined.append((outputs, targets))
        self._n_joined += outputs.numel()
        if self._n_joined >= MOST_JOINED:
            self._measure()

    def _measure(self) -> None:
        """Give the metrics the batches that they have not got yet."""
        outputs, targets = _cat(self._joined)
        self._joined, self._n_joined = [], 0
        for name, mean in self._means.items():
            mean.add(self._task.value(name, outputs, targets), self._task.count(name, outputs, targets))
        if self._collecting:
            measured = self._task.measured(outputs, targets)
            for metric in self._collecting.values():
                metric.update(*measured)

    def leave_out(self, names: Collection[str]) -> None:
        """Do not compute these `Metric`s."""
        self._names = [name for name in self._names if name not in names]
        for name in names:
            self._collecting.pop(name).reset()

    def computed(self) -> dict[str, Tensor]:
        """Compute the values, of shape () each. A metric without a value is left out."""
        if self._joined:
            self._measure()
        found: dict[str, Tensor | None] = {name: mean.value for name, mean in self._means.items()}
        if self._loss is not None:
            found["loss"] = self._loss.value
        if self._kept:
            outputs, targets = _cat(self._kept)
            found |= {name: self._task.value(name, outputs, targets) for name in self._whole}
        for name, metric in self._collecting.items():
            found[name] = metric.compute()
            metric.reset()
        return {name: value for name in self._names if (value := found[name]) is not None}


def _can_be_joined(before: Tensor, after: Tensor) -> bool:
    return before.shape[1:] == after.shape[1:] and before.dtype == after.dtype and before.device == after.device


def _cat(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(batches) == 1:
        return batches[0]
    outputs, targets = zip(*batches, strict=True)
    return torch.cat(outputs), torch.cat(targets)


class _Mean:
    """The mean of values that count by their weights. The values stay on the device for many batches."""

    def __init__(self) -> None:
        self._values: list[Tensor] = []
        self._weights: list[int | Tensor] = []
        self._total: float = 0.0
        self._weight: int | Tensor = 0
        self._device = torch.device("cpu")

    def add(self, value: Tensor | None, weight: int | Tensor) -> None:
        assert value is not None, "a mean has a value"
        self._values.append(value)
        self._weights.append(weight)
        if len(self._values) == _MOST_PENDING:
            self._read()

    def _read(self) -> None:
        """Add the values to the sum, in float64 and in their order. The mean of nothing, which is NaN, does not count.

        Numbers of Python are used, since adding up tensors of one element takes several times as long.
        """
        for value, weight in zip(torch.stack(self._values).tolist(), self._weights, strict=True):
            counts_as = weight if isinstance(weight, int) else weight.item()
            if counts_as > 0:  # one by one: `sum` rounds in other ways in newer versions of Python
                self._total += value * counts_as
            self._weight = self._weight + weight
        self._device = self._values[0].device
        self._values, self._weights = [], []

    @property
    def value(self) -> Tensor:
        """Their mean, of shape (), in float64."""
        if self._values:
            self._read()
        return torch.tensor(self._total, dtype=torch.float64, device=self._device) / self._weight
