"""A table of sweep's own beside Optuna's: the workers of each study, and when each was last heard of.

A heartbeat is a time of the database's clock, so any process knows at once how old it is. A worker has one row, however
many trials it trains.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from sweep.storage.optuna_tables import insert

_NAME = 512  # characters; also the longest that Optuna allows for a name
_TABLE = sa.Table(
    "sweep_workers",
    sa.MetaData(),
    sa.Column("study_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("host", sa.String(_NAME), primary_key=True),
    sa.Column("worker", sa.String(_NAME), primary_key=True),
    sa.Column("heartbeat", sa.Double, nullable=False),  # seconds since 1970, by the clock of the database
)
_NOW = {  # by dialect
    "postgresql": sa.literal_column("extract(epoch from clock_timestamp())::float8", sa.Double),
    "sqlite": sa.literal_column("(julianday('now') - 2440587.5) * 86400.0", sa.Double),
}
# While the server was away, no worker could be heard of.
_LAST_HEARD = {
    "postgresql": sa.func.greatest(
        _TABLE.c.heartbeat, sa.literal_column("extract(epoch from pg_postmaster_start_time())::float8", sa.Double)
    ),
    "sqlite": _TABLE.c.heartbeat,
}


@dataclass(frozen=True)
class WorkerRow:
    """A worker of a study, and how many seconds ago it was last heard of."""

    host: str
    worker: str
    silent_s: float

    @property
    def owner(self) -> str:
        """What the trials of the worker say about it."""
        return f"{self.host}/{self.worker}"


class WorkerTable:
    """The workers of one study. Each method takes the connection whose transaction it runs in."""

    def __init__(self, study_id: int) -> None:
        self._study_id = study_id
        self._of_study = _TABLE.c.study_id == study_id

    def heartbeat(self, connection: sa.Connection, host: str, worker: str) -> None:
        """Note that the worker lives."""
        now = _NOW[connection.dialect.name]
        own = {"study_id": self._study_id, "host": host, "worker": worker, "heartbeat": now}
        made = insert(connection, _TABLE).values(own)
        connection.execute(
            made.on_conflict_do_update(index_elements=["study_id", "host", "worker"], set_={"heartbeat": now})
        )

    def of_host_or_silent(self, connection: sa.Connection, host: str, silent_s: float) -> list[WorkerRow]:
        """Return the workers on a host, and those anywhere that have been silent for longer than `silent_s` seconds."""
        age = _age(connection)
        return self._read(connection, sa.or_(_TABLE.c.host == host, age > silent_s))

    def all(self, connection: sa.Connection) -> list[WorkerRow]:
        """Return all workers that have been heard of and that nobody has forgotten."""
        return self._read(connection, sa.true())

    def forget(self, connection: sa.Connection, workers: Sequence[WorkerRow]) -> None:
        """Remove workers that are dead."""
        for row in workers:
            own = (self._of_study, _TABLE.c.host == row.host, _TABLE.c.worker == row.worker)
            connection.execute(_TABLE.delete().where(*own))

    def clear(self, connection: sa.Connection) -> None:
        """Remove all workers, as the study is removed."""
        connection.execute(_TABLE.delete().where(self._of_study))

    def _read(self, connection: sa.Connection, condition: sa.ColumnElement[bool]) -> list[WorkerRow]:
        found = sa.select(_TABLE.c.host, _TABLE.c.worker, _age(connection)).where(self._of_study, condition)
        return [WorkerRow(*row) for row in connection.execute(found)]


def create(engine: sa.Engine) -> None:
    """Create the table if it is missing. The caller excludes others who do the same."""
    _TABLE.create(engine, checkfirst=True)


def exists(engine: sa.Engine) -> bool:
    """Return whether the database has the table: one that only earlier versions have used has none."""
    return sa.inspect(engine).has_table(_TABLE.name)


def _age(connection: sa.Connection) -> sa.ColumnElement[float]:
    dialect = connection.dialect.name
    return _NOW[dialect] - _LAST_HEARD[dialect]
