"""The queue of a study's trials. A worker claims a trial, and trials whose worker died are reclaimed.

The trials of a study have the numbers 0 to `n_trials` - 1. A trial that lost its worker keeps its number: its state
becomes WAITING, and the next worker that claims it continues from its checkpoint. Trials are claimed and reclaimed only
under the study's lock, so no trial goes to two workers.

Each worker holds a file lock as long as it lives. The system releases the lock when the process dies, so a dead worker
on the same machine is recognised at once. A worker on another machine counts as dead after 90 s without a heartbeat.
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
OWNER = "worker"  # <host>/<worker>, the worker that trains it or did so last
HEARTBEAT = "beat"  # a number that increases while the owner lives
RETRIES = "retries"  # how often its worker died without progress in between
REACHED = "reached"  # the last step that was reported when its worker last died
PROBLEM = "problem"  # why it failed or diverged, in one line
STOPPED = "stopped"  # where it was pruned, in words
PACKING = "packing"  # why it trains sequentially although the study packs trials, in one line
MEMORY = "memory"  # that memory ran out with so many trials in its pack, in one line

_HEARTBEAT_INTERVAL_S = 15.0
_DEAD_AFTER_S = 90.0  # without a heartbeat, an owner on another machine counts as dead


def is_complete(trials: Sequence[FrozenTrial], n_trials: int) -> bool:
    """Return True if every trial of the study is finished."""
    return len(trials) >= n_trials and all(t.state.is_finished() for t in trials[:n_trials])


def is_settled(trials: Sequence[FrozenTrial], n_trials: int, folder: StudyFolder) -> bool:
    """Return True if no trial of the study is left to train: each is finished, or waits since it was stopped alone."""
    return len(trials) >= n_trials and all(
        t.state.is_finished() or (t.state == TrialState.WAITING and folder.is_stopped(t.number))
        for t in trials[:n_trials]
    )


def is_trained(trial: FrozenTrial, folder: StudyFolder) -> bool:
    """Return True if a worker trains the trial. One on another machine counts as alive as long as it owns the trial."""
    worker = trial.user_attrs.get(OWNER, "").rpartition("/")[2]
    return trial.state == TrialState.RUNNING and folder.worker_lives(worker) is not False


class TrialQueue:
    """One worker's view of the queue. Not thread-safe, except for the thread of `heartbeats`."""

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
        """Open the queue of an existing study.

        Args:
            storage: the study's storage.
            study_name: the study's name.
            folder: the study's folder, which has the locks of the workers.
            lock: the study's lock.
            worker: the worker's name, unique in the study. The worker holds the lock of that name in `folder`.
            max_retries: how often a trial's worker may die without progress before the trial fails.
            clock: returns seconds; tests replace it.
        """
        self._storage, self._folder, self._lock = storage, folder, lock
        self._study_id = storage.get_study_id_from_name(study_name)
        self._max_retries, self._clock = max_retries, clock
        self._host = socket.gethostname()
        self._me = f"{self._host}/{worker}"
        self._taken_from: dict[int, str] = {}  # the previous owner, by number
        self._last_heartbeats: dict[int, tuple[Any, float]] = {}  # by trial: the last heartbeat, and when it was seen

    def claim(self, n_trials: int) -> FrozenTrial | None:
        """Claim a trial for this worker: the first that waits or lost its worker, otherwise a new one.

        A trial that was stopped alone is left out.

        Args:
            n_trials: the number of trials of the study.

        Returns:
            The trial, with the state RUNNING; None if all trials are claimed or finished. If its workers died too
            often, the user attribute PROBLEM says so, and the caller has to store it as failed.
        """
        with self._lock:
            recorded = self._storage.get_all_trials(self._study_id, deepcopy=False)
            trials = numbered(recorded)
            lost = self._reclaim_lost(trials)
            waiting = [t for t in trials if t.state == TrialState.WAITING] + lost
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
        """Return True if there is a trial to claim now.

        This reclaims the trials of dead workers. A worker that starts only now could not do so: it has not seen since
        when their heartbeats are the same.
        """
        mine = self._first(n_trials)
        if len(mine) < n_trials or any(self._waits(t) for t in mine):
            return True
        if not self._lost(mine):
            return False
        with self._lock:
            return any(not self._folder.is_stopped(t.number) for t in self._reclaim_lost(self._first(n_trials)))

    def release(self, trial: FrozenTrial) -> None:
        """Set a trial that this worker has claimed to WAITING, so that any worker can claim and resume it."""
        with self._lock:
            self._storage.set_trial_state_values(trial_id(trial), TrialState.WAITING)

    def return_to_owner(self, trial: FrozenTrial) -> None:
        """Undo the claim of a trial whose previous owner is alive after all, although its heartbeats had stopped."""
        self._last_heartbeats.pop(trial_id(trial), None)
        self._storage.set_trial_user_attr(trial_id(trial), OWNER, self._taken_from[trial.number])

    def is_mine(self, trial: FrozenTrial) -> bool:
        """Return True unless another worker has reclaimed the trial, or the trial is finished."""
        now = self._storage.get_trial(trial_id(trial))
        return now.state == TrialState.RUNNING and now.user_attrs.get(OWNER) == self._me

    def _waits(self, trial: FrozenTrial) -> bool:
        return trial.state == TrialState.WAITING and not self._folder.is_stopped(trial.number)

    def _take(self, trial: FrozenTrial) -> FrozenTrial | None:
        """Claim a waiting trial. Return None if another worker was faster, which the lock rarely allows."""
        self._taken_from[trial.number] = trial.user_attrs.get(OWNER, "")
        if not self._storage.set_trial_state_values(trial_id(trial), TrialState.RUNNING):
            return None
        self._storage.set_trial_user_attr(trial_id(trial), OWNER, self._me)
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
        lost = self._lost(trials)
        for trial in lost:
            self._reclaim(trial)
        return lost

    def _reclaim(self, trial: FrozenTrial) -> None:
        """Set a dead worker's trial to WAITING. If its workers died too often without progress, note the PROBLEM."""
        reached = max(trial.intermediate_values, default=0)
        further = reached > trial.user_attrs.get(REACHED, 0)
        retries = 1 if further else trial.user_attrs.get(RETRIES, 0) + 1
        attrs: dict[str, Any] = {RETRIES: retries, REACHED: reached}
        if retries > self._max_retries and PROBLEM not in trial.user_attrs:  # it may have taken too long
            times = "once" if retries == 1 else f"{retries} times"
            attrs[PROBLEM] = f"its worker died {times} without the trial getting further; out of memory, perhaps"
        for name, value in attrs.items():
            self._storage.set_trial_user_attr(trial_id(trial), name, value)
        self._storage.set_trial_state_values(trial_id(trial), TrialState.WAITING)

    def _lost(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the trials whose worker is dead."""
        lives = functools.cache(self._folder.worker_lives)  # a packed worker owns many trials: check its lock once
        return [t for t in trials if t.state == TrialState.RUNNING and self._is_dead(t, lives)]

    def _is_dead(self, trial: FrozenTrial, lives: Callable[[str], bool | None]) -> bool:
        """Return True if the trial's owner is dead: it lost its lock, or on another machine its heartbeats stopped.

        A silent owner counts as dead `_DEAD_AFTER_S` after this queue first saw its last heartbeat. The clocks of two
        machines are never compared.
        """
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
    def heartbeats(self, trials: Collection[FrozenTrial], every_s: float = _HEARTBEAT_INTERVAL_S) -> Iterator[None]:
        """Store a heartbeat with each of the trials every `every_s` seconds, in a thread, until the context ends.

        The collection may change in the meantime. An error of the storage is ignored: other calls will raise it.
        """
        over = threading.Event()
        beats: Counter[int] = Counter()

        def heartbeat() -> None:
            while not over.wait(every_s):
                for trial in list(trials):
                    number = trial.number
                    beats[number] = (beats[number] or trial.user_attrs.get(HEARTBEAT, 0)) + 1
                    with suppress(Exception):  # other calls report a storage that cannot be reached
                        self._storage.set_trial_user_attr(trial_id(trial), HEARTBEAT, beats[number])

        thread = threading.Thread(target=heartbeat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
