"""Report a comparison: a summary in the terminal, and a folder with everything as text, numbers and a plot."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from sweep.comparison import formatting
from sweep.comparison.judge import Judgement, Score, judge
from sweep.comparison.plot import points_of
from sweep.comparison.runs import Entry
from sweep.comparison.studies import Plan
from sweep.figures.comparison import draw_comparison
from sweep.figures.drawing import drawing_problem
from sweep.search.samplers import is_uniform
from sweep.utils.files import to_yaml, write_atomic
from sweep.utils.terminal import escaped, say

_IN_TERMINAL = 3  # how many tables of a task the terminal shows


def judged(plan: Plan, entries: Sequence[Entry], direction: str) -> Judgement:
    """Judge the entries by the settings of the plan. `direction` is minimize or maximize, for the compared metric."""
    return judge(
        entries,
        plan.compare.metric,
        direction,
        plan.settings.direction[0],
        learns=not is_uniform(plan.settings.sampler),
        level=plan.compare.level,
        target=plan.compare.target,
        n_trials=plan.n_trials,
    )


def write_report(plan: Plan, judgement: Judgement) -> None:
    """Write comparison.yaml, comparison.md and comparison.png to the comparison's folder.

    Each file is replaced atomically. A plot that cannot be drawn only prints a warning.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(plan.folder / "comparison.yaml", to_yaml(_plain(_facts(plan, judgement))))
    write_atomic(plan.folder / "comparison.md", escaped(_markdown(plan, judgement)))
    plot = plan.folder / "comparison.png"
    problem = drawing_problem(lambda: draw_comparison(points_of(plan, judgement), plot))
    if problem is not None:
        say(f"warning: cannot draw the comparison ({problem})", err=True)


def print_report(plan: Plan, judgement: Judgement) -> None:
    """Print the main tables, the verdict and the warnings."""
    for task in judgement.tasks:
        for table in formatting.tables(task, judgement, plan)[:_IN_TERMINAL]:
            say(f"\n{formatting.aligned(table)}")
    say()
    for task in judgement.tasks:
        say(formatting.verdict(task, judgement, plan))
    for warning in formatting.warnings(judgement, plan):
        say(f"warning: {warning}")
    say(f"\nComparison folder:  {plan.folder}")


def _markdown(plan: Plan, judgement: Judgement) -> str:
    """Return the text of comparison.md."""
    parts = [f"# {plan.name}", *(formatting.verdict(task, judgement, plan) for task in judgement.tasks)]
    if warnings := list(formatting.warnings(judgement, plan)):
        parts.append("\n".join(f"- Warning: {warning}" for warning in warnings))
    parts.append("![Scores, budget, curves and learning rates](comparison.png)")
    for task in judgement.tasks:
        for table in formatting.tables(task, judgement, plan):
            head = [f"| {' | '.join(table.columns)} |", f"|{'---|' * len(table.columns)}"]
            rows = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in table.rows]
            parts.append("\n".join([f"**{table.title}**", "", *head, *rows]))
    return "\n\n".join(parts) + "\n"


def _facts(plan: Plan, judgement: Judgement) -> dict[str, Any]:
    """Return the content of comparison.yaml. Costs are converted back to values of the metric."""
    tasks: list[dict[str, Any]] = []
    for task in judgement.tasks:
        found: dict[str, Any] = {"task": task.task or plan.config.choices.get("data"), "target": task.target}
        found["verdict"] = formatting.verdict(task, judgement, plan)
        found["contenders"] = {
            s.name: {
                "scores": _score(s.score, judgement.sign),
                "untuned": None if s.untuned is None else _score(s.untuned, judgement.sign),
                "reached": s.reached._asdict(),
                "budget": {key: value for key, value in s.budget._asdict().items() if key != "interval"},
                "rates_within_10_percent": {key: list(ends) for key, ends in s.rates.items()},
                "diverged": s.diverged,
                "edges": s.edges,
                "searched": s.entry.searched,
                "n_tunings": s.entry.n_tunings,
                "n_trials": len(s.entry.trials),
                "chosen": [None if t is None else t.params for t in s.entry.chosen],
                "studies": s.entry.studies,
            }
            for s in task.standings
        }
        found["failed"] = {entry.name: entry.problem for entry in task.failed}
        found["pairs"] = [
            {"first": d.first.name, "second": d.second.name, "adjusted_p": d.adjusted, **d.pair._asdict()}
            | {"better": None if d.better is None else (d.first, d.second)[d.better].name}
            for d in task.tests
        ]
        tasks.append(found)
    profile = {name: values for name, values in judgement.profiles.items()}
    settings = {"compare": dataclasses.asdict(plan.compare), "seeds": plan.seeds, "trials_per_tuning": plan.n_trials}
    settings |= {"epochs": plan.config.trainer.epochs, "objective": plan.settings.objective[0]}
    return {
        "name": plan.name,
        "command": plan.command,
        **settings,
        "tasks": tasks,
        "profile": {"factors": judgement.factors, **profile} if profile else None,
    }


def _score(score: Score, sign: float) -> dict[str, Any]:
    low, high = sorted(sign * end for end in score.interval)
    columns = {"by_seed": sign * score.costs, "median": sign * score.median, "iqm": sign * score.iqm}
    return {**columns, "iqm_interval": [low, high], "missing": score.n_missing}


def _plain(value: Any) -> Any:
    """Convert numpy's types to plain ones, and numbers that are not finite to null."""
    if isinstance(value, dict):
        return {str(key): _plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value + 0.0 if isinstance(value, float) else value  # -0 becomes 0
