"""How a study stands: what runs, what is done, the best so far and the time that is left."""

import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from sweep.execution.attempts import trials_of
from sweep.execution.queue import DEAD_AFTER_S, OWNER, is_complete, is_trained
from sweep.execution.steering import is_stopped
from sweep.storage.optuna_internals import storage_of
from sweep.storage.storage import as_database
from sweep.study.reading import objective_names
from sweep.study.restoring import missing, missing_text
from sweep.study.results import STATES, best_trials, config_values, counts
from sweep.tracking import journal
from sweep.tracking.folders import StudyFolder
from sweep.utils import html
from sweep.utils.wording import short

_MOST_ROWS = 16
_MOST_NAMED = 4  # trials of a worker
_WORKER_COLUMNS = ("host", "worker", "trials", "heartbeat")


@dataclass(frozen=True)
class RunningTrial:
    """A trial that is being trained.

    Attributes:
        number: its number in the study.
        epoch: the last epoch that it has reported; 0 before the first.
        value: the value that it has reported then; None before the first.
        params: the values that the study chose, by config key.
        worker: the worker that trains it, as <host>/<name>.
    """

    number: int
    epoch: int
    value: float | None
    params: dict[str, Any]
    worker: str = ""


@dataclass(frozen=True)
class LiveWorker:
    """A worker that lives, as far as is known.

    Attributes:
        host: the name of its machine.
        name: its name.
        trials: the numbers of the trials that it trains.
        silent_s: seconds since its last heartbeat; None if the storage notes no times.
    """

    host: str
    name: str
    trials: list[int]
    silent_s: float | None


@dataclass(frozen=True)
class BestTrial:
    """A trial that none beats: its number, the values of its objectives, and the params by config key."""

    number: int
    values: list[float]
    params: dict[str, Any]


@dataclass(frozen=True)
class StudyStatus:
    """How a study stood when it was read. As `asdict`, it is what `sweep.studies show --json` prints.

    Attributes:
        name: the study's name.
        folder: its folder.
        state: "running" while a worker or its command lives, "complete" if all its trials are finished, else "open".
        n_trials: the number of trials that its last command asked for; None if its record does not say.
        n_by_state: the number of trials by state: complete, pruned, failed, running, waiting and stopped. Those that
            were stopped alone do not count as waiting.
        objectives: the names of the objectives.
        running: the trials that are being trained.
        best: the best trial, or the Pareto front; empty if no trial is complete.
        eta_s: the estimated time that is left, in seconds; None if it is unknown.
        began: when the study began, in seconds since 1970; None if its record does not say.
        elsewhere: the finished trials whose files are on other machines alone, by host.
        workers: the workers that live, by host and name.
    """

    name: str
    folder: Path
    state: str
    n_trials: int | None
    n_by_state: dict[str, int]
    objectives: list[str]
    running: list[RunningTrial] = field(default_factory=list)
    best: list[BestTrial] = field(default_factory=list)
    eta_s: float | None = None
    began: float | None = None
    elsewhere: dict[str, list[int]] = field(default_factory=dict)
    workers: list[LiveWorker] = field(default_factory=list)

    @property
    def n_done(self) -> int:
        """The number of finished trials."""
        return sum(self.n_by_state[word] for word in STATES.values())

    def as_json(self) -> dict[str, Any]:
        """Return the status as plain data for JSON."""
        return {**asdict(self), "folder": str(self.folder)}

    def counted(self) -> str:
        """Return text such as "12 of 32 trials: 8 complete, 3 pruned, 1 failed"."""
        parts = [f"{n} {word}" for word, n in self.n_by_state.items() if n or word == "complete"]
        total = max(self.n_trials or 0, sum(self.n_by_state.values()))
        return f"{self.n_done} of {total} trials: {', '.join(parts)}"

    def best_text(self) -> str:
        """Return a line about the best trial; an empty text if no trial is complete."""
        if not self.best:
            return ""
        if len(self.objectives) > 1:
            return f"{len(self.best)} on the Pareto front"
        best = self.best[0]
        return f"best {self.objectives[0]} {best.values[0]:.6g}  trial {best.number}  {params_text(best.params)}"

    def _repr_html_(self) -> str:
        """Return the status as a notebook shows it."""
        head = html.paragraph(f"study {self.name}, {self.state}: {self.counted()}{eta_text(self.eta_s)}")
        best = html.paragraph(self.best_text()) if self.best else ""
        rows = [[t.number, t.epoch, _value(t.value), params_text(t.params)] for t in self.running[:_MOST_ROWS]]
        shown = head + best + (html.table(("trial", "epoch", "value", "params"), rows) if rows else "")
        return shown + (html.table(_WORKER_COLUMNS, _worker_rows(self.workers)) if self.workers else "")


