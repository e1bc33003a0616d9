"""Splits as tensors on the training device, and the order in which a trial trains on them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sweep.config.epochs import steps_per_epoch
from sweep.config.metrics import MOST_OUTPUTS
from sweep.data.split import Part, Splits
from sweep.tasks import TensorTask
from sweep.training.data import Forward, See
from sweep.utils.seeds import derive_seed

if TYPE_CHECKING:
    from sweep.config.nodes import Trainer
    from sweep.training.loaders import LoaderData

Pair = tuple[Tensor, Tensor]  # inputs and targets
Tensors = tuple[Tensor, ...]  # inputs, targets and, if samples have weights, these

EVAL_BATCH = 4096  # samples at a time
_GATHER_LIMIT_BYTES = 64 * 2**20  # up to this size, copying an epoch in its order costs less than indexing each batch


@dataclass(frozen=True)
class TensorSplit:
    """One split.

    Attributes:
        x: (n, *in_shape), the inputs.
        y: (n, n_targets) real targets, or (n,) class indices.
        clean: `y` without its noise, in the same shape; None if it is not known.
        weights: (n,), how much each sample counts; None if all count the same.
    """

    x: Tensor
    y: Tensor
    clean: Tensor | None
    weights: Tensor | None = None

    @property
    def known_targets(self) -> Tensor:
        """As for `Split`."""
        return self.y

    @property
    def labels(self) -> Tensors:
        """What the loss gets beside outputs: the targets and, if there are some, the weights."""
        return (self.y,) if self.weights is None else (self.y, self.weights)

    @property
    def tensors(self) -> Tensors:
        """The inputs and the labels."""
        return (self.x, *self.labels)

    def first(self, size: int) -> Tensors:
        """Return the first samples, at most `size`."""
        return tuple(values[:size] for values in self.tensors)

    def batches(self) -> Iterator[Pair]:
        """As for `Split`."""
        return zip(self.x.split(EVAL_BATCH), self.y.split(EVAL_BATCH), strict=True)

    def values(self, forward: Forward, task: TensorTask, see: See | None = None) -> dict[str, Tensor]:
        """As for `Split`. Batch by batch if the outputs are more than MOST_OUTPUTS."""
        if n_outputs(task, self.y) > MOST_OUTPUTS:
            size = min(EVAL_BATCH, largest_batch(task, self.y))
            return task.values_by_batch(self._by_batch(forward, size, see))
        outputs = predict(forward, self)
        found = task.values(outputs, *self.labels)
        self.show(outputs, see)
        return found

    def _by_batch(self, forward: Forward, size: int, see: See | None) -> Iterator[Tensors]:
        """Yield the outputs and the labels of each batch of `size` samples, after calling `see` with them."""
        for x, *labels in zip(*(values.split(size) for values in self.tensors), strict=True):
            outputs = in_single_precision(forward(x))
            if see is not None:
                see(x, outputs, labels[0])
            yield outputs, *labels

    def show(self, outputs: Tensor, see: See | None) -> None:
        """Call `see`, if there is one, with each batch and its part of the outputs, (n, ...)."""
        if see is not None:  # after the metrics, whose memory is free again by now
            for (x, y), of_batch in zip(self.batches(), outputs.split(EVAL_BATCH), strict=True):
                see(x, of_batch, y)


@dataclass(frozen=True)
class TensorData:
    """The three splits on one device: `TrainingData`. Trials with the same data may share it.

    Attributes:
        y_std: (n_targets,), one normalised unit in the target's own units.
        feed: loads the batches to train on, as augmentation needs; None cuts them from `train`. Not to be shared.
    """

    train: TensorSplit
    val: TensorSplit
    test: TensorSplit
    y_std: Tensor
    feed: "LoaderData | None" = None

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.train.x.device

    @property
    def n_train(self) -> int:
        """The number of samples that an epoch trains on."""
        return len(self.train.x) if self.feed is None else self.feed.n_train

    def example(self, size: int) -> Pair:
        """Return the first training samples."""
        if self.feed is not None:
            x, y, *_ = self.feed.example(size)
            return x, y
        return self.train.x[:size], self.train.y[:size]

    def updates(self, trainer: "Trainer", step: int) -> Iterator[list[Tensors]]:
        """As for `TrainingData`."""
        if self.feed is not None:
            yield from self.feed.updates(trainer, step)
            return
        n_updates = steps_per_epoch(self.n_train, trainer.update_size)
        while True:
            n_passes, n_done = divmod(step, n_updates)
            order = epoch_order(trainer.seed, n_passes + 1, self.n_train)
            left = batches(self.train, order, trainer.batch_size, n_done * trainer.accumulate)
            while of_update := [*islice(left, trainer.accumulate)]:
                yield of_update
                step += 1

    def update_weights(self, trainer: "Trainer", step: int, n: int) -> list[float] | None:
        """As for `TrainingData`."""
        if self.train.weights is None:
            return None
        weights, size = self.train.weights.double().cpu(), trainer.update_size
        n_updates = steps_per_epoch(self.n_train, size)
        passes = range(step // n_updates, -(-(step + n) // n_updates))
        n_samples = len(weights)
        orders = [epoch_order(trainer.seed, n_passes + 1, n_samples)[: self.n_train] for n_passes in passes]
        sums = [of_update.sum().item() for order in orders for of_update in weights[order].split(size)]
        return sums[step % n_updates :][:n]

    def state_dict(self) -> None:
        """Return nothing: the order of an epoch depends on the seed and the epoch only."""

    def load_state_dict(self, state: None) -> None:
        """Do nothing."""


def to_device(splits: Splits, device: torch.device) -> TensorData:
    """Copy the splits to the device."""

    def split(part: Part) -> TensorSplit:
        x, y, clean, weights = (
            None if values is None else torch.from_numpy(values).to(device)
            for values in (part.x, part.y, part.clean, part.weights)
        )
        assert x is not None
        assert y is not None
        return TensorSplit(x, y, clean, weights)

    y_std = torch.from_numpy(splits.y_std).to(device)
    return TensorData(split(splits.train), split(splits.val), split(splits.test), y_std)


def epoch_order(seed: int, epoch: int, n: int) -> Tensor:
    """Return the order of the training samples in an epoch, (n,), on the CPU. It depends only on the arguments."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(derive_seed(seed, f"order/{epoch}")))


