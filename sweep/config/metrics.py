"""Directions of metrics, and which metrics are curves."""

import math
from collections.abc import Iterable
from typing import Any

from sweep.utils.errors import ConfigError

KINDS = ("regression", "classification", "multilabel", "segmentation", "language_model")  # of data; each is a task too
DIRECTIONS = ("minimize", "maximize")
OF_NOISE = ("test/noise_ratio", "test/excess")  # of data whose noise is known
OF_ANY_TASK = ("train/loss", "time/train_s", "model/n_weights")  # metrics of trials whatever their task
MOST_OUTPUTS = 2**25  # numbers that a model returns for a split, 128 MiB in float32; of more, not all are kept at once
_OWN = ("step", "best", "time", "model")  # what comes before the slash in names that only sweep itself records
RETURNED = "objective"  # what the task function of another application returns; with several, objective/0 and so on
REPORTED = "objective/reported"  # the curve by which trials are pruned if that is the objective
_ONCE = ("test", "time", "model")  # what comes before the slash in the name of a metric of a whole run


def is_curve(metric: str) -> bool:
    """Return whether a metric is recorded after each epoch. The others are recorded once, at the end of a run."""
    return metric.partition("/")[0] not in _ONCE


def returned_names(n: int) -> list[str]:
    """Return the names of `n` values that a task function returns."""
    return [RETURNED] if n == 1 else [f"{RETURNED}/{i}" for i in range(n)]


def is_own(metric: str) -> bool:
    """Return whether only sweep itself records metrics with such a name."""
    return metric.partition("/")[0] in _OWN


def checked_goal(key: str, goal: Any, remedy: str) -> str:
    """Return the goal of a metric.

    Args:
        key: the config key of the goal, for an error.
        goal: what is declared; None if nothing is.
        remedy: what the user can add or write, for an error.

    Raises:
        ConfigError: the goal is neither minimize nor maximize.
    """
    if goal not in DIRECTIONS:
        problem = "is not known; add" if goal is None else f"is '{goal}'; write"
        raise ConfigError(key, f"{problem} {remedy}")
    return goal


def sign_of(direction: str) -> float:
    """Return 1.0 to minimize and -1.0 to maximize. Values multiplied by it are better the lower they are.

    `direction` may be in capitals, as Optuna's names are.
    """
    return -1.0 if direction.lower() == "maximize" else 1.0


def best_of(values: Iterable[float], direction: str) -> float:
    """Return the best of the values; without any, the infinity that is worse than every value."""
    sign = sign_of(direction)
    return sign * min((sign * value for value in values), default=math.inf)
