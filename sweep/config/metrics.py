"""Losses and metrics by name: which ones a task has, and whether lower or higher is better."""

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
    """Return "minimize" or "maximize" for a metric such as val/accuracy."""
    return "maximize" if metric.endswith(_THE_MORE_THE_BETTER) else "minimize"


def sign_of(direction: str) -> float:
    """Return 1.0 to minimize and -1.0 to maximize. Values multiplied by it are better the lower they are.

    `direction` may be in capitals, as Optuna's names are.
    """
    return -1.0 if direction.lower() == "maximize" else 1.0


def best_of(values: Iterable[float], direction: str) -> float:
    """Return the best of the values; without any, the infinity that is worse than every value."""
    sign = sign_of(direction)
    return sign * min((sign * value for value in values), default=math.inf)


def loss_name(loss: str, task: str) -> str:
    """Return the name of the loss to train with.

    Args:
        loss: the config's `trainer.loss`; `auto` chooses the loss of the task.
        task: regression or classification.

    Raises:
        ConfigError: the loss does not fit the task.
    """
    own = _LOSS_OF_TASK[task]
    require(loss in ("auto", own), "trainer.loss", f"{loss} does not fit {task} data; use {own} or auto")
    return own
