"""The queue of a study in a database: a claim reads and writes a few rows, however many trials run."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from sweep.execution.attempts import ATTEMPT, NUMBER, numbered
from sweep.execution.queue import DEAD_AFTER_S, OWNER, TrialQueue
from sweep.storage.database import Database
from sweep.storage.lock import StudyLock
from sweep.storage.optuna_internals import trial_id
from sweep.storage.optuna_tables import OptunaTables, TrialRow
from sweep.storage.worker_table import WorkerRow, WorkerTable
from sweep.tracking.folders import StudyFolder

if TYPE_CHECKING:
    from sqlalchemy import Connection

_NOBODY = "/"  # owns a trial whose worker died before it could store its name
_TRUST_S = 30.0  # after an outage, until heartbeats are judged again: by then every worker that lives has stored one


class DatabaseQueue(TrialQueue):
    """A queue whose heartbeats are times of the database's clock, so a worker that has just started can judge them."""

    def __init__(
        self,
        database: Database,
        study_name: str,
        folder: StudyFolder,
        lock: StudyLock,
        worker: str,
        max_retries: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the queue. See `TrialQueue`; the study's name and lock are those of the study in `database`."""
        super().__init__(folder, worker, max_retries, clock)
        self._database, self._lock = database, lock
        self._study_id = database.get_study_id_from_name(study_name)
        self._trials, self._workers = OptunaTables(self._study_id), WorkerTable(self._study_id)
        self._outage_at = float("-inf")
        self._adopt()

    def claim(self, n_trials: int) -> FrozenTrial | None:
        with self._locked() as connection:
            self._workers.heartbeat(connection, self._host, self._worker)
            self._reclaim_lost(connection)
            trial = self._claim_waiting(connection, n_trials) or self._claim_new(connection, n_trials)
        if trial is None:
            return None
        self._database.train(self._study_id, trial)
        return numbered([trial])[0]

    def has_work(self, n_trials: int) -> bool:
        with self._connected() as connection:
            if self._waiting(connection, n_trials) or self._next(connection)[1] < n_trials:
                return True
            if not self._dead(connection):
                return False
        with self._locked() as connection:
            self._reclaim_lost(connection)
            return bool(self._waiting(connection, n_trials))

    def is_shared(self, n_trials: int) -> bool:
        with self._connected() as connection:
            rows = self._trials.running_elsewhere(connection, OWNER, self._launch, NUMBER)
        return any(row.attrs.get(NUMBER, row.number) < n_trials for row in rows)

    def release(self, trial: FrozenTrial) -> None:
        with self._locked() as connection:
            if self._is_mine(connection, trial):
                self._trials.wait(connection, [trial_id(trial)])
        self._database.forget(trial_id(trial))

    def return_to_owner(self, trial: FrozenTrial) -> None:
        owner = self._taken_from.get(trial.number) or _NOBODY
        with self._locked() as connection:
            self._trials.set_attrs(connection, {trial_id(trial): {OWNER: owner}})
            self._note(connection, owner)
        self._database.forget(trial_id(trial))

    def is_mine(self, trial: FrozenTrial) -> bool:
        with self._connected() as connection:
            is_mine = self._is_mine(connection, trial)
        if not is_mine:
            self._database.forget(trial_id(trial))
        return is_mine

    def n_by_state(self, first: int = 0) -> Mapping[TrialState, int]:
        with self._connected() as connection:
            return self._trials.counts(connection, first)

    def n_left(self, n_trials: int) -> int:
        with self._connected() as connection:
            n_open = self._trials.n_open(connection, NUMBER, n_trials)
            return max(0, n_trials - self._next(connection)[1]) + sum(n_open.values())

    def is_settled(self, n_trials: int) -> bool:
        with self._connected() as connection:
            if self._next(connection)[1] < n_trials:
                return False
            runs = self._trials.n_open(connection, NUMBER, n_trials).get(TrialState.RUNNING, 0)
            return not runs and not self._waiting(connection, n_trials)

    def progress(self) -> tuple[int, int]:
        with self._connected() as connection:
            n = self._trials.counts(connection)
            return sum(n[state] for state in n if state.is_finished()), self._trials.n_steps(connection)

    def has_begun(self, launch: str) -> bool:
        with self._connected() as connection:
            return self._trials.has_part(connection, OWNER, f"/{launch}-")

    def leave(self) -> None:
        with self._connected() as connection:
            self._workers.forget(connection, [WorkerRow(self._host, self._worker, 0.0)])

    def _beat(self, trials: Collection[FrozenTrial]) -> None:
        """Store one heartbeat, however many trials there are."""
        with self._connected() as connection:
            self._workers.heartbeat(connection, self._host, self._worker)

    @contextmanager
    def _connected(self) -> Iterator["Connection"]:
        """Begin a transaction."""
        with self._noting_outages(), self._database.engine.begin() as connection:
            yield connection

    @contextmanager
    def _locked(self) -> Iterator["Connection"]:
        """Begin a transaction that holds the study's lock."""
        with self._noting_outages(), self._lock.transaction(self._database.engine) as connection:
            yield connection

    @contextmanager
    def _noting_outages(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._outage_at = self._clock()
            raise

    def _claim_waiting(self, connection: "Connection", n_trials: int) -> FrozenTrial | None:
        for number, row in self._waiting(connection, n_trials):
            if self._trials.run(connection, row.trial_id):
                self._taken_from[number] = row.attrs.get(OWNER, "")
                self._trials.set_attrs(connection, {row.trial_id: {OWNER: self._me}})
                return self._trials.read(connection, [row.trial_id])[0]
        return None

    def _claim_new(self, connection: "Connection", n_trials: int) -> FrozenTrial | None:
        self._trials.lock_study(connection)
        of_optuna, number = self._next(connection)
        if number >= n_trials:
            return None
        attrs: dict[str, Any] = {OWNER: self._me}
        if of_optuna != number:  # retried trials use up numbers of Optuna's
            attrs[NUMBER] = number
        return self._trials.create(connection, of_optuna, attrs)

    def _waiting(self, connection: "Connection", n_trials: int) -> Sequence[tuple[int, TrialRow]]:
        """Return the trials that can be claimed, each with its number in the study, in the order of these numbers."""
        rows = self._trials.in_state(connection, TrialState.WAITING, NUMBER, OWNER)
        found = sorted(((row.attrs.get(NUMBER, row.number), row) for row in rows), key=lambda pair: pair[0])
        return [pair for pair in found if pair[0] < n_trials and not self._folder.is_stopped(pair[0])]

    def _next(self, connection: "Connection") -> tuple[int, int]:
        """Return the number of the next new trial in Optuna, and in the study."""
        last = self._trials.last(connection, NUMBER, ATTEMPT)
        if last is None:
            return 0, 0
        first = self._trials.last(connection, NUMBER, without=ATTEMPT) if ATTEMPT in last.attrs else last
        assert first is not None  # a trial that is tried again
        return last.number + 1, first.attrs.get(NUMBER, first.number) + 1

    def _reclaim_lost(self, connection: "Connection") -> None:
        """Set the trials of dead workers to WAITING."""
        dead = self._dead(connection)
        if not dead:
            return
        lost = self._trials.wait(connection, self._trials.owned(connection, OWNER, [row.owner for row in dead]))
        steps, attrs = self._trials.last_steps(connection, lost), self._trials.attrs(connection, lost)
        self._trials.set_attrs(connection, {key: self._deaths(attrs[key], steps.get(key, 0)) for key in lost})
        self._workers.forget(connection, dead)

    def _dead(self, connection: "Connection") -> list[WorkerRow]:
        """Return the workers that are dead: of this machine those without their lock, of others silent ones."""
        rows = self._workers.of_host_or_silent(connection, self._host, DEAD_AFTER_S)
        return [row for row in rows if self._is_dead(row)]

    def _is_dead(self, row: WorkerRow) -> bool:
        if row.host == self._host and (lives := self._folder.worker_lives(row.worker)) is not None:
            return not lives
        return row.silent_s > DEAD_AFTER_S and self._clock() - self._outage_at > _TRUST_S

    def _is_mine(self, connection: "Connection", trial: FrozenTrial) -> bool:
        state, row = self._trials.state(connection, trial_id(trial), OWNER)
        return state == TrialState.RUNNING and row.attrs.get(OWNER) == self._me

    def _adopt(self) -> None:
        """Note the owners of running trials that no row is about, as in a study of an earlier version."""
        with self._connected() as connection:
            known = {row.owner for row in self._workers.all(connection)}
            running = self._trials.in_state(connection, TrialState.RUNNING, OWNER)
            lost = {row.trial_id: {OWNER: _NOBODY} for row in running if OWNER not in row.attrs}
            self._trials.set_attrs(connection, lost)
            for owner in {row.attrs.get(OWNER, _NOBODY) for row in running} - known:
                self._note(connection, owner)

    def _note(self, connection: "Connection", owner: str) -> None:
        """Note that an owner of trials may live."""
        host, _, worker = owner.partition("/")
        self._workers.heartbeat(connection, host, worker)
