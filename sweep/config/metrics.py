"""Losses and metrics by name: which there are for a task, and which way is better."""

import math
from collections.abc import Iterable

from sweep.utils.errors import require

LOSSES = ("auto", "mse", "cross_entropy")
METRICS = {"regression": ("mse", "mae", "r2"), "classification": ("accuracy",)}  # beside the loss, by task
CURVES = ("train/loss", "val/loss", *(f"val/{name}" for names in METRICS.values() for name in names))  # of each epoch
DIRECTIONS = ("minimize", "maximize")
_THE_MORE_THE_BETTER = ("/r2", "/accuracy")
_LOSS_OF_TASK = {"regression": "mse", "classification": "cross_entropy"}


def direction_of(metric: str) -> str:
    """Return "minimize" or "maximize", for a metric such as val/accuracy."""
    return "maximize" if metric.endswith(_THE_MORE_THE_BETTER) else "minimize"


def sign_of(direction: str) -> float:
    """Return 1.0 to minimize, -1.0 to maximize (in capitals or not): values times it are better the lower they are."""
    return -1.0 if direction.lower() == "maximize" else 1.0


def best_of(values: Iterable[float], direction: str) -> float:
    """Return the best of the values; of none, the infinity that any value is better than."""
    sign = sign_of(direction)
    return sign * min((sign * value for value in values), default=math.inf)


def loss_name(loss: str, task: str) -> str:
    """The loss to train with; `auto` takes the task's own. Raises ConfigError when the two do not fit."""
    own = _LOSS_OF_TASK[task]
    require(loss in ("auto", own), "trainer.loss", f"{loss} does not fit {task} data; use {own} or auto")
    return own
