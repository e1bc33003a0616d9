"""Who runs which trial: hands out a study's trials, each to one worker, and takes back those whose worker died.

A study's trials are the numbers 0 to `n_trials` - 1. A trial that lost its worker keeps its number: it is WAITING
again, and whoever takes it next goes on from its checkpoint. All handing out happens under the study's lock.
"""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from sweep.record.folder import StudyFolder
from sweep.study.lock import StudyLock

# A trial's user attributes.
OWNER = "worker"  # <host>/<worker> that runs it or did so last; written before the trial is RUNNING
BEAT = "beat"  # counts up while the owner lives
RETRIES = "retries"  # deaths of its worker since it last got further
REACHED = "reached"  # the step it had reached at the last of them
PROBLEM = "problem"  # why it failed, in one line

_BEAT_EVERY_S = 15.0
_SILENT_S = 90.0  # without a beat, the owner on another machine is taken for dead


class Ledger:
    """One worker's view of the study.

    worker: its name, unique in the study, whose lock in `folder` it holds. clock: seconds, for tests.
    """

    def __init__(
        self,
        storage: BaseStorage,
        study_name: str,
        folder: StudyFolder,
        lock: StudyLock,
        worker: str,
        max_retries: int,
        clock: Any = time.monotonic,
    ) -> None:
        self._storage, self._folder, self._lock, self._worker = storage, folder, lock, worker
        self._study_id = storage.get_study_id_from_name(study_name)
        self._max_retries, self._clock = max_retries, clock
        self._host = socket.gethostname()
        self._heard: dict[int, tuple[Any, float]] = {}  # by trial: its last beat, and when it was first seen

    def claim(self, n_trials: int) -> FrozenTrial | None:
        """A trial for this worker to run, one that waits or else a new one; None when all are taken or done."""
        owner = f"{self._host}/{self._worker}"
        with self._lock:
            trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
            self._take_back(t for t in trials if t.state == TrialState.RUNNING)
            waiting = self._storage.get_all_trials(self._study_id, deepcopy=False, states=(TrialState.WAITING,))
            for trial in waiting:
                if trial.number < n_trials:
                    self._storage.set_trial_user_attr(trial._trial_id, OWNER, owner)
                    self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
                    return self._storage.get_trial(trial._trial_id)
            if len(trials) >= n_trials:
                return None
            template = optuna.create_trial(state=TrialState.RUNNING, user_attrs={OWNER: owner})
            return self._storage.get_trial(self._storage.create_new_trial(self._study_id, template))

    def has_work(self, n_trials: int) -> bool:
        """Whether there is a trial to claim now, or one that lost its worker."""
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        mine = [t for t in trials if t.number < n_trials]
        return len(mine) < n_trials or any(
            t.state == TrialState.WAITING or (t.state == TrialState.RUNNING and self._is_dead(t)) for t in mine
        )

    def give_back(self, trial: FrozenTrial) -> None:
        """Lets another worker, or a later one, go on with the trial."""
        with self._lock:
            self._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)

    def _take_back(self, running: Iterator[FrozenTrial]) -> None:
        for trial in running:
            if not self._is_dead(trial):
                continue
            reached = max(trial.intermediate_values, default=0)
            further = reached > trial.user_attrs.get(REACHED, 0)
            retries = 1 if further else trial.user_attrs.get(RETRIES, 0) + 1
            if retries > self._max_retries:
                problem = f"its worker died {retries} times without the trial getting further; out of memory, perhaps"
                self._storage.set_trial_user_attr(trial._trial_id, PROBLEM, problem)
                self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
                continue
            self._storage.set_trial_user_attr(trial._trial_id, RETRIES, retries)
            self._storage.set_trial_user_attr(trial._trial_id, REACHED, reached)
            self._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)

    def _is_dead(self, trial: FrozenTrial) -> bool:
        """A worker of this machine is known to be dead by its lock, at once; another by its silence."""
        host, _, worker = trial.user_attrs.get(OWNER, "").partition("/")
        if host == self._host:
            lives = self._folder.worker_lives(worker)
            if lives is not None:
                return not lives
        beat, now = trial.user_attrs.get(BEAT, 0), self._clock()
        before, since = self._heard.get(trial._trial_id, (None, now))
        if before != (host, worker, beat):
            self._heard[trial._trial_id] = ((host, worker, beat), now)
            return False
        return now - since > _SILENT_S

    @contextmanager
    def beating(self, trial: FrozenTrial, every_s: float = _BEAT_EVERY_S) -> Iterator[None]:
        """Tells other machines, while it lasts, that the trial's worker lives."""
        over = threading.Event()

        def beat() -> None:
            n = trial.user_attrs.get(BEAT, 0)
            while not over.wait(every_s):
                n += 1
                with suppress(Exception):  # a storage that is out of reach shows elsewhere
                    self._storage.set_trial_user_attr(trial._trial_id, BEAT, n)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
