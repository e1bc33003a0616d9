"""Judge the runs of a comparison: compute the numbers of each contender, and test every pair."""

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
_CLOSE = 0.1  # values within this share of the best count as equally good
_EDGE = 0.1  # the share of a range that counts as its end
_CHANCE = 0.05  # choices at an end of a range that are more probable than this are put down to chance
_SEED = 20240917  # of all resampling, so that the same runs give the same report
N_FACTORS = 60  # the number of points of a performance profile


class Score(NamedTuple):
    """The scores of a contender.

    Attributes:
        costs: the cost on each seed, shape (n_seeds,). Less is better; a missing run has an infinite cost.
        median: the median of the costs.
        iqm: their interquartile mean.
        interval: its 95 % interval.
        n_missing: the number of missing runs.
    """

    costs: Array
    median: float
    iqm: float
    interval: Interval
    n_missing: int


class Reached(NamedTuple):
    """How soon a contender reached the target.

    Attributes:
        share: the share of runs that reached it.
        steps: the steps until then, the median over all runs; infinite if half of them or more missed it.
        seconds: the same in seconds of training.
    """

    share: float
    steps: float
    seconds: float


class Budget(NamedTuple):
    """The best tuning cost after k trials.

    Attributes:
        k: the numbers of trials, shape (m,).
        values: the expected lowest cost, shape (m,). If the sampler learns, the lowest of the first k trials.
        low: the lower end of its 95 % interval, shape (m,).
        high: the upper end, shape (m,).
        has_interval: True if `low` and `high` are an interval, which needs independent trials.
    """

    k: NDArray[np.int_]
    values: Array
    low: Array
    high: Array
    has_interval: bool


@dataclass
class ContenderResult:
    """The numbers of a contender that takes part in a task.

    Attributes:
        entry: the contender on the task.
        score: the scores of its runs.
        untuned: the scores of its untuned defaults; None without any.
        reached: how soon it reached the target.
        budget: the best tuning cost by number of trials.
        rates: by learning rate, the lowest and the highest value of the trials within 10 % of the best.
        diverged: the share of tuning trials that diverged.
        edges: warnings about choices at the end of a range.
    """

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
        """The contender's name."""
        return self.entry.name


class PairwiseTest(NamedTuple):
    """The test of two contenders on a task.

    Attributes:
        first: one of them.
        second: the other.
        pair: the first against the second.
        adjusted: p after Holm's adjustment over all pairs on all tasks.
        better: 0 if the first is detectably better, 1 if the second is; otherwise None.
    """

    first: ContenderResult
    second: ContenderResult
    pair: Pair
    adjusted: float
    better: int | None


class TaskResult(NamedTuple):
    """The result on a task.

    Attributes:
        task: the task; empty if there is only one.
        target: the validation loss whose reaching is timed; infinite if there is none.
        standings: the contenders that take part.
        tests: the test of every pair of them.
        failed: the contenders that take no part.
    """

    task: str
    target: float
    standings: list[ContenderResult]
    tests: list[PairwiseTest]
    failed: list[Entry]

    @property
    def winner(self) -> str | None:
        """The contender that is detectably better than every other; None if there is none."""
        wins = [(test.first, test.second)[test.better].name for test in self.tests if test.better is not None]
        return next((s.name for s in self.standings if wins.count(s.name) == len(self.standings) - 1 > 0), None)


