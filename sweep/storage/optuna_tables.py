"""Optuna's tables in a database, read and written a few rows at a time.

Optuna's own storage reads and writes whole trials: the more trials run, the longer a claim or a report takes. The
statements here touch only the rows that they need. Each runs in a transaction of the caller.

The names of Optuna's tables and columns are private. If one changes, tests/storage/test_optuna_tables.py names it.
"""

import functools
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite

_STUDIES: sa.Table = models.StudyModel.__table__
_TRIALS: sa.Table = models.TrialModel.__table__
_PARAMS: sa.Table = models.TrialParamModel.__table__
_OBJECTIVES: sa.Table = models.TrialValueModel.__table__
_STEPS: sa.Table = models.TrialIntermediateValueModel.__table__
_USER_ATTRS: sa.Table = models.TrialUserAttributeModel.__table__
_SYSTEM_ATTRS: sa.Table = models.TrialSystemAttributeModel.__table__

_OPEN = (TrialState.RUNNING, TrialState.WAITING)
_FINISHED = tuple(state for state in TrialState if state.is_finished())
_MOST_KEYS = 5_000  # in one statement; SQLite takes 32,766


@dataclass(frozen=True)
class TrialRow:
    """A trial's id, its number in Optuna, and those of its user attributes that were asked for."""

    trial_id: int
    number: int
    attrs: Mapping[str, Any]


class AtRung(NamedTuple):
    """What a pruner needs of a trial that it compares: its number in Optuna, and its value at one rung, by its key."""

    number: int
    system_attrs: Mapping[str, float]


