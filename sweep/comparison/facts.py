"""The facts of a comparison as plain data: the content of comparison.yaml, from which all tables are made."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from sweep.comparison.verdict import verdict, warnings
from sweep.config.metrics import sign_of

if TYPE_CHECKING:
    from sweep.comparison.judge import Budget, ContenderResult, Judgement, PairwiseTest, Score, TaskResult
    from sweep.comparison.studies import Plan

FACTS = "comparison.yaml"  # the file that holds them

# A number in these facts that is not finite is null in the file. Keys that are not required were added later: the file
# of an older version may lack them.
Number = float | None


class ScoreFacts(TypedDict):
    """The scores of a contender, as values of the metric. `missing` counts runs that diverged or failed."""

    by_seed: list[Number]
    median: Number
    iqm: Number
    iqm_interval: list[Number]
    missing: int


class ReachedFacts(TypedDict):
    """How soon a contender reached the target: the share of runs that did, and the median run's steps and seconds."""

    share: float
    steps: Number
    seconds: Number


class BudgetFacts(TypedDict):
    """The best value of the objective after k tuning trials, with the ends of its interval if `has_interval`."""

    k: list[int]
    values: list[Number]
    low: list[Number]
    high: list[Number]
    has_interval: NotRequired[bool]


class ContenderFacts(TypedDict):
    """The numbers of a contender that takes part in a task. `best` has the overrides of its best tuning trial."""

    scores: ScoreFacts
    untuned: ScoreFacts | None
    reached: ReachedFacts
    budget: BudgetFacts
    rates_within_10_percent: dict[str, list[float]]
    diverged: float
    edges: list[str]
    searched: dict[str, str]
    n_tunings: int
    n_trials: int
    chosen: list[dict[str, Any] | None]
    best: NotRequired[list[str]]
    studies: list[str]


class PairFacts(TypedDict):
    """The test of two contenders. `better` is the name of the one that is detectably better."""

    first: str
    second: str
    adjusted_p: float
    p: float
    effect: float
    improvement: float
    interval: list[float]
    better: str | None


class TaskFacts(TypedDict):
    """The result on a task. `failed` has the problem of each contender that takes no part."""

    task: str | None
    target: Number
    verdict: str
    contenders: dict[str, ContenderFacts]
    failed: dict[str, str | None]
    pairs: list[PairFacts]


class ComparisonFacts(TypedDict):
    """A comparison. `direction` is that of the compared metric, `objective_direction` that of the tuning objective."""

    name: str
    command: str
    compare: dict[str, Any]
    direction: NotRequired[str]
    seeds: list[int]
    trials_per_tuning: int
    epochs: int | None
    objective: str
    objective_direction: NotRequired[str]
    warnings: NotRequired[list[str]]
    tasks: list[TaskFacts]
    profile: dict[str, list[Number]] | None


def facts_of(plan: "Plan", judgement: "Judgement") -> ComparisonFacts:
    """Return the facts of a comparison. Costs become values again: of the metric, and of the objective."""
    compare = dataclasses.asdict(plan.compare)
    if not plan.config.is_application:
        del compare["seed"]  # it is always sweep's own
    profiles = {name: _listed(shares) for name, shares in judgement.profiles.items()}
    return {
        "name": plan.name,
        "command": plan.command,
        "compare": compare,
        "direction": "minimize" if judgement.sign > 0 else "maximize",
        "seeds": plan.seeds,
        "trials_per_tuning": plan.n_trials,
        "epochs": plan.config.trainer.epochs,
        "objective": plan.settings.objective[0],
        "objective_direction": plan.settings.direction[0],
        "warnings": list(warnings(judgement, plan)),
        "tasks": [_task(task, judgement, plan) for task in judgement.tasks],
        "profile": {"factors": _listed(judgement.factors), **profiles} if profiles else None,
    }


def _task(task: "TaskResult", judgement: "Judgement", plan: "Plan") -> TaskFacts:
    objective_sign = sign_of(plan.settings.direction[0])
    return {
        "task": task.task or plan.config.choices.get("data"),
        "target": task.target,
        "verdict": verdict(task, judgement, plan),
        "contenders": {s.name: _contender(s, judgement.sign, objective_sign) for s in task.standings},
        "failed": {entry.name: entry.problem for entry in task.failed},
        "pairs": [_pair(test) for test in task.tests],
    }


def _contender(result: "ContenderResult", sign: float, objective_sign: float) -> ContenderFacts:
    entry, reached = result.entry, result.reached
    return {
        "scores": _score(result.score, sign),
        "untuned": None if result.untuned is None else _score(result.untuned, sign),
        "reached": {"share": reached.share, "steps": reached.steps, "seconds": reached.seconds},
        "budget": _budget(result.budget, objective_sign),
        "rates_within_10_percent": {key: [low, high] for key, (low, high) in result.rates.items()},
        "diverged": result.diverged,
        "edges": result.edges,
        "searched": entry.searched,
        "n_tunings": entry.n_tunings,
        "n_trials": len(entry.trials),
        "chosen": [None if trial is None else trial.params for trial in entry.chosen],
        "best": entry.best,
        "studies": entry.studies,
    }


def _score(score: "Score", sign: float) -> ScoreFacts:
    return {
        "by_seed": _listed(sign * score.costs),
        "median": sign * score.median,
        "iqm": sign * score.iqm,
        "iqm_interval": [*sorted(sign * end for end in score.interval)],
        "missing": score.n_missing,
    }


def _budget(budget: "Budget", sign: float) -> BudgetFacts:
    low, high = (budget.low, budget.high) if sign > 0 else (-budget.high, -budget.low)
    return {
        "k": budget.k.tolist(),
        "values": _listed(sign * budget.values),
        "low": _listed(low),
        "high": _listed(high),
        "has_interval": budget.has_interval,
    }


def _pair(test: "PairwiseTest") -> PairFacts:
    pair, two = test.pair, (test.first.name, test.second.name)
    return {
        "first": two[0],
        "second": two[1],
        "adjusted_p": test.adjusted,
        "p": pair.p,
        "effect": pair.effect,
        "improvement": pair.improvement,
        "interval": [*pair.interval],
        "better": None if test.better is None else two[test.better],
    }


def _listed(values: Any) -> list[Number]:
    """Return an array of numpy as a list of floats."""
    listed: Sequence[float] = values.tolist()
    return [*listed]
