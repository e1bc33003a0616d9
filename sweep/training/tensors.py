"""Splits as tensors on the training device, and the order in which a trial sees them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sweep.data.split import Part, Splits
from sweep.utils.seeds import derive_seed

_GATHER_LIMIT_BYTES = 64 * 2**20  # below this an epoch's shuffled copy costs less than indexing each batch


@dataclass(frozen=True)
class TensorSplit:
    """x: (n, *in_shape); y: (n, n_targets) or (n,) class indices; clean: as y, without noise."""

    x: Tensor
    y: Tensor
    clean: Tensor | None


@dataclass(frozen=True)
class TensorData:
    """Train, val and test on one device. y_std: (n_targets,), one normalised unit in the target's own."""

    train: TensorSplit
    val: TensorSplit
    test: TensorSplit
    y_std: Tensor


def to_device(splits: Splits, device: torch.device) -> TensorData:
    def split(part: Part) -> TensorSplit:
        clean = None if part.clean is None else torch.from_numpy(part.clean).to(device)
        return TensorSplit(torch.from_numpy(part.x).to(device), torch.from_numpy(part.y).to(device), clean)

    y_std = torch.from_numpy(splits.y_std).to(device)
    return TensorData(split(splits.train), split(splits.val), split(splits.test), y_std)


def epoch_order(seed: int, epoch: int, n: int) -> Tensor:
    """The order of the training samples in an epoch, (n,), on the CPU: a function of its arguments alone."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(derive_seed(seed, f"order/{epoch}")))


def batches(split: TensorSplit, order: Tensor, batch_size: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches in `order` from number `start` (from 0), none behind the last; the last one may be smaller."""
    order = order[start * batch_size :].to(split.x.device)
    if len(order) == 0:  # splitting nothing gives one empty batch
        return iter(())
    if split.x.nbytes <= _GATHER_LIMIT_BYTES:
        return zip(split.x[order].split(batch_size), split.y[order].split(batch_size), strict=True)
    return ((split.x[rows], split.y[rows]) for rows in order.split(batch_size))


def stacked_batches(split: TensorSplit, orders: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The same for many trials at once, each in its own order: orders (K, n); batches (K, batch_size, ...)."""
    if split.x.nbytes * len(orders) <= _GATHER_LIMIT_BYTES:
        x, y = split.x[orders], split.y[orders]
        return zip(x.split(batch_size, dim=1), y.split(batch_size, dim=1), strict=True)
    return ((split.x[rows], split.y[rows]) for rows in orders.split(batch_size, dim=1))
