"""A judgement in words: the verdict on each task, and the warnings."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweep.comparison.judge import Judgement, PairwiseTest, TaskResult
    from sweep.comparison.studies import Plan


def verdict(task: "TaskResult", judgement: "Judgement", plan: "Plan") -> str:
    """Return the verdict on a task, in one paragraph. The leaders are the contenders that nobody detectably beats."""
    level = plan.compare.level
    where = f"On {task.task}: " if task.task else ""
    if len(task.standings) < 2:
        alone = f"; {task.standings[0].name} is alone" if task.standings else ""
        return f"{where}nothing to compare{alone}."
    found = [test for test in task.tests if test.better is not None]
    if not found:
        least = min(test.adjusted for test in task.tests)
        return f"{where}no detectable difference (smallest adjusted p = {p_text(least)}, level {level:g})."
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


def _win(test: "PairwiseTest", sign: float) -> str:
    two = (test.first, test.second)
    better, worse = two[test.better or 0], two[1 - (test.better or 0)]
    p, chance = test.pair.effect, test.pair.improvement
    chance = chance if p > 0 else 1 - chance
    values = f"{number_text(sign * better.score.median)} against {number_text(sign * worse.score.median)}"
    return (
        f"{better.name} is better than {worse.name} ({values}; p = {p_text(test.adjusted)}, in {chance:.0%} of pairs)"
    )


def warnings(judgement: "Judgement", plan: "Plan") -> Iterator[str]:
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


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def number_text(value: float | None) -> str:
    """Return a number with four digits, or "none" if it is not finite."""
    return "none" if value is None or not math.isfinite(value) else f"{value + 0.0:.4g}"  # -0 becomes 0


def p_text(p: float) -> str:
    """Return a p value as a reader needs it."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"
