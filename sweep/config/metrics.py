"""Directions of metrics, and which metrics are curves."""

import math
from collections.abc import Iterable

KINDS = ("regression", "classification", "multilabel", "segmentation", "language_model")  # of data; each is a task too
DIRECTIONS = ("minimize", "maximize")


def is_curve(metric: str) -> bool:
    """Return whether a metric is recorded after each epoch."""
    return metric.startswith("val/") or metric == "train/loss"


def sign_of(direction: str) -> float:
    """Return 1.0 to minimize and -1.0 to maximize. Values multiplied by it are better the lower they are.

    `direction` may be in capitals, as Optuna's names are.
    """
    return -1.0 if direction.lower() == "maximize" else 1.0


def best_of(values: Iterable[float], direction: str) -> float:
    """Return the best of the values; without any, the infinity that is worse than every value."""
    sign = sign_of(direction)
    return sign * min((sign * value for value in values), default=math.inf)
