"""Checks of the learning rates and lengths in the nodes `optimizer` and `scheduler`, before torch is imported."""

import math
from collections.abc import Mapping
from typing import Any

from sweep.utils.errors import ConfigError, is_positive, require

INTERVALS = ("step", "epoch")


def interval_of(scheduler: Mapping[str, Any]) -> str | None:
    """Return whether the scheduler is stepped after each `step` or each `epoch`.

    Its key `interval` decides. Without it, our own schedules that count steps use `step`, and all others return None:
    that depends on the scheduler's class.
    """
    return scheduler.get("interval") or ("step" if counts_steps(scheduler) else None)


def counts_steps(scheduler: Mapping[str, Any]) -> bool:
    """Return True if the scheduler is one of ours that is stepped after each update."""
    return scheduler["_target_"].startswith("sweep.schedules.") and scheduler["_target_"] != "sweep.schedules.constant"


def in_epochs(length: Any, epochs: float) -> float | None:
    """Convert the length of a schedule to epochs.

    Args:
        length: a number of epochs, or a share of the run such as "25%".
        epochs: the length of the run.

    Returns:
        The length in epochs, > 0 and not necessarily whole; None if `length` is not a valid length.
    """
    if isinstance(length, bool):
        return None
    share = isinstance(length, str) and length.endswith("%")
    try:
        value = float(str(length).removesuffix("%")) * (epochs / 100 if share else 1)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def check_learning_rates(optimizer: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
    """Raise ConfigError for learning rates, factors or lengths of a schedule that make no sense."""
    for key, node in (("optimizer", optimizer), ("scheduler", scheduler)):
        for name in ("lr", "base_lr", "max_lr"):
            if name not in node:
                continue
            lr = node[name]
            if isinstance(lr, bool) or not isinstance(lr, int | float):
                raise ConfigError(f"{key}.{name}", f"must be a number, got {lr!r}")
            require(is_positive(lr), f"{key}.{name}", f"must be a finite number > 0, got {lr}")
    gamma = scheduler.get("gamma")
    if isinstance(gamma, int | float):
        require(is_positive(gamma), "scheduler.gamma", f"must be a finite number > 0, got {gamma}")
    min_lr = scheduler.get("min_lr")
    if isinstance(min_lr, int | float):
        require(0 <= min_lr < math.inf, "scheduler.min_lr", f"must be a finite number >= 0, got {min_lr}")
        lr = optimizer.get("lr", math.inf)
        require(min_lr < lr, "scheduler.min_lr", f"is {min_lr:g}, not below optimizer.lr = {lr:g}; lower it")
    for name, length in scheduler.items():
        if name.endswith("_epochs") and scheduler["_target_"].startswith("sweep.schedules."):
            message = f"must be a number of epochs > 0, or a share of the run such as 25%, got {length!r}"
            require(in_epochs(length, 1) is not None, f"scheduler.{name}", message)
    for name in ("div_factor", "final_div_factor"):
        factor = scheduler.get(name)
        if isinstance(factor, int | float):
            require(is_positive(factor), f"scheduler.{name}", f"must be a finite number > 0, got {factor}")
    base_lr, max_lr = scheduler.get("base_lr"), scheduler.get("max_lr")
    if base_lr is not None and max_lr is not None and base_lr >= max_lr:
        raise ConfigError(
            "scheduler.base_lr",
            f"is {base_lr:g}, not below scheduler.max_lr = {max_lr:g}; lower it, or raise scheduler.max_lr",
        )
