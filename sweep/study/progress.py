"""Show a study while it runs, as a live table in a terminal or with one line for each trial, and print its outcome."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum, auto
from itertools import product
from types import TracebackType
from typing import Self

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Group
from rich.live import Live
from rich.text import Text

from sweep.config.best_config import stored_best
from sweep.execution.attempts import failed, trials_of
from sweep.execution.queue import MEMORY, PACKING, PROBLEM, STOPPED, is_complete
from sweep.storage.retry import RetryPolicy
from sweep.study.identity import only_one_run
from sweep.study.reading import is_own_storage, recorded_storage
from sweep.study.recording import Recording
from sweep.study.restoring import missing, missing_text
from sweep.study.results import STATES, best_trials, config_values, counts
from sweep.study.status import eta_s, eta_text, params_text, running_table, running_trial, status_of
from sweep.tracking.folders import StudyFolder
from sweep.tracking.provenance import from_study_command, report_command, rerun_command
from sweep.trial.summary import where_to_look
from sweep.utils.console import Console
from sweep.utils.notebook import Cell
from sweep.utils.wording import short

_POLL_S = 0.5
_MOST_NAMED = 10


class Output(Enum):
    """How much a study shows: nothing, only failed trials (and a live table in a terminal), or everything.

    NOTEBOOK prints nothing, and shows how the study stands in the cell of a notebook.
    """

    NOTHING = auto()
    NOTEBOOK = auto()
    FAILURES = auto()
    ALL = auto()


class Watch:
    """Follows a study in its own thread: shows what the workers do, on any machine, and records finished trials.

    Use it in a `with` statement, or call `close` at the end.
    """

    def __init__(
        self,
        study: optuna.Study,
        folder: StudyFolder,
        n_trials: int,
        recording: Recording,
        output: Output,
        live: bool,
        patiently: RetryPolicy,
        at_each_look: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare to follow the study; `with` starts the thread.

        Args:
            study: the study.
            folder: its folder.
            n_trials: the number of trials of the study.
            recording: gets the finished trials.
            output: how much to print.
            live: True shows a table in the terminal instead of lines.
            patiently: repeats the last look while the storage cannot be reached.
            at_each_look: called about once a second as well.
        """
        self._patiently, self._at_each_look = patiently, at_each_look
        is_quiet = output in (Output.NOTHING, Output.NOTEBOOK)
        live = live and not is_quiet
        self._study, self._folder, self._n_trials, self._recording = study, folder, n_trials, recording
        self._cell = Cell() if output is Output.NOTEBOOK else None
        self._lines = output is Output.ALL
        self._seen = {t.number for t in trials_of(study) if t.state.is_finished()}
        self._noted = {""}
        self._n_before, self._began = len(self._seen), time.monotonic()
        self._console = Console(stderr=live, soft_wrap=not live, quiet=is_quiet)
        self._live = Live(console=self._console, auto_refresh=False, transient=True) if live else None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread, and show and record what is left. A second call does nothing."""
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join()
        try:
            self._patiently(self._look)
        finally:
            if self._live is not None:
                self._live.stop()

    def _follow(self) -> None:
        while not self._over.wait(_POLL_S):
            with suppress(Exception):  # perhaps only an outage; `close` tries once more and raises
                self._look()

    def _look(self) -> None:
        """Read the study's trials, and show and record what is new."""
        self._at_each_look()
        trials = trials_of(self._study)
        new = [t for t in trials if t.state.is_finished() and t.number not in self._seen]
        n_before = len(self._seen)
        self._seen |= {t.number for t in new}
        self._recording.update(trials)
        for trial, name in product(trials, (MEMORY, PACKING)):
            if (note := trial.user_attrs.get(name, "")) not in self._noted:
                self._noted.add(note)
                self._console.print(f"trial {trial.number} {note}")
        for n_done, trial in enumerate(sorted(new, key=lambda t: str(t.datetime_complete)), n_before + 1):
            if (self._live is None and self._lines) or trial.state == TrialState.FAIL:  # failures stay above the table
                self._console.print(_line(trial, n_done, self._n_trials))
        if self._live is not None:
            self._live.update(self._table(trials), refresh=True)
        if self._cell is not None:
            self._cell.show(status_of(self._study, self._folder))

    def _table(self, trials: Sequence[FrozenTrial]) -> Group:
        """Return the live table: a row for each running trial, the counts, and the best so far."""
        running = [running_trial(t) for t in trials if t.state == TrialState.RUNNING]
        done, left = len(self._seen) - self._n_before, self._n_trials - len(self._seen)
        eta = eta_text(eta_s(done, left, time.monotonic() - self._began))
        lines = [Text(f"{_counted(trials, self._n_trials)}{eta}")]
        best = best_trials(self._study)
        if best and len(self._study.directions) == 1:
            lines.append(Text(f"best {best[0].value:.6g}  trial {best[0].number}  {_params(best[0])}"))
        elif best:
            lines.append(Text(f"{len(best)} on the Pareto front"))
        return Group(running_table(running), *lines)


