"""Report a comparison: a summary in the terminal, and a folder with everything as text, numbers and a plot."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweep.comparison.facts import FACTS, ComparisonFacts
from sweep.comparison.judge import Judgement, judge
from sweep.comparison.plot import points_of
from sweep.comparison.runs import Entry
from sweep.comparison.studies import Plan
from sweep.comparison.tables import aligned, tables
from sweep.figures.comparison import draw_comparison
from sweep.figures.drawing import drawing_problem
from sweep.search.samplers import is_uniform
from sweep.utils.files import to_yaml, write_atomic
from sweep.utils.terminal import escaped, say


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


def write_report(plan: Plan, judgement: Judgement, facts: ComparisonFacts) -> None:
    """Write comparison.yaml, comparison.md and comparison.png to the comparison's folder.

    Each file is replaced atomically. A plot that cannot be drawn only prints a warning.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(plan.folder / FACTS, to_yaml(_plain(facts)))
    write_atomic(plan.folder / "comparison.md", escaped(_markdown(facts)))
    plot = plan.folder / "comparison.png"
    problem = drawing_problem(lambda: draw_comparison(points_of(plan, judgement), plot))
    if problem is not None:
        say(f"warning: cannot draw the comparison ({problem})", err=True)


def print_report(facts: ComparisonFacts, folder: Path) -> None:
    """Print the main tables, the verdict and the warnings. `folder` is that of the comparison."""
    for task in facts["tasks"]:
        if (found := tables(task, facts)) is not None:
            for table in (found.scores, found.pairs, found.targets):
                say(f"\n{aligned(table)}")
    say()
    for task in facts["tasks"]:
        say(task["verdict"])
    for warning in facts.get("warnings", ()):
        say(f"warning: {warning}")
    say(f"\nComparison folder:  {folder}")


def _markdown(facts: ComparisonFacts) -> str:
    """Return the text of comparison.md."""
    parts = [f"# {facts['name']}", *(task["verdict"] for task in facts["tasks"])]
    if warnings := facts.get("warnings"):
        parts.append("\n".join(f"- Warning: {warning}" for warning in warnings))
    parts.append("![Scores, budget, curves and learning rates](comparison.png)")
    for task in facts["tasks"]:
        for table in tables(task, facts) or ():
            head = [f"| {' | '.join(table.columns)} |", f"|{'---|' * len(table.columns)}"]
            rows = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in table.rows]
            parts.append("\n".join([f"**{table.title}**", "", *head, *rows]))
    return "\n\n".join(parts) + "\n"


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
