"""Optuna's storage in a database, for many workers: what a claim or a report costs hardly grows with their number.

Optuna's own reads all trials that have not ended, whole, whenever it reads any. This one reads a finished trial once,
and the others only if they are asked for. What a process asks about a trial that it trains comes from memory.
"""

import copy
import threading
from collections.abc import Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import sqlalchemy as sa
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage, _StudyInfo
from optuna.trial import FrozenTrial, TrialState

from sweep.config.metrics import sign_of
from sweep.storage import worker_table
from sweep.storage.optuna_internals import rungs_ahead, trial_id
from sweep.storage.optuna_tables import AtRung, OptunaTables, report, set_system_attr


class _Thread(threading.local):
    judged: FrozenTrial | None = None  # by a pruner that compares rungs
    only_ranks = False


class Database(_CachedStorage):
    """A storage in PostgreSQL or SQLite. The threads of a process may share it."""

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._reading = threading.Lock()
        self._finished: dict[int, dict[int, FrozenTrial]] = {}  # by study and trial
        self._all_known: dict[int, int] = {}  # by study: all trials up to this id are in `_finished`
        self._trained: dict[int, FrozenTrial] = {}  # what this process trains, as the database has it
        self._ids: dict[str, int] = {}  # of studies, by name
        self._thread = _Thread()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k not in ("_reading", "_thread", "_trained")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._reading, self._thread, self._trained = threading.Lock(), _Thread(), {}

    @property
    def engine(self) -> sa.Engine:
        """The connections to the database."""
        return self._backend.engine

    def train(self, study_id: int, trial: FrozenTrial) -> None:
        """Answer from memory what is asked about the trial, until this process ends or releases it.

        The caller has just claimed the trial, so nobody else changes what it has reported.
        """
        self._trained[trial_id(trial)] = copy.copy(trial)
        self._know(study_id, trial)

    def forget(self, key: int) -> None:
        """Read the trial from the database again, since this process no longer trains it."""
        self._trained.pop(key, None)

    def silent_s(self, study_id: int) -> dict[str, float] | None:
        """Return for how many seconds each worker has been silent, by its host and name; None if nothing notes it."""
        if not worker_table.exists(self.engine):
            return None
        with self.engine.begin() as connection:
            return {row.owner: row.silent_s for row in worker_table.WorkerTable(study_id).all(connection)}

    @contextmanager
    def reading_rungs(self, trial: FrozenTrial, *, only_ranks: bool) -> Iterator[None]:
        """Let a pruner judge the trial: in the `with` block and this thread, read nothing of trials but rungs.

        only_ranks: True if the pruner does not ask which trials are better, only how many.
        """
        self._thread.judged, self._thread.only_ranks = trial, only_ranks
        try:
            yield
        finally:
            self._thread.judged = None

    def get_trial(self, trial_id: int) -> FrozenTrial:
        if (known := self._trained.get(trial_id)) is not None:
            return copy.copy(known)  # its dictionaries are replaced, never changed
        study_id, _ = self._trial_id_to_study_id_and_number.get(trial_id, (None, None))
        if study_id is not None and (finished := self._finished.get(study_id, {}).get(trial_id)):
            return finished
        return self._backend.get_trial(trial_id)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if states is None and (judged := self._thread.judged) is not None:
            return cast(list[FrozenTrial], self._rungs(study_id, judged))
        with_unended = any(not s.is_finished() and (states is None or s in states) for s in TrialState)
        with self._reading, self.engine.begin() as connection:
            trials = self._read(connection, study_id, with_unended)
        trials = [trial for trial in trials if states is None or trial.state in states]
        trials.sort(key=lambda trial: trial.number)
        return copy.deepcopy(trials) if deepcopy else trials

    def _rungs(self, study_id: int, judged: FrozenTrial) -> list[AtRung]:
        """Return what a pruner needs to judge a trial."""
        tables, keys = OptunaTables(study_id), rungs_ahead(judged)
        with self._at_once() as connection:
            if not self._thread.only_ranks or self.engine.name != "postgresql":
                return tables.rungs(connection, keys)
            (direction,) = self.get_study_directions(study_id)
            value = judged.intermediate_values[judged.last_step or 0]
            return tables.ranks(connection, keys, value, sign_of(direction.name))

    def _at_once(self) -> AbstractContextManager[sa.Connection]:
        """Connect for a single statement, which needs no transaction."""
        if self.engine.name == "postgresql":
            return self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        return self.engine.begin()

    def _read(self, connection: sa.Connection, study_id: int, with_unended: bool) -> list[FrozenTrial]:
        """Return the finished trials, of which only new ones are read, and if asked for all others."""
        tables, known = OptunaTables(study_id), self._finished.setdefault(study_id, {})
        n_finished, all_up_to = tables.extent(connection)
        if n_finished == len(known) and not with_unended:
            return [*known.values()]
        ids = tables.ids(connection, self._all_known.get(study_id, -1), only_finished=not with_unended)
        new = [key for key, is_finished in ids.items() if is_finished and key not in known]
        known |= {trial_id(trial): trial for trial in tables.read(connection, new)}
        self._all_known[study_id] = all_up_to  # was so before the ids were read
        unended = [key for key, is_finished in ids.items() if not is_finished]
        others = tables.read(connection, unended)
        for trial in others:
            self._know(study_id, trial)
        return [*known.values(), *others]

    def _know(self, study_id: int, trial: FrozenTrial) -> None:
        """Note where a trial belongs, as Optuna's own methods need it."""
        self._studies.setdefault(study_id, _StudyInfo())
        self._trial_id_to_study_id_and_number[trial_id(trial)] = study_id, trial.number
        self._study_id_and_number_to_trial_id[study_id, trial.number] = trial_id(trial)

    def get_study_id_from_name(self, study_name: str) -> int:
        if study_name not in self._ids:  # hyperband asks for it at each report
            self._ids[study_name] = super().get_study_id_from_name(study_name)
        return self._ids[study_name]

    def delete_study(self, study_id: int) -> None:
        self._ids = {name: known for name, known in self._ids.items() if known != study_id}
        self._all_known.pop(study_id, None)  # SQLite gives the id again
        self._finished.pop(study_id, None)
        super().delete_study(study_id)
        with self.engine.begin() as connection:
            worker_table.WorkerTable(study_id).clear(connection)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        if trial := self._trained.get(trial_id):
            trial.distributions = {**trial.distributions, param_name: distribution}
            trial.params = {**trial.params, param_name: distribution.to_external_repr(param_value_internal)}

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        with self._at_once() as connection:
            _refuse_unless(report(connection, trial_id, step, intermediate_value), trial_id)
        if trial := self._trained.get(trial_id):
            trial.intermediate_values = {**trial.intermediate_values, step: float(intermediate_value)}

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_user_attr(trial_id, key, value)
        if trial := self._trained.get(trial_id):
            trial.user_attrs = {**trial.user_attrs, key: value}

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        with self._at_once() as connection:
            _refuse_unless(set_system_attr(connection, trial_id, key, value), trial_id)
        if trial := self._trained.get(trial_id):
            trial.system_attrs = {**trial.system_attrs, key: value}

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        self.forget(trial_id)
        return super().set_trial_state_values(trial_id, state, values)


def _refuse_unless(is_open: bool, trial_id: int) -> None:
    """Raise Optuna's error about a trial that takes no more values."""
    if not is_open:
        raise UpdateFinishedTrialError(f"the trial with id {trial_id} is finished")