@dataclass
class Judgement:
    """The result of a comparison.

    Attributes:
        tasks: the results on each task, in the order of the command line.
        factors: the factors of the performance profiles, shape (N_FACTORS,); empty with fewer than three tasks.
        profiles: the performance profile of each contender, shape (N_FACTORS,); empty with fewer than three tasks.
        sign: 1 if a lower metric is better, otherwise -1. A cost times `sign` is a value of the metric.
        smallest: the smallest adjusted p that this number of seeds and tests can give.
    """

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
    """Judge the entries of a comparison. The order of the entries does not change any number.

    Args:
        entries: every contender on every task.
        metric: the compared metric.
        direction: minimize or maximize, for the metric.
        tuned_for: minimize or maximize, for the tuning objective.
        learns: True if the sampler learns from earlier trials, so that tuning trials are not independent.
        level: the significance level of the tests.
        target: the validation loss whose reaching is timed; None takes one that every contender reaches.
        n_trials: the number of trials of each tuning.
    """
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
    """Return the lowest validation loss that every contender reaches in more than half of its runs.

    Contenders that reach no finite loss in half of their runs are left out; infinity if that leaves none.
    """
    lowest = [[math.inf if run is None else run.lowest for run in entry.runs] for entry in entries]
    medians = [sorted(losses)[len(losses) // 2] for losses in lowest]
    return max((float(m) for m in medians if math.isfinite(m)), default=math.inf)


def _reached(runs: Sequence[Run | None], loss: float) -> Reached:
    epochs = np.array([math.inf if run is None else run.reaches(loss) for run in runs])
    steps = [math.inf if run is None else run.epoch_steps * e for run, e in zip(runs, epochs, strict=True)]
    shares = [0.0 if run is None else run.train_s / max(1, len(run.val_loss)) for run in runs]  # seconds an epoch
    seconds = [share * e if math.isfinite(e) else math.inf for share, e in zip(shares, epochs, strict=True)]
    share = float(np.isfinite(epochs).mean())
    return Reached(share, float(statistics.median(steps)), float(statistics.median(seconds)))


def _tuning_costs(trials: Sequence[TrialResult], direction: str, worst: float) -> Array:
    """Return the cost of each trial. Trials that diverged or failed get the cost `worst`, which keeps means finite."""
    return np.array([worst if t.value is None or t.diverged else sign_of(direction) * t.value for t in trials])


def _worst(entries: Sequence[Entry], direction: str) -> float:
    """Return the highest finite tuning cost of any contender on the task."""
    all_costs = [_tuning_costs(entry.trials, direction, -math.inf) for entry in entries]
    return max((float(c.max()) for c in all_costs), default=0.0)


def _budget(
    entry: Entry, direction: str, worst: float, learns: bool, n_trials: int, rng: np.random.Generator
) -> Budget:
    values = _tuning_costs(entry.trials, direction, worst)
    k = np.arange(1, min(n_trials, len(values)) + 1)
    if not math.isfinite(worst):  # no trial of any contender has a value
        none = np.full(len(k), np.nan)
        return Budget(k, none, none, none, has_interval=False)
    if learns:
        best = np.minimum.accumulate(values)[: len(k)]
        return Budget(k, best, best, best, has_interval=False)
    low, high = statistics.best_of_interval(values, k, rng)
    return Budget(k, statistics.best_of(values, k), low, high, has_interval=True)


def _rates(entry: Entry, direction: str) -> dict[str, tuple[float, float]]:
    """Return, for each searched learning rate, the span of the trials whose cost is within 10 % of the best."""
    values = _tuning_costs(entry.trials, direction, math.inf)
    best = values.min()
    if not math.isfinite(best):
        return {}
    close = [t.params for t, value in zip(entry.trials, values, strict=True) if value - best <= _CLOSE * abs(best)]
    keys = [key for key in entry.ranges if key.rpartition(".")[2] in ("lr", "base_lr", "max_lr")]
    found = {key: [float(params[key]) for params in close if key in params] for key in keys}
    return {key: (min(rates), max(rates)) for key, rates in found.items() if rates}


def _edges(entry: Entry) -> list[str]:
    """Return a warning for each range if too many tunings chose a value at the same end of it.

    Too many are half of the tunings or more, unless independent uniform choices would give as many with a probability
    above 5 %. A single tuning is not tested for chance. The end of a continuous range is its outer 10 %, that of a list
    of numbers is its last one.
    """
    chosen = [t.params for t in entry.chosen[: entry.n_tunings] if t is not None]
    alarms = []
    for key, found in entry.ranges.items():
        places = [_place(found, float(params[key])) for params in chosen if key in params]
        if not places or (found.choices is not None and (len(found.choices) < 3 or len(places) < 2)):
            continue
        share = _EDGE if found.choices is None else 1 / len(found.choices)
        # For a list, the margin is less than one step of the list, so only the last choice counts as its end.
        margin = _EDGE if found.choices is None else share / 2
        for end, at_end in (("lower", [p < margin for p in places]), ("upper", [p > 1 - margin for p in places])):
            by_chance = len(places) > 1 and statistics.chance_of(sum(at_end), len(places), share) > _CHANCE
            if 2 * sum(at_end) >= len(places) and not by_chance:
                n = f"{sum(at_end)} of {len(places)} tunings" if len(places) > 1 else "the tuning"
                alarms.append(f"{n} of {entry.name} chose {key} at the {end} end of {entry.searched[key]}; widen it")
    return alarms


def _place(found: Range, value: float) -> float:
    """Return the place of a value in its range, from 0 at the lower end to 1 at the upper, on the range's scale."""
    if found.low == found.high:
        return 0.5
    if found.choices is not None:
        return found.choices.index(value) / (len(found.choices) - 1)
    low, high = (math.log(found.low), math.log(found.high)) if found.log else (found.low, found.high)
    return ((math.log(value) if found.log else value) - low) / (high - low)


def _test(tasks: Sequence[TaskResult], level: float) -> None:
    """Add the tests of every pair to each task. All p values are adjusted together."""
    pairs = [(task, *two) for task in tasks for two in itertools.combinations(task.standings, 2)]
    found = [_compared(task.task, one, other) for task, one, other in pairs]
    adjusted = statistics.holm([pair.p for pair in found])
    for (task, one, other), pair, p in zip(pairs, found, adjusted, strict=True):
        better = None if p >= level or pair.effect == 0 else 0 if pair.effect > 0 else 1
        task.tests.append(PairwiseTest(one, other, pair, p, better))


def _compared(task: str, one: ContenderResult, other: ContenderResult) -> Pair:
    """Compare two contenders in the order of their names, so that the order on the command line changes no number."""
    first, second = sorted((one, other), key=lambda s: s.name)
    pair = statistics.compare(first.score.costs, second.score.costs, _generator("pair", task, first.name, second.name))
    if first is one:
        return pair
    low, high = pair.interval
    return Pair(pair.p, 0.0 - pair.effect, 1 - pair.improvement, Interval(1 - high, 1 - low))


def _generator(*names: str) -> np.random.Generator:
    """Return a generator seeded by the names of its use, so that the order of contenders changes no number."""
    return np.random.default_rng(derive_seed(_SEED, "\n".join(names)))


def _profiles(tasks: Sequence[TaskResult]) -> tuple[Array, dict[str, Array]]:
    """Return the factors, and the performance profile of each contender.

    The ratio of a run is its cost divided by the best contender's median cost on the task. If that median is not
    positive, for example because a higher metric is better and costs are negative, the ratio is the median divided by
    the cost. So a ratio below 1 is better than the best median in both cases. A missing run has an infinite ratio, and
    so has every run of a contender that failed on the task. The profile is the share of runs whose ratio is at most a
    factor, averaged over the tasks.
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