def print_outcome(
    study: optuna.Study, folder: StudyFolder, n_trials: int, tracking_uri: str | None, script: str | None = None
) -> None:
    """Print the counts, the best configuration, the command that trains it again, and how to see it all in MLflow.

    Args:
        study: the study.
        folder: its folder.
        n_trials: the number of its trials.
        tracking_uri: the tracking store of MLflow; None without tracking.
        script: the file of another Hydra application that was searched; None for sweep's own.
    """
    console = Console(soft_wrap=True)

    def say(text: str) -> None:
        console.print(text)

    trials = trials_of(study)
    say("")
    say(f"study {study.study_name}: {_counted(trials, n_trials)}")
    best = best_trials(study)
    if best and len(study.directions) == 1:
        rows = {"best value": f"{best[0].value:.6g} (trial {best[0].number})"}
        rows |= {key: short(value) for key, value in config_values(best[0]).items()}
    else:
        rows = {"Pareto front": f"{len(best)} trials"} if best else {}
        for trial in best:
            rows[f"trial {trial.number}"] = f"{', '.join(map(short, trial.values))}  {_params(trial)}"
    width = max(map(len, rows), default=0)
    for name, text in rows.items():
        say(f"  {name:<{width}}  {text}")
    say("")
    if not is_complete(trials, n_trials):
        say("Not complete:    run the same command again to resume it")
    if best:
        stored = stored_best(folder.best, "study")["overrides"] if folder.best.exists() else []
        overrides = [str(override) for override in stored]
        again = from_study_command(study.study_name, folder.path.parent.parent, overrides)
        if script is not None:
            again = rerun_command(overrides, script)
        say(f"Train it again:  {again}")
        if note := only_one_run(study.user_attrs):
            say(f"                 ({note})")
        storage = recorded_storage(folder)
        elsewhere = None if storage is None or is_own_storage(storage, folder) else storage
        say(f"See it as page:  {report_command(study.study_name, folder.path.parent.parent, elsewhere)}")
    say(f"Study folder:    {folder.path}")
    if elsewhere := missing(trials, folder):
        say(f"Not here:        {missing_text(elsewhere)}")
    if tracking_uri is not None:
        say(where_to_look("trials", tracking_uri))
    if numbers := failed(trials, n_trials):
        say(failures_text(numbers))


def failures_text(numbers: Sequence[int]) -> str:
    """Return a line that says which trials failed, and how to train them again."""
    which = ", ".join(map(str, numbers[:_MOST_NAMED])) + (", ..." if numbers[_MOST_NAMED:] else "")
    message = f"{len(numbers)} trials failed ({which})" if len(numbers) > 1 else f"1 trial failed ({which})"
    return f"{message}; fix the cause, then add hydra.sweeper.retry_failed=true to the same command to train them again"


def _params(trial: FrozenTrial) -> str:
    return params_text(config_values(trial))


def _line(trial: FrozenTrial, n_done: int, n_trials: int) -> str:
    """Return a line such as "12/32  trial 11  0.0193  scheduler.max_lr=0.012"."""
    head = f"{n_done}/{n_trials}  trial {trial.number}"
    if trial.state == TrialState.FAIL:
        return f"{head}  failed: {trial.user_attrs.get(PROBLEM, '')}"
    value = " ".join(map(short, trial.values or ["-"]))
    ended = trial.user_attrs.get(STOPPED) or trial.user_attrs.get(PROBLEM)
    return "  ".join(filter(None, [head, value, ended, _params(trial)]))


def _counted(trials: Sequence[FrozenTrial], n_trials: int) -> str:
    """Return text such as "12 of 32 trials: 8 complete, 3 pruned, 1 failed"."""
    n_by_ending = counts(trials)
    parts = [f"{n_by_ending[word]} {word}" for word in STATES.values() if n_by_ending[word] or word == "complete"]
    n_done = sum(n_by_ending.values())
    return f"{n_done} of {max(n_done, n_trials)} trials: {', '.join(parts)}"
