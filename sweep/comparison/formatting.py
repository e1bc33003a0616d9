"""Write a judgement as text: verdicts, warnings and tables."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sweep.comparison.judge import Budget, ContenderResult, Judgement, PairwiseTest, Score, TaskResult
from sweep.comparison.studies import Plan
from sweep.config.metrics import sign_of
from sweep.utils.wording import short

_COLUMNS_OF_BUDGET = 6


SCORE_COLUMNS = [
    *("task", "contender", "median", "iqm", "iqm_low", "iqm_high"),
    *("untuned_median", "untuned_iqm", "n_missing", "problem"),
]


class Table(NamedTuple):
    """A table of texts."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def verdict(task: TaskResult, judgement: Judgement, plan: Plan) -> str:
    """Return the verdict on a task, in one paragraph. The leaders are the contenders that nobody detectably beats."""
    level = plan.compare.level
    where = f"On {task.task}: " if task.task else ""
    if len(task.standings) < 2:
        alone = f"; {task.standings[0].name} is alone" if task.standings else ""
        return f"{where}nothing to compare{alone}."
    found = [test for test in task.tests if test.better is not None]
    if not found:
        least = min(test.adjusted for test in task.tests)
        return f"{where}no detectable difference (smallest adjusted p = {_p(least)}, level {level:g})."
    beaten_by: dict[str, list[PairwiseTest]] = {}
    for test in found:
        loser = (test.first, test.second)[1 - (test.better or 0)]
        beaten_by.setdefault(loser.name, []).append(test)
    leaders = [s.name for s in sorted(task.standings, key=lambda s: s.score.median) if s.name not in beaten_by]
    wins = [_win(test, judgement.sign) for test in found]
    among = f" Between {_listed(leaders)}: no detectable difference." if len(leaders) > 1 else ""
    rest = [d for d in task.tests if d.better is None and not {d.first.name, d.second.name} <= set(leaders)]
    open_ = f" Undecided: {'; '.join(f'{d.first.name} and {d.second.name}' for d in rest)}." if rest else ""
    head = f"{_listed(leaders)} {'is' if len(leaders) == 1 else 'are'} not beaten." if leaders else "each is beaten."
    return f"{where}{head} {'; '.join(wins)}.{among}{open_}"


def _win(test: PairwiseTest, sign: float) -> str:
    two = (test.first, test.second)
    better, worse = two[test.better or 0], two[1 - (test.better or 0)]
    p, chance = test.pair.effect, test.pair.improvement
    chance = chance if p > 0 else 1 - chance
    values = f"{_number(sign * better.score.median)} against {_number(sign * worse.score.median)}"
    return f"{better.name} is better than {worse.name} ({values}; p = {_p(test.adjusted)}, in {chance:.0%} of pairs)"


def warnings(judgement: Judgement, plan: Plan) -> Iterator[str]:
    """Yield what a reader should know before believing the verdict, one line each."""
    if judgement.smallest >= plan.compare.level and any(task.tests for task in judgement.tasks):
        yield (
            f"{plan.compare.n_seeds} seeds cannot show any difference: p after Holm is {judgement.smallest:.2g} at "
            "least; raise compare.n_seeds"
        )
    entries = [s for task in judgement.tasks for s in task.standings]
    if any(s.entry.n_tunings == 1 and len(s.entry.trials) > 1 for s in entries):
        yield "a contender was tuned once: the verdict is about the chosen configurations; tuned anew it may differ"
    for task in judgement.tasks:
        on = f" on {task.task}" if task.task else ""
        for entry in task.failed:
            yield f"{entry.name}{on} is left out: {entry.problem}"
        for s in task.standings:
            yield from (f"{alarm}{f' ({task.task})' if task.task else ''}" for alarm in s.edges)
            if s.score.n_missing:
                n = f"{s.score.n_missing} of {len(s.score.costs)}"
                yield f"{n} runs of {s.name}{on} diverged or failed, and count as worst"
            if s.entry.untuned_problem:
                yield f"the defaults of {s.name}{on} cannot be trained: {s.entry.untuned_problem}"


def tables(task: TaskResult, judgement: Judgement, plan: Plan) -> list[Table]:
    """Return the tables of a task. The terminal shows the first three: scores, pairs and targets."""
    on = f" on {task.task}" if task.task else ""
    if not task.standings:
        return []
    return [
        _scores(task, judgement, plan, on),
        _pairs(task, on),
        _targets(task, on),
        *_tuning(task, plan, on),
    ]


def score_rows(judgement: Judgement) -> Iterator[list[Any]]:
    """Yield a row of SCORE_COLUMNS for each contender on each task, also for those that take no part."""
    sign = judgement.sign
    for task in judgement.tasks:
        for s in task.standings:
            low, high = sorted(sign * end for end in s.score.interval)
            untuned = [None, None] if s.untuned is None else [sign * s.untuned.median, sign * s.untuned.iqm]
            scores = [sign * s.score.median, sign * s.score.iqm, low, high, *untuned, s.score.n_missing]
            yield [task.task, s.name, *scores, None]
        for entry in task.failed:
            yield [task.task, entry.name, *[None] * (len(SCORE_COLUMNS) - 3), entry.problem]


