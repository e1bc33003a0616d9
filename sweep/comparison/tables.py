"""The tables of a comparison, from its facts: for the terminal, the report's text, its page and `.table()`."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sweep.comparison.facts import BudgetFacts, ComparisonFacts, ContenderFacts, PairFacts, ScoreFacts, TaskFacts
from sweep.comparison.verdict import number_text, p_text
from sweep.config.metrics import sign_of
from sweep.config.overrides import key_of
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


class TaskTables(NamedTuple):
    """The tables of a task.

    Attributes:
        scores: the scores of each contender, the best first.
        pairs: the test of every two contenders.
        targets: how soon each contender reached the target.
        budget: the expected best of tuning, by number of trials.
        tuning: what was searched, and the best configuration.
    """

    scores: Table
    pairs: Table
    targets: Table
    budget: Table
    tuning: Table


def _place(task: TaskFacts, facts: ComparisonFacts) -> str:
    """Return the name of the task if there are several; otherwise an empty text."""
    return str(task["task"]) if len(facts["tasks"]) > 1 else ""


def on_task(task: TaskFacts, facts: ComparisonFacts) -> str:
    """Return " on" and the name of the task if there are several, to be added to a title; otherwise an empty text."""
    place = _place(task, facts)
    return f" on {place}" if place else ""


def tables(task: TaskFacts, facts: ComparisonFacts) -> TaskTables | None:
    """Return the tables of a task; None if no contender takes part."""
    contenders = task["contenders"]
    if not contenders:
        return None
    on = on_task(task, facts)
    return TaskTables(
        scores=_scores(contenders, facts, on),
        pairs=_pairs(task["pairs"], on),
        targets=_targets(task, on),
        budget=_budget(contenders, facts["objective"], on),
        tuning=_tuning(contenders, facts["trials_per_tuning"], on),
    )


def score_rows(facts: ComparisonFacts) -> Iterator[list[Any]]:
    """Yield a row of SCORE_COLUMNS for each contender on each task, also for those that take no part."""
    for task in facts["tasks"]:
        place = _place(task, facts)
        for name, contender in task["contenders"].items():
            scores, untuned = contender["scores"], contender["untuned"]
            of_untuned = [None, None] if untuned is None else [untuned["median"], untuned["iqm"]]
            numbers = [scores["median"], scores["iqm"], *scores["iqm_interval"], *of_untuned, scores["missing"]]
            yield [place, name, *numbers, None]
        for name, problem in task["failed"].items():
            yield [place, name, *[None] * (len(SCORE_COLUMNS) - 3), problem]


def _scores(contenders: Mapping[str, ContenderFacts], facts: ComparisonFacts, on: str) -> Table:
    direction = facts.get("direction")  # None: an older version wrote the facts
    better = "" if direction is None else f" ({'lower' if direction == 'minimize' else 'higher'} is better)"
    title = f"{facts['compare']['metric']}{on}, {len(facts['seeds'])} seeds{better}"
    columns = ["contender", "median", "IQM", "95 % interval of the IQM", "untuned: median", "IQM", "missing"]
    ordered = sorted(contenders.items(), key=lambda item: _cost(item[1]["scores"]["median"], direction))
    return Table(title, columns, [[name, *_score_cells(c["scores"], c["untuned"])] for name, c in ordered])


def _cost(value: float | None, direction: str | None) -> float:
    """Return a value as a cost. Without a direction all are equal, which leaves contenders in their order."""
    if direction is None:
        return 0.0
    return math.inf if value is None else sign_of(direction) * value


def _score_cells(scores: ScoreFacts, untuned: ScoreFacts | None) -> list[str]:
    low, high = scores["iqm_interval"]
    defaults = ["", ""] if untuned is None else [number_text(untuned["median"]), number_text(untuned["iqm"])]
    interval = f"{number_text(low)} to {number_text(high)}"
    return [number_text(scores["median"]), number_text(scores["iqm"]), interval, *defaults, str(scores["missing"])]


def _pairs(pairs: list[PairFacts], on: str) -> Table:
    columns = ["pair", "first better in", "95 % interval", "effect", "p", "p, Holm", "verdict"]
    return Table(f"pairs{on}", columns, [_pair_cells(pair) for pair in pairs])


def _pair_cells(pair: PairFacts) -> list[str]:
    low, high = pair["interval"]
    verdict = "no detectable difference" if pair["better"] is None else f"{pair['better']} is better"
    shares = [f"{pair['improvement']:.0%}", f"{low:.0%} to {high:.0%}"]
    numbers = [f"{pair['effect']:+.2f}", p_text(pair["p"]), p_text(pair["adjusted_p"])]
    return [f"{pair['first']} against {pair['second']}", *shares, *numbers, verdict]


def _targets(task: TaskFacts, on: str) -> Table:
    columns = ["contender", "reached by", "steps, median", "seconds, median"]
    rows = []
    for name, contender in task["contenders"].items():
        n, reached = len(contender["scores"]["by_seed"]), contender["reached"]
        times = [_or_missed(reached["steps"], ".0f"), _or_missed(reached["seconds"], ".2g")]
        rows.append([name, f"{round(reached['share'] * n)} of {n}", *times])
    target = number_text(task["target"])
    return Table(f"{'no val/loss that all reach' if target == 'none' else f'val/loss of {target}'}{on}", columns, rows)


def _or_missed(value: float | None, form: str) -> str:
    return "missed by half" if value is None or not math.isfinite(value) else f"{value:{form}}"


def _budget(contenders: Mapping[str, ContenderFacts], objective: str, on: str) -> Table:
    ks = _some(max(len(c["budget"]["k"]) for c in contenders.values()))
    rows = [[name, *(_expected(c["budget"], k) for k in ks)] for name, c in contenders.items()]
    return Table(f"expected best {objective}{on}, by number of trials", ["contender", *map(str, ks)], rows)


def _expected(budget: BudgetFacts, k: int) -> str:
    if k > len(budget["k"]):
        return ""
    value, low, high = (number_text(budget[column][k - 1]) for column in ("values", "low", "high"))
    return f"{value} ({low} to {high})" if budget.get("has_interval") else value


def _some(n: int) -> list[int]:
    """Return numbers of trials up to n, each about twice the one before."""
    ks = [2**i for i in range(n.bit_length()) if 2**i < n]
    return [*ks[-_COLUMNS_OF_BUDGET:], n]


def _tuning(contenders: Mapping[str, ContenderFacts], n_trials: int, on: str) -> Table:
    columns = ["contender", "tunings", "trials", "diverged", "searched", "rates within 10 % of the best"]
    rows = [[name, *_tuning_cells(contender)] for name, contender in contenders.items()]
    return Table(f"tuning{on}: {n_trials} trials a tuning", [*columns, "best configuration"], rows)


def _tuning_cells(contender: ContenderFacts) -> list[str]:
    searched = "; ".join(f"{key}: {text}" for key, text in contender["searched"].items()) or "nothing"
    rates = "; ".join(
        f"{key}: {short(low)} to {short(high)}{f' ({high / low:.3g}x)' if low else ''}"
        for key, (low, high) in contender["rates_within_10_percent"].items()
    )
    counts = [str(contender["n_tunings"]), str(contender["n_trials"]), f"{contender['diverged']:.0%}"]
    best = {key_of(override): override for override in contender.get("best", ())}  # the last one of a key counts
    return [*counts, searched, rates, "  ".join(o for key, o in best.items() if key in contender["searched"])]


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
