"""What other machines trained: bring copies of its files, read its curves in MLflow, and say what is missing."""

import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress

from optuna.trial import FrozenTrial

from sweep.execution.attempts import n_failed
from sweep.execution.node import REMEDY
from sweep.execution.queue import OWNER
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder, StudyFolder
from sweep.tracking.run_copies import KEY, RunCopies, restore
from sweep.tracking.store import Store, recorded_store
from sweep.utils.curve import Curve
from sweep.utils.errors import ConfigError, one_line
from sweep.utils.terminal import say

_MOST_NAMED = 8


class Gathering:
    """Brings the copies of finished trials that other machines trained into the study's folder, each once."""

    def __init__(self, copies: RunCopies | None, folder: StudyFolder, n_runs: int) -> None:
        """Prepare to gather; without `copies`, nothing is gathered. `n_runs`: the number of runs of a trial."""
        self._copies, self._folder = copies, folder
        self._replicates: list[int | None] = [None] if n_runs == 1 else list(range(n_runs))
        self._seen: set[tuple[int, int]] = set()  # numbers, each with that of the attempt
        self._has_warned = False

    def update(self, trials: Sequence[FrozenTrial]) -> None:
        """Bring the copies of trials that have finished since the last call. If that is impossible, warn once."""
        for trial in trials if self._copies is not None else ():
            attempt = (trial.number, n_failed(trial))
            if not trial.state.is_finished() or attempt in self._seen:
                continue
            if is_elsewhere(trial, self._folder) and not all(map(_is_whole_copy, self._runs(trial.number))):
                if any(run.is_running() for run in self._runs(trial.number)):
                    continue  # a worker that counts as dead still trains it here
                if not self._bring(*attempt):
                    return
            self._seen.add(attempt)

    def _runs(self, number: int) -> list[RunFolder]:
        return [self._folder.trial(number, replicate) for replicate in self._replicates]

    def _bring(self, number: int, n_failed: int) -> bool:
        """Bring a trial's copies. Return False if they cannot be read now."""
        assert self._copies is not None
        unmarked = [run for run in self._runs(number) if not run.copy_mark.exists()]
        for run in unmarked:  # before the files: they are not this machine's to upload
            run.create()
            run.copy_mark.touch()
        try:
            brought = restore(self._copies, self._folder, number, n_failed, self._replicates)
            unmarked = [run for run in unmarked if run.path not in {one.path for one in brought}]
        except Exception as error:  # of any kind: each file system has its own
            if not self._has_warned:
                say(f"warning: {KEY}: the copies in {self._copies.place} cannot be read ({one_line(error)})", err=True)
            self._has_warned = True
            return False
        finally:
            for run in unmarked:  # there was no copy
                run.copy_mark.unlink(missing_ok=True)
            for path in (*(run.path for run in unmarked), self._folder.trial(number).path):
                with suppress(OSError):  # it has files
                    path.rmdir()
        return True


def _is_whole_copy(run: RunFolder) -> bool:
    """Return whether a run's folder is a copy of a run that has ended for good."""
    if not (run.copy_mark.exists() and run.journal.exists()):
        return False
    return (journal.last(run.journal) or {}).get("status") in ("FINISHED", "FAILED")


def is_elsewhere(trial: FrozenTrial, folder: StudyFolder) -> bool:
    """Return whether a worker with another folder trained a trial last. It may have left copies of its files here."""
    worker = trial.user_attrs.get(OWNER, "").rpartition("/")[2]
    return bool(worker) and folder.worker_lives(worker) is None


def missing(trials: Sequence[FrozenTrial], folder: StudyFolder) -> dict[str, list[int]]:
    """Return the numbers of the finished trials whose files are on other machines alone, by the name of the host."""
    found: dict[str, list[int]] = {}
    for trial in trials:
        if trial.state.is_finished() and is_elsewhere(trial, folder) and not folder.trial(trial.number).path.exists():
            found.setdefault(host_of(trial), []).append(trial.number)
    return found


def missing_text(found: Mapping[str, Sequence[int]]) -> str:
    """Return a line that begins like "the files of trials 3, 5 (on host 'b') are not here"."""
    parts = []
    for host, numbers in found.items():
        named = "trial " if len(numbers) == 1 else "trials "
        named += ", ".join(map(str, numbers[:_MOST_NAMED])) + (", ..." if numbers[_MOST_NAMED:] else "")
        parts.append(f"{named} (on host '{host}')")
    return (
        f"the files of {'; '.join(parts)} are not here, though MLflow may have the curves; "
        f"the study's command brings copies if {KEY} is set"
    )


def host_of(trial: FrozenTrial) -> str:
    """Return the name of the host that trained a trial last."""
    return str(trial.user_attrs.get(OWNER, "")).partition("/")[0]


def stored_curves(folder: StudyFolder, number: int) -> list[dict[str, Curve]]:
    """Return the curves of a trial's runs by name, as MLflow has them. The store must be the user's own setting.

    Raises:
        ConfigError: tracking is off, the study's store is not the user's own, or it cannot be read.
    """
    store = recorded_store(folder.run)
    if store is None:
        raise ConfigError("tracking.mlflow", "is off, so MLflow has no curves of the study")
    from sweep.tracking.mlflow_curves import curves_of_trial

    return curves_of_trial(store, journal.uid(folder.run.journal) or "", number)


def refuse_unshared(trials: Sequence[FrozenTrial], folder: StudyFolder, store: Store, copies: RunCopies | None) -> None:
    """Raise ConfigError if other machines train the study and no MLflow would get all of its runs.

    A command on another machine keeps its runs in its own folder, and by default in an MLflow store there.
    """
    if copies is not None or not store.is_in_outputs:
        return
    others = {host_of(t) for t in trials if is_elsewhere(t, folder) and not folder.trial(t.number).path.exists()}
    if others:
        problem = f"host '{min(others)}' trains the study too, without a shared output_dir, and MLflow's store is a "
        problem += f"file in that of '{socket.gethostname()}', so each would have a part; share it, or add {REMEDY}"
        raise ConfigError(KEY, problem)