def status_of(study: optuna.Study, folder: StudyFolder, workers: Sequence[LiveWorker] | None = None) -> StudyStatus:
    """Return how a study stands.

    Args:
        study: the study, or a copy of it.
        folder: the study's folder, whose locks say what is running.
        workers: what `live_workers` returned when the study was copied.
    """
    trials = trials_of(study)
    workers = live_workers(study, folder) if workers is None else workers
    trained = [t for t in trials if is_trained(t, folder)]
    n_stopped = sum(is_stopped(t, folder) for t in trials)
    n_open = sum(t.state in (TrialState.RUNNING, TrialState.WAITING) for t in trials)
    n_by_state = {**counts(trials), "running": len(trained), "waiting": n_open - len(trained) - n_stopped}
    first, last = journal.first(folder.run.journal, "start"), journal.last_of(folder.run.journal, "start")
    n_trials = None if last is None else last.get("n_trials")
    n_trials = n_trials if isinstance(n_trials, int) else None
    is_running = bool(trained) or folder.run.is_running() or bool(workers)
    is_done = n_trials is not None and is_complete(trials, n_trials)
    n_left = None if n_trials is None else n_trials - sum(t.state.is_finished() for t in trials)
    return StudyStatus(
        name=folder.path.name,
        folder=folder.path,
        state="running" if is_running else "complete" if is_done else "open",
        n_trials=n_trials,
        n_by_state={**n_by_state, "stopped": n_stopped},
        objectives=objective_names(study),
        running=[running_trial(trial) for trial in trained],
        best=[BestTrial(t.number, list(t.values), config_values(t)) for t in best_trials(study)],
        eta_s=_eta_s(trials, n_left, last["time"] / 1e3) if is_running and last is not None else None,
        began=None if first is None else first["time"] / 1e3,
        elsewhere=missing(trials, folder),
        workers=list(workers),
    )


def live_workers(study: optuna.Study, folder: StudyFolder) -> list[LiveWorker]:
    """Return the workers that live, of all commands and machines.

    One on this machine lives if it holds its lock. Another one lives if its heartbeat in the database is at most 75 s
    old, or, in a storage that notes no times, as long as it owns a trial.
    """
    owned: dict[str, list[int]] = {}
    for trial in trials_of(study):
        if trial.state == TrialState.RUNNING:
            owned.setdefault(trial.user_attrs.get(OWNER, ""), []).append(trial.number)
    database = as_database(storage_of(study))
    silent = None if database is None else database.silent_s(database.get_study_id_from_name(study.study_name))
    here = (f"{socket.gethostname()}/{name}" for name in folder.live_workers())
    found = []
    for owner in sorted({*owned, *(silent or ()), *here}):
        host, _, name = owner.partition("/")
        silent_s = (silent or {}).get(owner)
        lives = folder.worker_lives(name) if name else False
        if lives is None:
            lives = owner in owned if silent is None else silent_s is not None and silent_s <= DEAD_AFTER_S
        if lives:
            found.append(LiveWorker(host, name, owned.get(owner, []), silent_s))
    return found


def running_trial(trial: FrozenTrial) -> RunningTrial:
    """Return what a trial that runs has reported."""
    epoch = max(trial.intermediate_values, default=0)
    value = trial.intermediate_values.get(epoch)
    return RunningTrial(trial.number, epoch, value, config_values(trial), trial.user_attrs.get(OWNER, ""))


def _eta_s(trials: Sequence[FrozenTrial], n_left: int | None, since: float) -> float | None:
    """Return the estimated time that is left, from the trials that ended `since` a time, in seconds since 1970."""
    ends = [t.datetime_complete.timestamp() for t in trials if t.datetime_complete is not None]
    return eta_s(sum(end >= since for end in ends), n_left or 0, time.time() - since)


def eta_s(n_done: int, n_left: int, elapsed_s: float) -> float | None:
    """Return the time that is left, in seconds; None while fewer than 2 trials are done, or if none is left."""
    return elapsed_s / n_done * n_left if n_done >= 2 and n_left > 0 else None


def eta_text(seconds: float | None) -> str:
    """Return text such as "  ETA 1:05"; an empty text if the time is unknown."""
    return "" if seconds is None else f"  ETA {int(seconds // 60)}:{int(seconds % 60):02d}"


def running_table(running: Sequence[RunningTrial]) -> Table:
    """Return a table for a terminal with a row for each trial that runs."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("trial", "epoch", "value", "params"):
        table.add_column(column, justify="left" if column == "params" else "right", no_wrap=column != "params")
    for trial in running[:_MOST_ROWS]:
        table.add_row(str(trial.number), str(trial.epoch), _value(trial.value), params_text(trial.params))
    if running[_MOST_ROWS:]:
        table.add_row("...", "", "", f"and {len(running) - _MOST_ROWS} more")
    return table


def workers_table(workers: Sequence[LiveWorker]) -> Table:
    """Return a table for a terminal with a row for each worker that lives."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in _WORKER_COLUMNS:
        table.add_column(column, no_wrap=column == "heartbeat", overflow="fold")
    for row in _worker_rows(workers):
        table.add_row(*row)
    return table


def status_group(status: StudyStatus) -> Group:
    """Return the status for a terminal: what runs, then the counts, the best so far and the folder."""
    lines = [f"study {status.name}, {status.state}: {status.counted()}{eta_text(status.eta_s)}"]
    lines += [status.best_text()] if status.best else []
    lines += [missing_text(status.elsewhere)] if status.elsewhere else []
    above = [running_table(status.running)] if status.running else []
    above += [workers_table(status.workers)] if status.workers else []
    return Group(*above, *(Text(line) for line in lines))


def params_text(params: dict[str, Any]) -> str:
    """Return params in one line."""
    return "  ".join(f"{key}={short(value)}" for key, value in params.items())


def _worker_rows(workers: Sequence[LiveWorker]) -> list[list[str]]:
    rows = []
    for worker in workers[:_MOST_ROWS]:
        numbers = ", ".join(map(str, worker.trials[:_MOST_NAMED])) or "-"
        more = len(worker.trials) - _MOST_NAMED
        heard = "-" if worker.silent_s is None else f"{max(0.0, worker.silent_s):.0f} s ago"
        rows.append([worker.host, worker.name, f"{numbers} and {more} more" if more > 0 else numbers, heard])
    if workers[_MOST_ROWS:]:
        rows.append(["...", "", f"and {len(workers) - _MOST_ROWS} more", ""])
    return rows


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