def _scores(task: TaskResult, judgement: Judgement, plan: Plan, on: str) -> Table:
    sign = judgement.sign
    better = "lower" if sign > 0 else "higher"
    title = f"{plan.compare.metric}{on}, {plan.compare.n_seeds} seeds ({better} is better)"
    columns = ["contender", "median", "IQM", "95 % interval of the IQM", "untuned: median", "IQM"]
    rows = []
    for s in sorted(task.standings, key=lambda s: s.score.median):
        untuned = [""] * 2 if s.untuned is None else [_number(sign * s.untuned.median), _number(sign * s.untuned.iqm)]
        rows.append([s.name, *_score_cells(s.score, sign), *untuned])
    return Table(title, columns, rows)


def _score_cells(score: Score, sign: float) -> list[str]:
    low, high = sorted(sign * end for end in score.interval)
    return [_number(sign * score.median), _number(sign * score.iqm), f"{_number(low)} to {_number(high)}"]


def _pairs(task: TaskResult, on: str) -> Table:
    columns = ["pair", "first better in", "95 % interval", "effect", "p", "p, Holm", "verdict"]
    rows = []
    for test in task.tests:
        one, other, pair = test.first.name, test.second.name, test.pair
        low, high = pair.interval
        verdict = "no detectable difference" if test.better is None else f"{(one, other)[test.better]} is better"
        ends = f"{low:.0%} to {high:.0%}"
        numbers = [f"{pair.improvement:.0%}", ends, f"{pair.effect:+.2f}", _p(pair.p), _p(test.adjusted)]
        rows.append([f"{one} against {other}", *numbers, verdict])
    return Table(f"pairs{on}", columns, rows)


def _targets(task: TaskResult, on: str) -> Table:
    columns = ["contender", "reached by", "steps, median", "seconds, median"]
    rows = []
    for s in task.standings:
        n = len(s.score.costs)
        missed = "missed by half"
        steps = f"{s.reached.steps:.0f}" if math.isfinite(s.reached.steps) else missed
        seconds = f"{s.reached.seconds:.2g}" if math.isfinite(s.reached.seconds) else missed
        rows.append([s.name, f"{round(s.reached.share * n)} of {n}", steps, seconds])
    target = f"val/loss of {_number(task.target)}" if math.isfinite(task.target) else "no val/loss that all reach"
    return Table(f"{target}{on}", columns, rows)


def _tuning(task: TaskResult, plan: Plan, on: str) -> list[Table]:
    sign = sign_of(plan.settings.direction[0])
    ks = _some(max((len(s.budget.k) for s in task.standings), default=1))
    budget = Table(
        f"expected best {plan.settings.objective[0]}{on}, by number of trials",
        ["contender", *map(str, ks)],
        [[s.name, *(_expected(s.budget, k, sign) for k in ks)] for s in task.standings],
    )
    ranges = Table(
        f"tuning{on}: {plan.n_trials} trials a tuning",
        [
            "contender",
            "tunings",
            "trials",
            "diverged",
            "searched",
            "rates within 10 % of the best",
            "best configuration",
        ],
        [_searched(s, sign) for s in task.standings],
    )
    return [budget, ranges]


def _searched(s: ContenderResult, sign: float) -> list[str]:
    e = s.entry
    searched = "; ".join(f"{key}: {words}" for key, words in e.searched.items()) or "nothing"
    rates = "; ".join(f"{k}: {short(low)} to {short(high)} ({high / low:.3g}x)" for k, (low, high) in s.rates.items())
    complete = [t for t in e.trials if t.state == "complete" and t.value is not None]
    best = min(complete, key=lambda t: sign * (t.value or 0.0))
    values = "  ".join(f"{key}={short(value)}" for key, value in best.params.items())
    return [e.name, str(e.n_tunings), str(len(e.trials)), f"{s.diverged:.0%}", searched, rates, values]


def _expected(budget: Budget, k: int, sign: float) -> str:
    if k > len(budget.k):
        return ""
    low, high = sorted((sign * budget.low[k - 1], sign * budget.high[k - 1]))
    value = _number(sign * budget.values[k - 1])
    return f"{value} ({_number(low)} to {_number(high)})" if budget.interval else value


def _some(n: int) -> list[int]:
    """Return numbers of trials up to n, each about twice the one before."""
    ks = [2**i for i in range(n.bit_length()) if 2**i < n]
    return [*ks[-_COLUMNS_OF_BUDGET:], n]


def aligned(table: Table) -> str:
    """Return the table as aligned text for a terminal, with numbers to the right."""
    rows = [table.columns, *table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    lines = [
        "  ".join(_cell(cell, width, i) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join([table.title, *(f"  {line}".rstrip() for line in lines)])


def _cell(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 or cell.endswith(("difference", "better", "verdict")) else cell.rjust(width)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _number(value: float) -> str:
    return f"{value + 0.0:.4g}" if math.isfinite(value) else "none"  # -0 becomes 0


def _p(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"
