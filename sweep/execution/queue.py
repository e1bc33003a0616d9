"""Who runs which trial: hands out a study's trials, each to one worker, and takes back those whose worker died.

A study's trials are the numbers 0 to `n_trials` - 1. A trial that lost its worker keeps its number: it is WAITING
again, and whoever takes it next goes on from its checkpoint. All handing out happens under the study's lock.
"""

import functools
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from sweep.execution.attempts import NUMBER, numbered
from sweep.storage.lock import StudyLock
from sweep.storage.optuna_internals import trial_id
from sweep.tracking.folders import StudyFolder

# A trial's user attributes.
OWNER = "worker"  # <host>/<worker> that runs it or did so last
HEARTBEAT = "beat"  # counts up while the owner lives
RETRIES = "retries"  # deaths of its worker since it last got further
REACHED = "reached"  # the step it had reached at the last of them
PROBLEM = "problem"  # why it failed or diverged, in one line
STOPPED = "stopped"  # where it was pruned, in words
PACKING = "packing"  # what there is to say of its pack, such as why its kind trains alone

_HEARTBEAT_INTERVAL_S = 15.0
_DEAD_AFTER_S = 90.0  # without a beat, the owner on another machine is taken for dead


def is_complete(trials: Sequence[FrozenTrial], n_trials: int) -> bool:
    """Whether every trial of the study is finished."""
    return len(trials) >= n_trials and all(t.state.is_finished() for t in trials[:n_trials])


class TrialQueue:
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
        self._storage, self._folder, self._lock = storage, folder, lock
        self._study_id = storage.get_study_id_from_name(study_name)
        self._max_retries, self._clock = max_retries, clock
        self._host = socket.gethostname()
        self._me = f"{self._host}/{worker}"
        self._taken_from: dict[int, str] = {}  # the owner before, by number
        self._last_heartbeats: dict[int, tuple[Any, float]] = {}  # by trial: its last beat, and when it was first seen

    def claim(self, n_trials: int) -> FrozenTrial | None:
        """A trial for this worker to run, one that waits or else a new one; None when all are taken or done.

        One whose workers died too often has its PROBLEM among the user attributes: it is to be recorded as failed.
        """
        with self._lock:
            recorded = self._storage.get_all_trials(self._study_id, deepcopy=False)
            trials = numbered(recorded)
            lost = self._lost(trials)
            for trial in lost:
                self._reclaim(trial)
            waiting = [t for t in trials if t.state == TrialState.WAITING] + lost
            for trial in sorted(waiting, key=lambda t: t.number):
                if trial.number < n_trials and (taken := self._take(trial)):
                    return taken
            if len(trials) >= n_trials:
                return None
            attrs: dict[str, Any] = {OWNER: self._me}
            if len(recorded) > len(trials):  # some were trained again
                attrs[NUMBER] = len(trials)
            template = optuna.create_trial(state=TrialState.RUNNING, user_attrs=attrs)
            return self._read(self._storage.create_new_trial(self._study_id, template))

    def has_work(self, n_trials: int) -> bool:
        """Whether there is a trial to claim now, or one that lost its worker."""
        trials = numbered(self._storage.get_all_trials(self._study_id, deepcopy=False))
        mine = [t for t in trials if t.number < n_trials]
        if len(mine) < n_trials or any(t.state == TrialState.WAITING for t in mine):
            return True
        return bool(self._lost(mine))

    def release(self, trial: FrozenTrial) -> None:
        """Lets another worker, or a later one, go on with the trial."""
        with self._lock:
            self._storage.set_trial_state_values(trial_id(trial), TrialState.WAITING)

    def return_to_owner(self, trial: FrozenTrial) -> None:
        """For a trial whose silent owner turns out to be alive."""
        self._last_heartbeats.pop(trial_id(trial), None)
        self._storage.set_trial_user_attr(trial_id(trial), OWNER, self._taken_from[trial.number])

    def is_mine(self, trial: FrozenTrial) -> bool:
        """Whether no other worker has taken the trial over, or finished it."""
        now = self._storage.get_trial(trial_id(trial))
        return now.state == TrialState.RUNNING and now.user_attrs.get(OWNER) == self._me

    def _take(self, trial: FrozenTrial) -> FrozenTrial | None:
        """The waiting trial as this worker's own; None if another was faster, which the lock mostly rules out."""
        self._taken_from[trial.number] = trial.user_attrs.get(OWNER, "")
        if not self._storage.set_trial_state_values(trial_id(trial), TrialState.RUNNING):
            return None
        self._storage.set_trial_user_attr(trial_id(trial), OWNER, self._me)
        return self._read(trial_id(trial))

    def _read(self, key: int) -> FrozenTrial:
        return numbered([self._storage.get_trial(key)])[0]

    def _reclaim(self, trial: FrozenTrial) -> None:
        """From a dead worker."""
        reached = max(trial.intermediate_values, default=0)
        further = reached > trial.user_attrs.get(REACHED, 0)
        retries = 1 if further else trial.user_attrs.get(RETRIES, 0) + 1
        attrs: dict[str, Any] = {RETRIES: retries, REACHED: reached}
        if retries > self._max_retries:
            attrs[PROBLEM] = (
                f"its worker died {retries} times without the trial getting further; out of memory, perhaps"
            )
        for name, value in attrs.items():
            self._storage.set_trial_user_attr(trial_id(trial), name, value)
        self._storage.set_trial_state_values(trial_id(trial), TrialState.WAITING)

    def _lost(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Those whose worker is dead. A worker has many where it packs them, and is looked for once."""
        lives = functools.cache(self._folder.worker_lives)
        return [t for t in trials if t.state == TrialState.RUNNING and self._is_dead(t, lives)]

    def _is_dead(self, trial: FrozenTrial, lives: Callable[[str], bool | None]) -> bool:
        """A worker of this machine is known to be dead by its lock, at once; another by its silence."""
        host, _, worker = trial.user_attrs.get(OWNER, "").partition("/")
        if host == self._host and (known := lives(worker)) is not None:
            return not known
        heartbeat, now = trial.user_attrs.get(HEARTBEAT, 0), self._clock()
        before, since = self._last_heartbeats.get(trial_id(trial), (None, now))
        if before != (host, worker, heartbeat):
            self._last_heartbeats[trial_id(trial)] = ((host, worker, heartbeat), now)
            return False
        return now - since > _DEAD_AFTER_S

    @contextmanager
    def beating(self, trials: Collection[FrozenTrial], every_s: float = _HEARTBEAT_INTERVAL_S) -> Iterator[None]:
        """Tells other machines, while it lasts, that the worker of the trials lives; they may change meanwhile."""
        over = threading.Event()
        beats: Counter[int] = Counter()

        def heartbeat() -> None:
            while not over.wait(every_s):
                for trial in list(trials):
                    number = trial.number
                    beats[number] = (beats[number] or trial.user_attrs.get(HEARTBEAT, 0)) + 1
                    with suppress(Exception):  # a storage that is out of reach shows elsewhere
                        self._storage.set_trial_user_attr(trial_id(trial), HEARTBEAT, beats[number])

        thread = threading.Thread(target=heartbeat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
