"""What the runs of a comparison say: numbers of each contender, tests of each pair, a verdict."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sweep.comparison import statistics
from sweep.comparison.runs import Entry, Run, costs
from sweep.comparison.statistics import Interval, Pair
from sweep.config.metrics import sign_of
from sweep.study.trial_result import Range, TrialResult
from sweep.utils.seeds import derive_seed

Array = NDArray[np.float64]
_CLOSE = 0.1  # of the best value: as good, to the eye
_EDGE = 0.1  # of a range: its outer part
_CHANCE = 0.05
_SEED = 20240917  # of all resampling: the same runs, the same report
N_FACTORS = 60  # points of a performance profile


class Score(NamedTuple):
    """costs: (n_seeds,), less is better, infinite for a missing run. Of those: median, iqm and its 95 % interval."""

    costs: Array
    median: float
    iqm: float
    interval: Interval
    n_missing: int


class Reached(NamedTuple):
    """share: of runs that reached the target. steps, seconds: until then, the median over all runs, infinite where half
    or more of them missed it."""

    share: float
    steps: float
    seconds: float


class Budget(NamedTuple):
    """Lowest tuning value to be expected after k trials: k, values, low, high are (m,). interval: whether low and high
    mean anything, which they do for independent trials."""

    k: NDArray[np.int_]
    values: Array
    low: Array
    high: Array
    interval: bool


@dataclass
class ContenderResult:
    """What is known of an entry that takes part. rates: by learning rate, from where to where trials came within 10 %
    of the best. diverged: share of tuning trials. edges: alarms, in words."""

    entry: Entry
    score: Score
    untuned: Score | None
    reached: Reached
    budget: Budget
    rates: dict[str, tuple[float, float]]
    diverged: float
    edges: list[str]

    @property
    def name(self) -> str:
        return self.entry.name


class PairwiseTest(NamedTuple):
    """adjusted: p after Holm, over all pairs on all tasks. better: 0 or 1 for the detectably better, else None."""

    first: ContenderResult
    second: ContenderResult
    pair: Pair
    adjusted: float
    better: int | None


class TaskResult(NamedTuple):
    task: str
    target: float
    standings: list[ContenderResult]
    tests: list[PairwiseTest]
    failed: list[Entry]

    @property
    def winner(self) -> str | None:
        """The contender that is detectably better than every other; None where there is none."""
        wins = [(test.first, test.second)[test.better].name for test in self.tests if test.better is not None]
        return next((s.name for s in self.standings if wins.count(s.name) == len(self.standings) - 1 > 0), None)


@dataclass
class Judgement:
    """tasks: in the order of the command line. profiles: (contenders, N_FACTORS) by contender, with three tasks or
    more. sign: 1 where the metric gets better downwards, -1 otherwise: costs times sign are the metric."""

    tasks: list[TaskResult]
    factors: Array
    profiles: dict[str, Array]
    sign: float
    smallest: float


def judge(
    entries: Sequence[Entry],
    metric: str,
    direction: str,
    tuned_for: str,
    learns: bool,
    level: float,
    target: float | None,
    n_trials: int,
) -> Judgement:
    """direction: in which `metric` gets better; tuned_for: that of the tuning objective. learns: whether the sampler
    does, so that tuning trials are not independent. level: of the tests. n_trials: of each tuning."""
    tasks = []
    for task in dict.fromkeys(entry.task for entry in entries):
        here = [entry for entry in entries if entry.task == task]
        able = [entry for entry in here if entry.problem is None]
        loss = _target(able) if target is None else target
        worst = _worst(able, tuned_for)
        standings = [
            ContenderResult(
                entry,
                _score(entry.runs, metric, direction, _generator("score", task, entry.name)),
                _score(entry.untuned, metric, direction, _generator("untuned", task, entry.name))
                if any(entry.untuned)
                else None,
                _reached(entry.runs, loss),
                _budget(entry, tuned_for, worst, learns, n_trials, _generator("budget", task, entry.name)),
                _rates(entry, tuned_for),
                sum(t.diverged for t in entry.trials) / len(entry.trials),
                _edges(entry),
            )
            for entry in able
        ]
        tasks.append(TaskResult(task, loss, standings, [], [entry for entry in here if entry.problem is not None]))
    _test(tasks, level)
    n_tests = max(1, sum(len(task.tests) for task in tasks))
    factors, profiles = _profiles(tasks) if len(tasks) >= 3 else (np.empty(0), {})
    n_seeds = max((len(entry.runs) for entry in entries), default=2)
    return Judgement(tasks, factors, profiles, sign_of(direction), statistics.smallest_p(n_seeds, n_tests))


def _score(runs: Sequence[Run | None], metric: str, direction: str, rng: np.random.Generator) -> Score:
    values = costs(runs, metric, direction)
    interval = statistics.interval(values, rng)
    n_missing = int(np.isinf(values).sum())
    return Score(values, float(statistics.median(values)), float(statistics.iqm(values)), interval, n_missing)


def _target(entries: Sequence[Entry]) -> float:
    """The validation loss that every contender reaches in more than half of its runs."""
    lowest = [[math.inf if run is None else float(run.val_loss.min()) for run in entry.runs] for entry in entries]
    medians = [sorted(losses)[len(losses) // 2] for losses in lowest]
    return max((float(m) for m in medians if math.isfinite(m)), default=math.inf)


def _reached(runs: Sequence[Run | None], loss: float) -> Reached:
    epochs = np.array([math.inf if run is None else run.reaches(loss) for run in runs])
    steps = [math.inf if run is None else run.epoch_steps * e for run, e in zip(runs, epochs, strict=True)]
    shares = [0.0 if run is None else run.train_s / len(run.val_loss) for run in runs]  # seconds an epoch
    seconds = [share * e if math.isfinite(e) else math.inf for share, e in zip(shares, epochs, strict=True)]
    share = float(np.isfinite(epochs).mean())
    return Reached(share, float(statistics.median(steps)), float(statistics.median(seconds)))


def _tuning_costs(trials: Sequence[TrialResult], direction: str, worst: float) -> Array:
    """What diverged or failed counts as the worst that any contender came to on the task, lest a mean be infinite."""
    return np.array([worst if t.value is None or t.diverged else sign_of(direction) * t.value for t in trials])


def _worst(entries: Sequence[Entry], direction: str) -> float:
    all_costs = [_tuning_costs(entry.trials, direction, -math.inf) for entry in entries]
    return max((float(c.max()) for c in all_costs), default=0.0)


def _budget(
    entry: Entry, direction: str, worst: float, learns: bool, n_trials: int, rng: np.random.Generator
) -> Budget:
    values = _tuning_costs(entry.trials, direction, worst)
    k = np.arange(1, min(n_trials, len(values)) + 1)
    if not math.isfinite(worst):  # nobody came to a number
        none = np.full(len(k), np.nan)
        return Budget(k, none, none, none, interval=False)
    if learns:
        best = np.minimum.accumulate(values)[: len(k)]
        return Budget(k, best, best, best, interval=False)
    low, high = statistics.best_of_interval(values, k, rng)
    return Budget(k, statistics.best_of(values, k), low, high, interval=True)


def _rates(entry: Entry, direction: str) -> dict[str, tuple[float, float]]:
    values = _tuning_costs(entry.trials, direction, math.inf)
    best = values.min()
    if not math.isfinite(best):
        return {}
    close = [t.params for t, value in zip(entry.trials, values, strict=True) if value - best <= _CLOSE * abs(best)]
    keys = [key for key in entry.ranges if key.rpartition(".")[2] in ("lr", "base_lr", "max_lr")]
    found = {key: [float(params[key]) for params in close if key in params] for key in keys}
    return {key: (min(rates), max(rates)) for key, rates in found.items() if rates}


def _edges(entry: Entry) -> list[str]:
    """Where half of the tunings or more, and more than chance would have, chose a value at the same end of its range.

    The end of a list of numbers is its last one.
    """
    chosen = [t.params for t in entry.chosen[: entry.n_tunings] if t is not None]
    alarms = []
    for key, found in entry.ranges.items():
        places = [_place(found, float(params[key])) for params in chosen if key in params]
        if not places or (found.choices is not None and (len(found.choices) < 3 or len(places) < 2)):
            continue
        share = _EDGE if found.choices is None else 1 / len(found.choices)
        for end, at_end in (("lower", [p < _EDGE for p in places]), ("upper", [p > 1 - _EDGE for p in places])):
            by_chance = len(places) > 1 and statistics.chance_of(sum(at_end), len(places), share) > _CHANCE
            if 2 * sum(at_end) >= len(places) and not by_chance:
                n = f"{sum(at_end)} of {len(places)} tunings" if len(places) > 1 else "the tuning"
                alarms.append(f"{n} of {entry.name} chose {key} at the {end} end of {entry.searched[key]}; widen it")
    return alarms


def _place(found: Range, value: float) -> float:
    """From 0 at the lower end to 1 at the upper."""
    if found.low == found.high:
        return 0.5
    if found.choices is not None:
        return found.choices.index(value) / (len(found.choices) - 1)
    low, high = (math.log(found.low), math.log(found.high)) if found.log else (found.low, found.high)
    return ((math.log(value) if found.log else value) - low) / (high - low)


def _test(tasks: Sequence[TaskResult], level: float) -> None:
    """Fills in the duels of each task: every pair, adjusted together."""
    pairs = [(task, *two) for task in tasks for two in itertools.combinations(task.standings, 2)]
    found = [_compared(task.task, one, other) for task, one, other in pairs]
    adjusted = statistics.holm([pair.p for pair in found])
    for (task, one, other), pair, p in zip(pairs, found, adjusted, strict=True):
        better = None if p >= level or pair.effect == 0 else 0 if pair.effect > 0 else 1
        task.tests.append(PairwiseTest(one, other, pair, p, better))


def _compared(task: str, one: ContenderResult, other: ContenderResult) -> Pair:
    """The pair as it would be judged in the order of the names, whichever comes first on the command line."""
    first, second = sorted((one, other), key=lambda s: s.name)
    pair = statistics.compare(first.score.costs, second.score.costs, _generator("pair", task, first.name, second.name))
    if first is one:
        return pair
    low, high = pair.interval
    return Pair(pair.p, 0.0 - pair.effect, 1 - pair.improvement, Interval(1 - high, 1 - low))


def _generator(*names: str) -> np.random.Generator:
    """A generator of its own for each use, so that the order of contenders changes no number."""
    return np.random.default_rng(derive_seed(_SEED, "\n".join(names)))


def _profiles(tasks: Sequence[TaskResult]) -> tuple[Array, dict[str, Array]]:
    """Each contender's share of runs, over all tasks, within a factor of the best contender's median on the task.

    Of metrics that are better upwards the factor is the median over the run. A contender that failed on a task has
    nothing but infinite factors there.
    """
    ratios: dict[str, list[Array]] = {}
    for task in tasks:
        best = min((s.score.median for s in task.standings), default=math.inf)
        for s in task.standings:
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = s.score.costs / best if best > 0 else best / s.score.costs
            ratios.setdefault(s.name, []).append(np.where(np.isfinite(ratio) & (ratio > 0), ratio, math.inf))
        for entry in task.failed:
            ratios.setdefault(entry.name, []).append(np.full(len(entry.runs) or 1, math.inf))
    finite = np.concatenate([np.concatenate(r) for r in ratios.values()])
    most = float(np.quantile(finite[np.isfinite(finite)], 0.95)) if np.isfinite(finite).any() else 2.0
    factors = np.geomspace(0.9, max(most, 1.5), N_FACTORS)
    return factors, {name: np.mean([statistics.profile(r, factors) for r in rs], 0) for name, rs in ratios.items()}
