"""Learning-rate schedules: torch's own schedulers, with lengths in epochs instead of steps.

Each option of `conf/scheduler/` that names this module has one of these functions as its target. The trial passes the
optimizer, `steps_per_epoch` and `epochs`; the latter is a fraction if `trainer.max_steps` ends the run within an epoch.
The scheduler that is returned must be stepped after each update (the files set `interval: step`). A *length* is a
number of epochs, or a share of the run such as "25%", so it keeps its meaning if the batch size changes.
"""

import math
from typing import Literal

from torch.optim import Optimizer
from torch.optim import lr_scheduler as torch_schedulers
from torch.optim.lr_scheduler import LRScheduler

from sweep.config.scheduler_node import in_epochs

Length = float | str


def n_steps(name: str, length: Length, steps_per_epoch: int, epochs: float) -> int:
    """Convert `length` to optimizer steps, at least 1. Raises ValueError if it is not > 0 or a share such as "25%".

    name: the argument's name, for the message.
    """
    n_epochs = in_epochs(length, epochs)
    if n_epochs is None:
        raise ValueError(f"{name} must be a number of epochs > 0, or a share of the run such as 25%, got {length!r}")
    return max(1, round(n_epochs * steps_per_epoch))


def constant(optimizer: Optimizer) -> LRScheduler:
    """Keep the optimizer's own learning rate throughout."""
    return torch_schedulers.ConstantLR(optimizer, factor=1.0, total_iters=0)


def cyclic(
    optimizer: Optimizer,
    steps_per_epoch: int,
    epochs: float,
    base_lr: float,
    max_lr: float,
    cycle_epochs: Length,
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
    gamma: float = 1.0,
) -> LRScheduler:
    """Cycle in triangles between two bounds (Smith 2017): lr = base_lr + (max_lr - base_lr) * (1 - d).

    d is the distance from the cycle's peak, in half cycles: 1 at a cycle's ends and 0 in its middle. `triangular2`
    halves the amplitude after each cycle. `exp_range` multiplies it by `gamma` each epoch.
    """
    half_cycle = n_steps("cycle_epochs", cycle_epochs, steps_per_epoch, epochs) / 2
    return torch_schedulers.CyclicLR(
        optimizer,
        base_lr=base_lr,
        max_lr=max_lr,
        step_size_up=half_cycle,  # pyright: ignore[reportArgumentType]  # torch takes a float and keeps it
        mode=mode,
        gamma=gamma ** (1 / steps_per_epoch),
        cycle_momentum=False,  # only the learning rate cycles; torch would cycle the momentum too
    )


def onecycle(
    optimizer: Optimizer,
    steps_per_epoch: int,
    epochs: float,
    max_lr: float,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> LRScheduler:
    """Rise to `max_lr` over the first `pct_start` of the run, then fall once (Smith & Topin 2018), along half cosines.

    The rate starts at max_lr / div_factor and ends at max_lr / div_factor / final_div_factor. Raises ValueError if the
    run has only one update.
    """
    total = round(steps_per_epoch * epochs)
    if total < 2:
        raise ValueError(
            "a rise and a fall need two updates, the run has one; raise trainer.epochs, or lower trainer.batch_size"
        )
    if pct_start * total == 1:  # a rise of one update: torch divides 0 by 0
        pct_start *= 1 - 1e-9
    return torch_schedulers.OneCycleLR(
        optimizer,
        max_lr=max_lr,
        total_steps=total,
        pct_start=pct_start,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        cycle_momentum=False,
    )


def cosine(
    optimizer: Optimizer, steps_per_epoch: int, epochs: float, decay_epochs: Length = "100%", min_lr: float = 0.0
) -> LRScheduler:
    """Fall along half a cosine from the optimizer's rate to `min_lr` (Loshchilov & Hutter 2017), then stay there."""
    length = n_steps("decay_epochs", decay_epochs, steps_per_epoch, epochs)
    return _follow(optimizer, lambda step, lr: _anneal(lr, min_lr, step / length))


def warmup_cosine(
    optimizer: Optimizer,
    steps_per_epoch: int,
    epochs: float,
    warmup_epochs: Length = "10%",
    min_lr: float = 0.0,
) -> LRScheduler:
    """Rise linearly to the optimizer's rate over `warmup_epochs`, then fall along half a cosine to `min_lr`.

    Raises ValueError if the rise fills the complete run.
    """
    total = round(steps_per_epoch * epochs)
    warmup = n_steps("warmup_epochs", warmup_epochs, steps_per_epoch, epochs)
    if warmup >= total:
        raise ValueError(f"warmup_epochs = {warmup_epochs} fills the whole run of {epochs:g} epochs; shorten it")

    def lr_at(step: int, lr: float) -> float:
        if step < warmup:
            return lr * (step + 1) / warmup
        return _anneal(lr, min_lr, (step - warmup) / (total - warmup))

    return _follow(optimizer, lr_at)


def cosine_restarts(
    optimizer: Optimizer,
    steps_per_epoch: int,
    epochs: float,
    cycle_epochs: Length = "25%",
    cycle_mult: int = 1,
    min_lr: float = 0.0,
) -> LRScheduler:
    """Fall along half cosines from the optimizer's rate to `min_lr`, again and again (SGDR, Loshchilov & Hutter 2017).

    Each is `cycle_mult` times as long as the one before.
    """
    length = n_steps("cycle_epochs", cycle_epochs, steps_per_epoch, epochs)
    return torch_schedulers.CosineAnnealingWarmRestarts(optimizer, T_0=length, T_mult=cycle_mult, eta_min=min_lr)


def step(
    optimizer: Optimizer, steps_per_epoch: int, epochs: float, step_epochs: Length = "34%", gamma: float = 0.1
) -> LRScheduler:
    """Multiply the learning rate by `gamma` after every `step_epochs`."""
    length = n_steps("step_epochs", step_epochs, steps_per_epoch, epochs)
    return torch_schedulers.StepLR(optimizer, step_size=length, gamma=gamma)


def ramp(optimizer: Optimizer, first_lr: float, last_lr: float, n_updates: int) -> LRScheduler:
    """Grow from `first_lr` to `last_lr` by the same factor at each of `n_updates` updates, then stay there.

    This is the ramp of the learning-rate range test (Smith 2017), except that Smith's rate grows linearly.
    """
    span = max(1, n_updates - 1)
    return _follow(optimizer, lambda step, lr: first_lr * (last_lr / first_lr) ** min(1.0, step / span))


def _anneal(lr: float, min_lr: float, progress: float) -> float:
    """Return the rate on half a cosine from `lr` at progress 0 to `min_lr` at progress 1 and beyond."""
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def _follow(optimizer: Optimizer, lr_at) -> LRScheduler:
    """Return a scheduler that sets each group's learning rate to `lr_at(step, initial rate)`. Steps count from 0."""
    initial = [group["lr"] for group in optimizer.param_groups]
    factors = [lambda step, lr=lr: lr_at(step, lr) / lr for lr in initial]
    return torch_schedulers.LambdaLR(optimizer, factors)
