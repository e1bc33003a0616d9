"""sweep/config/metrics.py: which of two values is better."""

import math

import pytest

from sweep.config.metrics import best_of, sign_of
from sweep.config.task_node import AUTO_TASK, direction_of


@pytest.mark.parametrize(
    ("metric", "direction", "best", "worst"),
    [("val/loss", "minimize", -2.0, math.inf), ("val/r2", "maximize", 3.0, -math.inf)],
)
def test_the_best_of_a_metric_is_found_in_its_direction(metric: str, direction: str, best: float, worst: float):
    assert direction_of(metric, AUTO_TASK) == direction
    for name in (direction, direction.upper()):  # the latter as Optuna has it
        assert best_of([1.0, -2.0, 3.0], name) == best
        assert best_of([], name) == worst
        assert sorted([1.0, -2.0, 3.0], key=lambda value: sign_of(name) * value)[0] == best