def batches(split: TensorSplit, order: Tensor, batch_size: int, start: int = 0) -> Iterator[Tensors]:
    """Yield the batches of `order`, from batch number `start` (from 0) on. The last batch may be smaller."""
    order = order[start * batch_size :].to(split.x.device)
    if len(order) == 0:  # splitting an empty tensor would give one empty batch
        return iter(())
    if split.x.nbytes <= _GATHER_LIMIT_BYTES:
        return zip(*(values[order].split(batch_size) for values in split.tensors), strict=True)
    return (tuple(values[rows] for values in split.tensors) for rows in order.split(batch_size))


def stacked_batches(split: TensorSplit, orders: Tensor, batch_size: int) -> Iterator[Tensors]:
    """Yield the batches of K trials, each in its own order.

    orders: (K, n). A batch's tensors are (K, batch_size, ...); the last one may be smaller.
    """
    if split.x.nbytes * len(orders) <= _GATHER_LIMIT_BYTES:
        return zip(*(values[orders].split(batch_size, dim=1) for values in split.tensors), strict=True)
    return (tuple(values[rows] for values in split.tensors) for rows in orders.split(batch_size, dim=1))


def n_outputs(task: TensorTask, targets: Tensor) -> int:
    """Return how many numbers a model returns for the samples that have these targets."""
    return math.prod(task.out_shape(targets))


def largest_batch(task: TensorTask, targets: Tensor) -> int:
    """Return for how many of these samples a model returns at most MOST_OUTPUTS numbers; at least 1."""
    return max(1, MOST_OUTPUTS * len(targets) // n_outputs(task, targets))


def predict(forward: Forward, split: TensorSplit) -> Tensor:
    """Compute the outputs (n, ...) in float32 or float64, at most 4096 samples at a time."""
    return in_single_precision(torch.cat([forward(x) for x in split.x.split(EVAL_BATCH)]))


def in_single_precision(outputs: Tensor) -> Tensor:
    """Return the outputs in float32, or unchanged if they are float64."""
    return outputs if outputs.dtype == torch.float64 else outputs.float()
