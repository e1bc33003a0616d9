"""The page of a comparison, from the comparison.yaml that the comparison wrote."""

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sweep.config.overrides import known_command
from sweep.figures.comparison import budget_figure, scores_figure
from sweep.figures.page import Document, Section, Table, to_html
from sweep.utils.errors import Damaged
from sweep.utils.files import from_yaml, write_atomic
from sweep.utils.wording import short

_FACTS = "comparison.yaml"
_REMEDY = "run the comparison's command again, which writes it anew"
_KEY = "comparison"


def write_comparison_page(folder: Path, page: Path) -> None:
    """Write the page of the comparison in a folder.

    Raises:
        Damaged: the comparison's facts are not as a comparison writes them.
        OSError: they cannot be read, or the page cannot be written.
    """
    text = (folder / _FACTS).read_text(encoding="utf-8", errors="replace")
    try:
        document = _document(from_yaml(text))
    except Exception as error:  # the file may be anybody's
        raise Damaged(_KEY, folder / _FACTS, "it is not as it was written", _REMEDY) from error
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(page, to_html(document), durable=False, to_be_shown=True)


def _document(facts: Mapping[str, Any]) -> Document:
    metric, tasks = str(facts["compare"]["metric"]), list(facts["tasks"])
    sections = [section for i, task in enumerate(tasks) for section in _sections(task, i, metric, len(tasks) > 1)]
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


def _sections(task: Mapping[str, Any], i: int, metric: str, is_named: bool) -> Iterator[Section]:
    """Yield the sections of a task, the i-th."""
    on = f" on {task['task']}" if is_named else ""
    contenders: Mapping[str, Mapping[str, Any]] = task["contenders"]
    left_out = [(f"{name} is left out", str(problem)) for name, problem in task["failed"].items()]
    yield Section(f"Verdict{on}", str(task["verdict"]), texts=left_out)
    if not contenders:
        return
    head = ["contender", "median", "IQM", "95 % interval of the IQM", "untuned: median", "IQM", "missing"]
    scores = {name: [float(v) for v in c["scores"]["by_seed"] if v is not None] for name, c in contenders.items()}
    budgets = {name: (c["budget"]["k"], c["budget"]["values"]) for name, c in contenders.items()}
    rows = [[name, *_score_cells(c["scores"], c["untuned"])] for name, c in contenders.items()]
    note = "A dot is a run of what tuning chose on a fresh seed; the box holds the middle half."
    yield Section(f"Scores{on}", note, [scores_figure(scores, i, metric)], tables=[Table(rows, head)])
    if task["pairs"]:
        head = ["pair", "first better in", "effect", "p", "p, Holm", "verdict"]
        yield Section(f"Pairs{on}", tables=[Table([_pair_cells(pair) for pair in task["pairs"]], head)])
    note = "The best validation result that tuning is expected to reach, by its number of trials."
    yield Section(f"Tuning{on}", note, [budget_figure(budgets, i)], tables=[_tuning(contenders)])


def _score_cells(scores: Mapping[str, Any], untuned: Mapping[str, Any] | None) -> list[str]:
    low, high = scores["iqm_interval"]
    defaults = ["", ""] if untuned is None else [_number(untuned["median"]), _number(untuned["iqm"])]
    interval = f"{_number(low)} to {_number(high)}"
    return [_number(scores["median"]), _number(scores["iqm"]), interval, *defaults, str(scores["missing"])]


def _pair_cells(pair: Mapping[str, Any]) -> list[str]:
    verdict = "no detectable difference" if pair["better"] is None else f"{pair['better']} is better"
    numbers = [f"{pair['improvement']:.0%}", f"{pair['effect']:+.2f}", f"{pair['p']:.2g}", f"{pair['adjusted_p']:.2g}"]
    return [f"{pair['first']} against {pair['second']}", *numbers, verdict]


def _tuning(contenders: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = []
    for name, found in contenders.items():
        searched = "; ".join(f"{key}: {text}" for key, text in found["searched"].items())
        rows.append([name, str(found["n_tunings"]), str(found["n_trials"]), f"{found['diverged']:.0%}", searched])
    return Table(rows, ["contender", "tunings", "trials", "diverged", "searched"])


def _number(value: float | None) -> str:
    return "none" if value is None or not math.isfinite(value) else f"{value:.4g}"
