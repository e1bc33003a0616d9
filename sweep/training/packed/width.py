"""How many trials to pack, measured for the model on this machine."""

import time
from collections.abc import Callable, Iterator

import psutil
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sweep.tasks.task import BatchLoss
from sweep.training.packed.pack import Pack
from sweep.training.packed.parameters import Unpackable
from sweep.training.runtime import is_out_of_memory

_WIDTHS = {"cpu": (4, 16, 64)}
_WIDTHS_DEFAULT = (16, 64, 256, 1024, 4096)
_WORTH_IT = 1.1  # a larger width must give this many times the updates a second
_TOO_LONG_S = {"cpu": 0.02}  # if an update keeps a core busy for longer, a pack gains nothing
_MEMORY_TO_SPARE = 6  # the next width, four times as large, is tried if this one took at most 1/6 of the free memory
_N_TIMED = 3


def refuse_large(model: nn.Module, optimizer: Optimizer, loss_fn: BatchLoss, batch: tuple[Tensor, ...]) -> float:
    """Measure how many seconds an update takes a sequential trial. Raises Unpackable if a pack would gain nothing.

    This changes the model's weights.

    Args:
        model: one of the trials' models.
        optimizer: of its parameters.
        loss_fn: the mean loss over a batch.
        batch: inputs, targets and, if samples have weights, these.
    """
    x, *labels = batch

    def update() -> None:
        optimizer.zero_grad()
        loss_fn(model(x), *labels).backward()
        optimizer.step()

    model.train()
    seconds = min(_timed(update, x.device))
    if seconds > _TOO_LONG_S.get(x.device.type, float("inf")):
        raise Unpackable(f"an update takes {seconds * 1e3:.0f} ms, and a pack of them would gain nothing")
    return seconds


def best_width(pack: Pack, sequential_s: float, most: int) -> int:
    """Find the width with the most updates a second that fits in memory.

    A larger width must be at least 1.1 times as fast to be preferred.

    Args:
        pack: an empty pack of the trials' structure.
        sequential_s: seconds of an update of a sequential trial, from `refuse_large`.
        most: the largest width to return.

    Raises:
        Unpackable: no width is 1.1 times as fast as sequential training.
    """
    best, best_rate = 1, 1 / sequential_s
    for width in _WIDTHS.get(pack.device.type, _WIDTHS_DEFAULT):
        if best > 1 and width > most:
            break
        free = _free_bytes(pack.device)
        try:
            with pack.rehearsal(width) as update:
                rate = width / min(_timed(update, pack.device))
                taken = free - _free_bytes(pack.device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            break
        if rate > best_rate * _WORTH_IT:
            best, best_rate = width, rate
        if taken * _MEMORY_TO_SPARE > free:
            break
    if best == 1:
        raise Unpackable("a pack of them is no faster")
    return min(best, most)


def _timed(update: Callable[[], None], device: torch.device) -> Iterator[float]:
    """Yield the seconds of a few updates."""
    for i in range(_N_TIMED + 1):
        start = time.perf_counter()
        update()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        if i:  # the first one includes allocations that are made only once
            yield time.perf_counter() - start


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
