"""What a study tried, for those who are not to know Optuna."""

from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from sweep.execution.queue import PROBLEM
from sweep.study.results import STATES, config_values


class TrialResult(NamedTuple):
    """A finished trial. params: by config key. value: the objective, where it has one; of a trial that was pruned, what
    it had reached. state: complete, pruned or failed. problem: why it failed or diverged. values: of all objectives."""

    number: int
    params: dict[str, Any]
    value: float | None
    state: str
    diverged: bool
    problem: str | None
    values: tuple[float, ...] = ()


class Range(NamedTuple):
    """A searched range of numbers, in order. choices: where only some of them are tried."""

    low: float
    high: float
    log: bool
    choices: tuple[float, ...] | None


def tried(trial: FrozenTrial) -> TrialResult:
    problem = trial.user_attrs.get(PROBLEM)
    diverged = trial.state == TrialState.PRUNED and problem is not None  # what the pruner ends has no problem
    values = () if trial.state == TrialState.FAIL else tuple(trial.values or ())
    value = values[0] if len(values) == 1 else None
    return TrialResult(trial.number, config_values(trial), value, STATES[trial.state], diverged, problem, values)


def range_of(distribution: BaseDistribution) -> Range | None:
    """None for a choice among what are no numbers."""
    if isinstance(distribution, CategoricalDistribution):
        choices = distribution.choices
        if not all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices):
            return None
        ordered = sorted(float(choice) for choice in choices if isinstance(choice, int | float))
        return Range(ordered[0], ordered[-1], False, tuple(ordered))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return Range(distribution.low, distribution.high, distribution.log, None)
