"""The queue of a study in a journal file or behind Optuna's gRPC proxy, by the methods that every storage has."""

import functools
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from sweep.execution.attempts import NUMBER, numbered
from sweep.execution.queue import DEAD_AFTER_S, HEARTBEAT, OWNER, TrialQueue
from sweep.storage.lock import StudyLock
from sweep.storage.optuna_internals import trial_id
from sweep.tracking.folders import StudyFolder


class StorageQueue(TrialQueue):
    """A queue whose heartbeats are numbers that increase: there is no clock that all machines share.

    A silent owner counts as dead `DEAD_AFTER_S` after this queue first saw its last heartbeat.
    """

    def __init__(
        self,
        storage: BaseStorage,
        study_name: str,
        folder: StudyFolder,
        lock: StudyLock,
        worker: str,
        max_retries: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the queue. See `TrialQueue`; the study's name and lock are those of the study in `storage`."""
        super().__init__(folder, worker, max_retries, clock)
        self._storage, self._lock = storage, lock
        self._study_id = storage.get_study_id_from_name(study_name)
        self._last_heartbeats: dict[int, tuple[Any, float]] = {}  # by trial: the last heartbeat, and when it was seen
        self._beats: Counter[int] = Counter()  # by trial: what this worker has stored

    def claim(self, n_trials: int) -> FrozenTrial | None:
        with self._lock:
            recorded = self._storage.get_all_trials(self._study_id, deepcopy=False)
            trials = numbered(recorded)
            waiting = [t for t in trials if t.state == TrialState.WAITING] + self._reclaim_lost(trials)
            for trial in sorted(waiting, key=lambda t: t.number):
                if trial.number >= n_trials or self._folder.is_stopped(trial.number):
                    continue
                if taken := self._take(trial):
                    return taken
            if len(trials) >= n_trials:
                return None
            attrs: dict[str, Any] = {OWNER: self._me}
            if len(recorded) > len(trials):  # retried trials use up numbers of Optuna's
                attrs[NUMBER] = len(trials)
            template = optuna.create_trial(state=TrialState.RUNNING, user_attrs=attrs)
            return self._read(self._storage.create_new_trial(self._study_id, template))

    def has_work(self, n_trials: int) -> bool:
        mine = self._first(n_trials)
        if len(mine) < n_trials or any(self._waits(t) for t in mine):
            return True
        if not self._lost(mine):
            return False
        with self._lock:
            return any(not self._folder.is_stopped(t.number) for t in self._reclaim_lost(self._first(n_trials)))

    def is_shared(self, n_trials: int) -> bool:
        running = (t for t in self._first(n_trials) if t.state == TrialState.RUNNING)
        return any(not t.user_attrs.get(OWNER, "").startswith(self._launch) for t in running)

    def release(self, trial: FrozenTrial) -> None:
        with self._lock:
            if self.is_mine(trial):
                self._storage.set_trial_state_values(trial_id(trial), TrialState.WAITING)

    def return_to_owner(self, trial: FrozenTrial) -> None:
        self._last_heartbeats.pop(trial_id(trial), None)
        with suppress(UpdateFinishedTrialError):  # its owner has just finished it
            self._storage.set_trial_user_attr(trial_id(trial), OWNER, self._taken_from[trial.number])

    def is_mine(self, trial: FrozenTrial) -> bool:
        now = self._storage.get_trial(trial_id(trial))
        return now.state == TrialState.RUNNING and now.user_attrs.get(OWNER) == self._me

    def n_by_state(self, first: int = 0) -> Mapping[TrialState, int]:
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        return Counter(t.state for t in trials if t.number >= first)

    def n_left(self, n_trials: int) -> int:
        return n_trials - sum(t.state.is_finished() for t in self._first(n_trials))

    def is_settled(self, n_trials: int) -> bool:
        trials = self._first(n_trials)
        return len(trials) >= n_trials and all(
            t.state.is_finished() or (t.state == TrialState.WAITING and not self._waits(t)) for t in trials
        )

    def progress(self) -> tuple[int, int]:
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        return sum(t.state.is_finished() for t in trials), sum(len(t.intermediate_values) for t in trials)

    def has_begun(self, launch: str) -> bool:
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        return any(f"/{launch}-" in t.user_attrs.get(OWNER, "") for t in trials)

    def leave(self) -> None:  # a worker that trains nothing has left no trace
        pass

    def _beat(self, trials: Collection[FrozenTrial]) -> None:
        """Store a heartbeat with each trial. One that is over is left out."""
        for trial in trials:
            beat = (self._beats[trial_id(trial)] or trial.user_attrs.get(HEARTBEAT, 0)) + 1
            with suppress(UpdateFinishedTrialError):
                self._storage.set_trial_user_attr(trial_id(trial), HEARTBEAT, beat)
            self._beats[trial_id(trial)] = beat

    def _waits(self, trial: FrozenTrial) -> bool:
        return trial.state == TrialState.WAITING and not self._folder.is_stopped(trial.number)

    def _take(self, trial: FrozenTrial) -> FrozenTrial | None:
        """Claim a waiting trial. Return None if it no longer waits: a worker that counted as dead has finished it."""
        self._taken_from[trial.number] = trial.user_attrs.get(OWNER, "")
        try:
            if not self._storage.set_trial_state_values(trial_id(trial), TrialState.RUNNING):
                return None
            self._storage.set_trial_user_attr(trial_id(trial), OWNER, self._me)
        except UpdateFinishedTrialError:
            return None
        return self._read(trial_id(trial))

    def _read(self, key: int) -> FrozenTrial:
        """Return the trial with this id of Optuna's, with its number in the study."""
        return numbered([self._storage.get_trial(key)])[0]

    def _first(self, n_trials: int) -> list[FrozenTrial]:
        """Return the study's trials, but none that a larger `n_trials` has made."""
        trials = numbered(self._storage.get_all_trials(self._study_id, deepcopy=False))
        return [t for t in trials if t.number < n_trials]

    def _reclaim_lost(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Reclaim the trials whose worker is dead, and return them. The caller holds the lock."""
        return [trial for trial in self._lost(trials) if self._reclaim(trial)]

    def _reclaim(self, trial: FrozenTrial) -> bool:
        """Set a dead worker's trial to WAITING. Return False if it is finished.

        It may have finished after it was read and before its worker was looked for. So it is read again.
        """
        now = self._storage.get_trial(trial_id(trial))
        try:
            for name, value in self._deaths(now.user_attrs, max(now.intermediate_values, default=0)).items():
                self._storage.set_trial_user_attr(trial_id(trial), name, value)
            return self._storage.set_trial_state_values(trial_id(trial), TrialState.WAITING)
        except UpdateFinishedTrialError:
            return False

    def _lost(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the trials whose worker is dead."""
        lives = functools.cache(self._folder.worker_lives)  # a packed worker owns many trials: check its lock once
        return [t for t in trials if t.state == TrialState.RUNNING and self._is_dead(t, lives)]

    def _is_dead(self, trial: FrozenTrial, lives: Callable[[str], bool | None]) -> bool:
        """Return True if the trial's owner is dead: it lost its lock, or on another machine its heartbeats stopped."""
        host, _, worker = trial.user_attrs.get(OWNER, "").partition("/")
        if host == self._host and (known := lives(worker)) is not None:
            return not known
        heartbeat, now = trial.user_attrs.get(HEARTBEAT, 0), self._clock()
        before, since = self._last_heartbeats.get(trial_id(trial), (None, now))
        if before != (host, worker, heartbeat):
            self._last_heartbeats[trial_id(trial)] = ((host, worker, heartbeat), now)
            return False
        return now - since > DEAD_AFTER_S