class OptunaTables:
    """The trials of one study. Each method takes the connection whose transaction it runs in."""

    def __init__(self, study_id: int) -> None:
        self._study_id = study_id
        self._of_study = _TRIALS.c.study_id == study_id

    def lock_study(self, connection: sa.Connection) -> None:
        """Exclude Optuna's own creation of trials. Raises KeyError, as Optuna does, if the study is gone."""
        study = sa.select(_STUDIES.c.study_id).where(_STUDIES.c.study_id == self._study_id).with_for_update()
        if connection.execute(study).first() is None:
            raise KeyError(f"the study with id {self._study_id} is no longer in its storage")

    def in_state(self, connection: sa.Connection, state: TrialState, *attrs: str) -> list[TrialRow]:
        """Return the trials in a state, in the order of their ids."""
        found = self._select(attrs).where(self._of_study, _TRIALS.c.state == state).order_by(_TRIALS.c.trial_id)
        return [_row(row, attrs) for row in connection.execute(found)]

    def last(self, connection: sa.Connection, *attrs: str, without: str | None = None) -> TrialRow | None:
        """Return the trial with the highest id, of those that lack the user attribute `without`."""
        found = self._select(attrs).where(self._of_study).order_by(_TRIALS.c.trial_id.desc()).limit(1)
        if without is not None:
            other = _USER_ATTRS.alias()
            found = found.where(~sa.exists().where(other.c.trial_id == _TRIALS.c.trial_id, other.c.key == without))
        row = connection.execute(found).first()
        return None if row is None else _row(row, attrs)

    def owned(self, connection: sa.Connection, attr: str, owners: Sequence[str]) -> list[int]:
        """Return the ids of the running trials whose user attribute `attr` is one of the owners."""
        names = [json.dumps(owner) for owner in owners]
        ids = sa.select(_TRIALS.c.trial_id).join(_USER_ATTRS, _USER_ATTRS.c.trial_id == _TRIALS.c.trial_id)
        running = (self._of_study, _TRIALS.c.state == TrialState.RUNNING)
        return list(
            connection.scalars(ids.where(*running, _USER_ATTRS.c.key == attr, _USER_ATTRS.c.value_json.in_(names)))
        )

    def running_elsewhere(self, connection: sa.Connection, attr: str, prefix: str, *attrs: str) -> list[TrialRow]:
        """Return the running trials whose user attribute `attr` does not begin with `prefix`, with other attributes."""
        own = _USER_ATTRS.alias()
        is_of_prefix = own.c.value_json.startswith(json.dumps(prefix)[:-1], autoescape=True)
        elsewhere = sa.exists().where(own.c.trial_id == _TRIALS.c.trial_id, own.c.key == attr, ~is_of_prefix)
        found = self._select(attrs).where(self._of_study, _TRIALS.c.state == TrialState.RUNNING, elsewhere)
        return [_row(row, attrs) for row in connection.execute(found)]

    def state(self, connection: sa.Connection, trial_id: int, *attrs: str) -> tuple[TrialState, TrialRow]:
        """Return the state and some user attributes of a trial. Raises KeyError if it is gone."""
        found = self._select(attrs).add_columns(_TRIALS.c.state).where(_TRIALS.c.trial_id == trial_id)
        row = connection.execute(found).first()
        if row is None:
            raise KeyError(f"the trial with id {trial_id} is no longer in its storage")
        return row.state, _row(row, attrs)

    def create(self, connection: sa.Connection, number: int, attrs: Mapping[str, Any]) -> FrozenTrial:
        """Create a running trial. The caller has locked the study, and knows Optuna's next number."""
        facts = {"study_id": self._study_id, "number": number, "state": TrialState.RUNNING, "datetime_start": _now()}
        made = connection.execute(_TRIALS.insert().values(facts).returning(*_TRIALS.c)).one()
        self.set_attrs(connection, {made.trial_id: attrs})
        return _frozen(made, user_attrs=attrs)

    def run(self, connection: sa.Connection, trial_id: int) -> bool:
        """Set a waiting trial to RUNNING. Return False if it does not wait."""
        waits = (_TRIALS.c.trial_id == trial_id, _TRIALS.c.state == TrialState.WAITING)
        running = _TRIALS.update().where(*waits).values(state=TrialState.RUNNING, datetime_start=_now())
        return connection.execute(running).rowcount == 1

    def wait(self, connection: sa.Connection, trial_ids: Sequence[int]) -> list[int]:
        """Set running trials to WAITING. Return the ids of those that were running."""
        running = (_TRIALS.c.trial_id.in_(trial_ids), _TRIALS.c.state == TrialState.RUNNING)
        waiting = _TRIALS.update().where(*running).values(state=TrialState.WAITING)
        return list(connection.scalars(waiting.returning(_TRIALS.c.trial_id)))

    def attrs(self, connection: sa.Connection, trial_ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Return the user attributes of trials, by id."""
        return _attrs(connection, _USER_ATTRS, trial_ids)

    def set_attrs(self, connection: sa.Connection, attrs: Mapping[int, Mapping[str, Any]]) -> None:
        """Store user attributes, by the id of their trial."""
        rows = [
            {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
            for trial_id, of_trial in attrs.items()
            for key, value in of_trial.items()
        ]
        if rows:
            made = insert(connection, _USER_ATTRS)
            own = {"value_json": made.excluded.value_json}
            connection.execute(made.on_conflict_do_update(index_elements=["trial_id", "key"], set_=own), rows)

    def last_steps(self, connection: sa.Connection, trial_ids: Sequence[int]) -> dict[int, int]:
        """Return the last step that each trial has reported, by id. A trial without one is missing."""
        steps = sa.select(_STEPS.c.trial_id, sa.func.max(_STEPS.c.step)).where(_STEPS.c.trial_id.in_(trial_ids))
        return {trial_id: step for trial_id, step in connection.execute(steps.group_by(_STEPS.c.trial_id))}

    def counts(self, connection: sa.Connection, first: int = 0) -> dict[TrialState, int]:
        """Return how many trials are in each state, from Optuna's number `first` on."""
        counted = sa.select(_TRIALS.c.state, sa.func.count()).where(self._of_study, _TRIALS.c.number >= first)
        return {state: n for state, n in connection.execute(counted.group_by(_TRIALS.c.state))}

    def n_open(self, connection: sa.Connection, attr: str, first: int) -> dict[TrialState, int]:
        """Return how many trials run and how many wait, of those with a number below `first`.

        attr: the user attribute that has a trial's number, where it is not Optuna's.
        """
        own = sa.select(_USER_ATTRS.c.value_json.cast(sa.Integer)).where(_USER_ATTRS.c.trial_id == _TRIALS.c.trial_id)
        number = sa.func.coalesce(own.where(_USER_ATTRS.c.key == attr).scalar_subquery(), _TRIALS.c.number)
        counted = sa.select(_TRIALS.c.state, sa.func.count()).where(self._of_study, _TRIALS.c.state.in_(_OPEN))
        return {state: n for state, n in connection.execute(counted.where(number < first).group_by(_TRIALS.c.state))}

    def n_steps(self, connection: sa.Connection) -> int:
        """Return how many intermediate values all trials have reported."""
        steps = sa.select(sa.func.count()).select_from(_STEPS).join(_TRIALS, _TRIALS.c.trial_id == _STEPS.c.trial_id)
        return connection.scalars(steps.where(self._of_study)).one()

    def has_part(self, connection: sa.Connection, attr: str, part: str) -> bool:
        """Return whether the user attribute `attr` of any trial contains the text `part`."""
        owned = sa.select(_TRIALS.c.trial_id).join(_USER_ATTRS, _USER_ATTRS.c.trial_id == _TRIALS.c.trial_id)
        contains = _USER_ATTRS.c.value_json.contains(json.dumps(part)[1:-1], autoescape=True)
        found = owned.where(self._of_study, _USER_ATTRS.c.key == attr, contains).limit(1)
        return connection.execute(found).first() is not None

    def extent(self, connection: sa.Connection) -> tuple[int, int]:
        """Return how many trials are finished, and the highest id up to which all are; -1 if there is no such id."""
        n_finished = sa.func.count().filter(_TRIALS.c.state.in_(_FINISHED))
        first_unended = sa.func.min(_TRIALS.c.trial_id).filter(_TRIALS.c.state.not_in(_FINISHED))
        found = sa.select(n_finished, first_unended, sa.func.max(_TRIALS.c.trial_id)).where(self._of_study)
        n, first, last = connection.execute(found).one()
        return n, first - 1 if first is not None else -1 if last is None else last

    def ids(self, connection: sa.Connection, above: int, *, only_finished: bool) -> dict[int, bool]:
        """Return the ids of the trials above `above`, each with whether the trial is finished."""
        found = sa.select(_TRIALS.c.trial_id, _TRIALS.c.state).where(self._of_study, _TRIALS.c.trial_id > above)
        if only_finished:
            found = found.where(_TRIALS.c.state.in_(_FINISHED))
        return {trial_id: state in _FINISHED for trial_id, state in connection.execute(found)}

    def read(self, connection: sa.Connection, trial_ids: Sequence[int]) -> list[FrozenTrial]:
        """Return trials."""
        parts = [trial_ids[start : start + _MOST_KEYS] for start in range(0, len(trial_ids), _MOST_KEYS)]
        return [trial for part in parts for trial in self._read(connection, part)]

    def _read(self, connection: sa.Connection, trial_ids: Sequence[int]) -> list[FrozenTrial]:
        """Read the states first. So a trial that is read as finished has all its parts."""
        rows = connection.execute(sa.select(_TRIALS).where(_TRIALS.c.trial_id.in_(trial_ids))).all()
        system_attrs, user_attrs = (_attrs(connection, table, trial_ids) for table in (_SYSTEM_ATTRS, _USER_ATTRS))
        steps, objectives, params = (_parts(connection, part, trial_ids) for part in (_STEPS, _OBJECTIVES, _PARAMS))
        return [
            _frozen(
                row,
                user_attrs=user_attrs.get(row.trial_id),
                system_attrs=system_attrs.get(row.trial_id),
                steps=steps[row.trial_id],
                objectives=objectives[row.trial_id],
                params=params[row.trial_id],
            )
            for row in rows
        ]

    def rungs(self, connection: sa.Connection, keys: Sequence[str]) -> list["AtRung"]:
        """Return the values that trials have at rungs, by the system attributes in which Optuna's pruners keep them.

        The database sends one text for each rung: thousands of rows would cost milliseconds.
        """
        value = _TRIALS.c.number.cast(sa.String) + " " + _SYSTEM_ATTRS.c.value_json
        trials = list[AtRung]()
        for key, text in connection.execute(self._of_rungs(keys, sa.func.aggregate_strings(value, " "))):
            words = text.split()
            trials += [AtRung(int(n), {key: float(x)}) for n, x in zip(words[::2], words[1::2], strict=True)]
        return trials

    def ranks(self, connection: sa.Connection, keys: Sequence[str], value: float, sign: float) -> list["AtRung"]:
        """Return as many trials as have a value at each rung: one that is better than `value`, or else equal to it.

        For a pruner that asks only how many are better, the answer is that of `rungs`, but PostgreSQL counts.

        sign: 1 if a small value is better, otherwise -1.
        """
        other, own = _SYSTEM_ATTRS.c.value_json.cast(sa.Double), sa.literal(value, sa.Double)
        n_better = sa.func.count().filter(other < own if sign > 0 else other > own)
        trials = list[AtRung]()
        for key, n, better in connection.execute(self._of_rungs(keys, sa.func.count(), n_better)):
            trials += [AtRung(0, {key: -math.inf * sign})] * better + [AtRung(0, {key: value})] * (n - better)
        return trials

    def _of_rungs(self, keys: Sequence[str], *columns: sa.ColumnElement[Any]) -> sa.Select[*tuple[Any, ...]]:
        found: sa.Select[*tuple[Any, ...]] = sa.select(_SYSTEM_ATTRS.c.key, *columns)
        found = found.join(_TRIALS, _TRIALS.c.trial_id == _SYSTEM_ATTRS.c.trial_id)
        return found.where(self._of_study, _SYSTEM_ATTRS.c.key.in_(keys)).group_by(_SYSTEM_ATTRS.c.key)

    def _select(self, attrs: Sequence[str]) -> sa.Select[Any]:
        """Return a query for the ids and numbers of trials, and for their user attributes of these names."""
        columns: list[sa.ColumnElement[Any]] = [_TRIALS.c.trial_id, _TRIALS.c.number]
        for attr in attrs:  # looked up trial by trial; a join would read the attributes of all studies
            own = sa.select(_USER_ATTRS.c.value_json).where(_USER_ATTRS.c.trial_id == _TRIALS.c.trial_id)
            columns.append(own.where(_USER_ATTRS.c.key == attr).scalar_subquery().label(f"attr_{attr}"))
        return sa.select(*columns)


def report(connection: sa.Connection, trial_id: int, step: int, value: float) -> bool:
    """Store an intermediate value of a trial. Return False if the trial is finished or gone."""
    number, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
    row = {"trial_id": trial_id, "step": step, "intermediate_value": number, "intermediate_value_type": kind}
    return connection.execute(_store_if_open(connection.dialect.name, _STEPS, tuple(row)), row).first() is not None


def set_system_attr(connection: sa.Connection, trial_id: int, key: str, value: Any) -> bool:
    """Store a system attribute of a trial. Return False if the trial is finished or gone."""
    row = {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
    made = _store_if_open(connection.dialect.name, _SYSTEM_ATTRS, tuple(row))
    return connection.execute(made, row).first() is not None


@functools.cache
def _store_if_open(dialect: str, table: sa.Table, names: tuple[str, ...]) -> Any:
    """Return the statement that stores a row of a trial that has not ended. The first two columns identify the row."""
    values = [sa.bindparam(name, type_=table.c[name].type).label(name) for name in names]
    is_open = sa.exists().where(_TRIALS.c.trial_id == values[0].element, _TRIALS.c.state.in_(_OPEN))
    made = _INSERTS[dialect](table).from_select(names, sa.select(*values).where(is_open))
    own = {name: made.excluded[name] for name in names[2:]}
    return made.on_conflict_do_update(index_elements=names[:2], set_=own).returning(table.c.trial_id)


_INSERTS = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


def insert(connection: sa.Connection, table: sa.Table) -> Any:
    """Return an insert into the table, of the database's own kind: it can replace a row that is there already."""
    return _INSERTS[connection.dialect.name](table)


def _row(row: sa.Row[Any], attrs: Sequence[str]) -> TrialRow:
    found = {attr: getattr(row, f"attr_{attr}") for attr in attrs}
    return TrialRow(
        row.trial_id, row.number, {attr: json.loads(text) for attr, text in found.items() if text is not None}
    )


def _parts(connection: sa.Connection, table: sa.Table, trial_ids: Sequence[int]) -> dict[int, list[sa.Row[Any]]]:
    """Return the rows of a table by the trials that they belong to, in the order in which they were stored."""
    (key,) = table.primary_key.columns
    rows = defaultdict[int, list[sa.Row[Any]]](list)
    for row in connection.execute(sa.select(table).where(table.c.trial_id.in_(trial_ids)).order_by(key)):
        rows[row.trial_id].append(row)
    return rows


def _attrs(connection: sa.Connection, table: sa.Table, trial_ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    parts = _parts(connection, table, trial_ids)
    return {trial_id: {row.key: json.loads(row.value_json) for row in rows} for trial_id, rows in parts.items()}


@functools.lru_cache(maxsize=10_000)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


def _frozen(
    row: sa.Row[Any],
    *,
    user_attrs: Mapping[str, Any] | None = None,
    system_attrs: Mapping[str, Any] | None = None,
    steps: Sequence[sa.Row[Any]] = (),
    objectives: Sequence[sa.Row[Any]] = (),
    params: Sequence[sa.Row[Any]] = (),
) -> FrozenTrial:
    """Return a trial as Optuna's own storage does, from its rows in each table."""
    value_of, step_of = models.TrialValueModel.stored_repr_to_value, _value_at
    distributions = {param.param_name: _distribution(param.distribution_json) for param in params}
    values = {own.objective: value_of(own.value, own.value_type) for own in objectives}
    return FrozenTrial(
        number=row.number,
        state=row.state,
        value=None,
        values=[values[n] for n in sorted(values)] or None,
        datetime_start=_local(row.datetime_start),
        datetime_complete=_local(row.datetime_complete),
        params={own.param_name: distributions[own.param_name].to_external_repr(own.param_value) for own in params},
        distributions=distributions,
        user_attrs=dict(user_attrs or {}),
        system_attrs=dict(system_attrs or {}),
        intermediate_values={own.step: step_of(own) for own in steps},
        trial_id=row.trial_id,
    )


def _value_at(row: sa.Row[Any]) -> float:
    stored = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value
    return stored(row.intermediate_value, row.intermediate_value_type)


def _now() -> datetime:
    """Return the time as Optuna stores it: in UTC, without a time zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def _local(stored: datetime | None) -> datetime | None:
    """Return a stored time as Optuna reads it: as local time, without a time zone."""
    return None if stored is None else stored.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
