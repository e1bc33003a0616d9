"""The queue of a study's trials. A worker claims a trial, and trials whose worker died are reclaimed.

The trials of a study have the numbers 0 to `n_trials` - 1. A trial that lost its worker keeps its number: its state
becomes WAITING, and the next worker that claims it continues from its checkpoint. Trials are claimed and reclaimed only
under the study's lock, so no trial goes to two workers.

Each worker holds a file lock as long as it lives. The system releases the lock when the process dies, so a dead worker
on the same machine is recognised at once. A worker on another machine counts as dead after 75 s without a heartbeat.

There are two queues, by the study's storage: `StorageQueue` and `DatabaseQueue`.
"""

import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from sweep.tracking.folders import StudyFolder
from sweep.utils.background import in_background

# A trial's user attributes.
OWNER = "worker"  # <host>/<worker>, the worker that trains it or did so last
HEARTBEAT = "beat"  # a number that increases while the owner lives; a database has a table of workers instead
RETRIES = "retries"  # how often its worker died without progress in between
REACHED = "reached"  # the last step that was reported when its worker last died
PROBLEM = "problem"  # why it failed or diverged, in one line
STOPPED = "stopped"  # where it was pruned, in words
PACKING = "packing"  # why it trains sequentially although the study packs trials, in one line
MEMORY = "memory"  # that memory ran out with so many trials in its pack, in one line

_HEARTBEAT_INTERVAL_S = 15.0
_RETRY_S = 2.0  # after a heartbeat that did not reach the storage
# Without a heartbeat, an owner on another machine counts as dead. So it survives an outage of a minute.
DEAD_AFTER_S = 75.0


def is_complete(trials: Sequence[FrozenTrial], n_trials: int) -> bool:
    """Return True if every trial of the study is finished."""
    return len(trials) >= n_trials and all(t.state.is_finished() for t in trials[:n_trials])


def is_trained(trial: FrozenTrial, folder: StudyFolder) -> bool:
    """Return True if a worker trains the trial. One on another machine counts as alive as long as it owns the trial."""
    worker = trial.user_attrs.get(OWNER, "").rpartition("/")[2]
    return trial.state == TrialState.RUNNING and folder.worker_lives(worker) is not False


class TrialQueue(ABC):
    """One worker's view of the queue. Not thread-safe, except for the thread of `heartbeats`."""

    def __init__(self, folder: StudyFolder, worker: str, max_retries: int, clock: Callable[[], float]) -> None:
        """Open the queue of an existing study.

        Args:
            folder: the study's folder, which has the locks of the workers.
            worker: the worker's name, unique in the study. The worker holds the lock of that name in `folder`.
            max_retries: how often a trial's worker may die without progress before the trial fails.
            clock: returns seconds; tests replace it.
        """
        self._folder, self._worker, self._max_retries, self._clock = folder, worker, max_retries, clock
        self._host = socket.gethostname()
        self._me = f"{self._host}/{worker}"
        # Begins the names of workers that die with this one.
        self._launch = f"{self._host}/{worker.rpartition('-')[0]}-"
        self._taken_from: dict[int, str] = {}  # the previous owner, by number

    @abstractmethod
    def claim(self, n_trials: int) -> FrozenTrial | None:
        """Claim a trial for this worker: the first that waits or lost its worker, otherwise a new one.

        A trial that was stopped alone is left out.

        Args:
            n_trials: the number of trials of the study.

        Returns:
            The trial, with the state RUNNING; None if all trials are claimed or finished. If its workers died too
            often, the user attribute PROBLEM says so, and the caller has to store it as failed.
        """

    @abstractmethod
    def has_work(self, n_trials: int) -> bool:
        """Return True if there is a trial to claim now. This reclaims the trials of dead workers."""

    @abstractmethod
    def is_shared(self, n_trials: int) -> bool:
        """Return True if a worker of another machine or another launch trains a trial, which may come back."""

    @abstractmethod
    def release(self, trial: FrozenTrial) -> None:
        """Set a trial of this worker to WAITING, so that any worker can claim and resume it."""

    @abstractmethod
    def return_to_owner(self, trial: FrozenTrial) -> None:
        """Undo the claim of a trial whose previous owner is alive after all, although its heartbeats had stopped."""

    @abstractmethod
    def is_mine(self, trial: FrozenTrial) -> bool:
        """Return True unless another worker has reclaimed the trial, or the trial is finished."""

    @abstractmethod
    def n_by_state(self, first: int = 0) -> Mapping[TrialState, int]:
        """Return how many trials are in each state, from Optuna's number `first` on. Each attempt counts."""

    @abstractmethod
    def n_left(self, n_trials: int) -> int:
        """Return how many of the first `n_trials` trials of the study are not finished, or do not exist yet."""

    @abstractmethod
    def is_settled(self, n_trials: int) -> bool:
        """Return True if no trial is left to train: each is finished, or waits since it was stopped alone."""

    @abstractmethod
    def progress(self) -> tuple[int, int]:
        """Return how many attempts are finished, and how many epochs all of them have reported."""

    @abstractmethod
    def has_begun(self, launch: str) -> bool:
        """Return True if a worker of a launch, on any machine, has claimed a trial that nobody else has taken since."""

    @abstractmethod
    def leave(self) -> None:
        """Note that this worker ends in order, and trains nothing."""

    @abstractmethod
    def _beat(self, trials: Collection[FrozenTrial]) -> None:
        """Store that this worker lives, and trains the trials."""

    def previous_owner(self, trial: FrozenTrial) -> str | None:
        """Return the worker that trained a trial before this worker claimed it, as <host>/<name>; None if none did."""
        return self._taken_from.get(trial.number) or None

    @contextmanager
    def heartbeats(self, trials: Collection[FrozenTrial], every_s: float = _HEARTBEAT_INTERVAL_S) -> Iterator[None]:
        """Store a heartbeat every `every_s` seconds, in a thread, until the context ends.

        An error of the storage is ignored: other calls will raise it.

        Args:
            trials: what this worker trains. The collection may change in the meantime.
            every_s: seconds between two heartbeats.
        """

        def heartbeat(over: threading.Event) -> None:
            pause_s = every_s
            while not over.wait(pause_s):
                try:
                    self._beat(list(trials))
                    pause_s = every_s
                except Exception:  # other calls report a storage that cannot be reached
                    pause_s = min(every_s, _RETRY_S)

        with in_background(heartbeat):
            yield

    def _deaths(self, attrs: Mapping[str, Any], reached: int) -> dict[str, Any]:
        """Return the user attributes of a trial whose worker has died.

        If its workers died too often without progress, they have a PROBLEM.

        Args:
            attrs: its user attributes so far.
            reached: the last step that it reported.
        """
        retries = 1 if reached > attrs.get(REACHED, 0) else attrs.get(RETRIES, 0) + 1
        changed: dict[str, Any] = {RETRIES: retries, REACHED: reached}
        if retries > self._max_retries and PROBLEM not in attrs:  # it may have taken too long
            times = "once" if retries == 1 else f"{retries} times"
            changed[PROBLEM] = f"its worker died {times} without the trial getting further; out of memory, perhaps"
        return changed
