"""The page of a comparison, from the comparison.yaml that the comparison wrote."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from sweep.comparison import tables
from sweep.comparison.facts import FACTS, ComparisonFacts, ContenderFacts, TaskFacts
from sweep.config.overrides import known_command
from sweep.figures.comparison import budget_figure, scores_figure
from sweep.figures.figure import Figure
from sweep.figures.page import Document, Section, Table, to_html
from sweep.utils.errors import Damaged
from sweep.utils.files import from_yaml, write_atomic
from sweep.utils.wording import short

_REMEDY = "run the comparison's command again, which writes it anew"
_KEY = "comparison"


def write_comparison_page(folder: Path, page: Path) -> None:
    """Write the page of the comparison in a folder.

    Raises:
        Damaged: the comparison's facts are not as a comparison writes them.
        OSError: they cannot be read, or the page cannot be written.
    """
    text = (folder / FACTS).read_text(encoding="utf-8", errors="replace")
    try:
        document = _document(from_yaml(text))
    except Exception as error:  # the file may be anybody's
        raise Damaged(_KEY, folder / FACTS, "it is not as it was written", _REMEDY) from error
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(page, to_html(document), durable=False, to_be_shown=True)


def _document(facts: ComparisonFacts) -> Document:
    metric, tasks = str(facts["compare"]["metric"]), facts["tasks"]
    sections = [_verdict(task, facts) for task in tasks]
    if warnings := facts.get("warnings"):
        sections.append(Section("Warnings", tables=[Table([(warning,) for warning in warnings], ["warning"])]))
    sections += [section for i, task in enumerate(tasks) for section in _sections(task, i, facts)]
    command = known_command(facts.get("command"))
    commands = [(command, "The comparison's command, which also resumes it:")] if command else []
    rows = [(key, short(facts[key])) for key in ("trials_per_tuning", "epochs", "objective")]
    rows += [(f"compare.{key}", str(value)) for key, value in facts["compare"].items() if value is not None]
    sections.append(Section("Comparison", commands=commands, tables=[Table(rows)]))
    n_contenders = max((len(task["contenders"]) + len(task["failed"]) for task in tasks), default=0)
    return Document(
        title=str(facts["name"]),
        subtitle=f"A comparison by {metric}",
        facts=[
            (str(n_contenders), "contenders"),
            (str(len(facts["seeds"])), "fresh seeds"),
            (str(len(tasks)), "tasks" if len(tasks) != 1 else "task"),
        ],
        sections=sections,
        footer=f"Made by python -m sweep.report on {time.strftime('%Y-%m-%d %H:%M %Z')}; figures by plotly.js "
        "(MIT licence).",
    )


def _verdict(task: TaskFacts, facts: ComparisonFacts) -> Section:
    said = task["failed"] if "warnings" not in facts else {}  # else the warnings say it
    left_out = [(f"{name} is left out", str(problem)) for name, problem in said.items()]
    return Section(f"Verdict{tables.on_task(task, facts)}", str(task["verdict"]), texts=left_out)


def _sections(task: TaskFacts, i: int, facts: ComparisonFacts) -> Iterator[Section]:
    """Yield the sections with the numbers of a task, the i-th."""
    on = tables.on_task(task, facts)
    found = tables.tables(task, facts)
    if found is None:
        return
    note = "A dot is a run of what tuning chose on a fresh seed; the box holds the middle half."
    figure = _scores(task["contenders"], i, facts["compare"]["metric"])
    yield Section(f"Scores{on}", note, [figure], tables=[_shown(found.scores)])
    if task["pairs"]:
        yield Section(f"Pairs{on}", tables=[_shown(found.pairs)])
    yield Section(f"Target{on}", found.targets.title, tables=[_shown(found.targets)])
    note = "The best validation result that tuning is expected to reach, by its number of trials."
    budgets = {name: (c["budget"]["k"], c["budget"]["values"]) for name, c in task["contenders"].items()}
    both = [_shown(found.budget), _shown(found.tuning)]
    yield Section(f"Tuning{on}", note, [budget_figure(budgets, i)], tables=both)


def _scores(contenders: Mapping[str, ContenderFacts], i: int, metric: str) -> Figure:
    scores = {name: [v for v in c["scores"]["by_seed"] if v is not None] for name, c in contenders.items()}
    return scores_figure(scores, i, metric)


def _shown(table: tables.Table) -> Table:
    """Return the table as the page shows it, below a heading that replaces its title."""
    return Table(table.rows, table.columns)
