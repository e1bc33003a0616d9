"""Writes whole finished runs straight into the tables of MLflow's database, many in one transaction.

MLflow's client takes ten transactions a run. What it would have written is written here, row by row; `Tables.agree`
compares the two on a run that the client sent, so that a store is written to only where they are known to be equal.
"""

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy
import sqlalchemy.event
from mlflow.entities import DatasetInput, LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.store.db.base_sql_model import Base
from mlflow.store.tracking.dbmodels.models import (
    SqlDataset,
    SqlExperiment,
    SqlInput,
    SqlInputTag,
    SqlLatestMetric,
    SqlMetric,
    SqlParam,
    SqlRun,
    SqlTag,
)
from mlflow.utils import validation
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_USER
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from sweep.tracking.chunks import Point

_DIALECTS = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_BUSY_TIMEOUT_MS = 60_000  # a SQLite store may have other writers; MLflow waits for 20 s

Row = tuple[Any, ...]

# Every column of every table that a run has rows in: a store with another one is not agreed with.
_COLUMNS: dict[str, tuple[str, ...]] = {
    SqlRun.__tablename__: (
        *("run_uuid", "name", "source_type", "source_name", "entry_point_name", "user_id", "status", "start_time"),
        *("end_time", "deleted_time", "source_version", "lifecycle_stage", "artifact_uri", "experiment_id"),
    ),
    SqlParam.__tablename__: ("run_uuid", "key", "value"),
    SqlTag.__tablename__: ("run_uuid", "key", "value"),
    SqlMetric.__tablename__: ("run_uuid", "key", "value", "timestamp", "step", "is_nan"),
    SqlLatestMetric.__tablename__: ("run_uuid", "key", "value", "timestamp", "step", "is_nan"),
    SqlInput.__tablename__: ("input_uuid", "source_type", "source_id", "destination_type", "destination_id", "step"),
    SqlInputTag.__tablename__: ("input_uuid", "name", "value"),
}
_DATASET_COLUMNS = (
    *("dataset_uuid", "experiment_id", "name", "digest"),
    *("dataset_source_type", "dataset_source", "dataset_schema", "dataset_profile"),
)
_WRITTEN = ", ".join([*_COLUMNS, SqlDataset.__tablename__])
_REVISION = "SELECT version_num FROM alembic_version"
_SCHEMA = {  # what changes with the definition of a table that is written to
    "sqlite": ["PRAGMA schema_version"],
    "postgresql": [
        f"LOCK TABLE {_WRITTEN} IN ROW EXCLUSIVE MODE",  # as inserting does: nobody else alters them meanwhile
        f"""
        SELECT attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull,
            pg_get_expr(adbin, adrelid)
        FROM pg_attribute LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)
        WHERE attrelid = ANY('{{{_WRITTEN}}}'::regclass[]) AND attnum > 0 AND NOT attisdropped
        ORDER BY attrelid, attnum
        """,
        f"""
        SELECT tgrelid::regclass::text, pg_get_triggerdef(oid), tgenabled
        FROM pg_trigger WHERE tgrelid = ANY('{{{_WRITTEN}}}'::regclass[]) AND NOT tgisinternal
        ORDER BY tgrelid, tgname
        """,
    ],
}
_OWNERS = ("run_uuid", "run_id", "destination_id")  # columns that say which run a row belongs to


class Gone(Exception):
    """An experiment or a study's run, below which runs were to be written, is deleted, or not what it was."""


class Schema(NamedTuple):
    """A store's tables as they are defined. revision: that of MLflow's migrations."""

    revision: tuple[Row, ...]
    definitions: tuple[Row, ...]


class Changed(Exception):
    """The tables are no longer defined as they were when they were compared. is_migrated: by MLflow itself."""

    def __init__(self, is_migrated: bool) -> None:
        super().__init__(is_migrated)
        self.is_migrated = is_migrated


class CompleteRun(NamedTuple):
    """All that a store is told of a run that has ended.

    experiment: name and place of artifacts that the experiment is known by; ids are given again once `mlflow gc` has
    removed their owners. tags: without that of its name.
    """

    run_id: str
    experiment_id: int
    experiment: tuple[str, str]
    artifact_uri: str
    name: str
    status: str
    start_time: int
    end_time: int
    params: Mapping[str, str]
    tags: Mapping[str, str]
    points: Sequence[Point]
    dataset: DatasetInput | None

    def is_valid(self) -> bool:
        """Whether MLflow's client would take it, and as it is."""
        try:
            if self.dataset is not None:
                validation._validate_dataset_inputs([self.dataset])
            for key in self.params:
                _validate_key("param", key)
            for key in self.tags:
                _validate_key("tag", key)
            for key in {point[0] for point in self.points}:
                _validate_key("metric", key)
        except MlflowException:
            return False
        return (
            bool(self.name)
            and MLFLOW_RUN_NAME not in self.tags
            and {type(value) for _, value, _, _ in self.points} <= {int, float}
            and {type(step) for _, _, _, step in self.points} <= {int}
        )


class Tables:
    """The tables of one store. Methods raise SQLAlchemyError."""

    def __init__(self, uri: str) -> None:
        self._engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
        self._insert = _DIALECTS[self._engine.dialect.name]
        self._agreed: Schema | None = None  # the definitions that `agree` found to be as they are known here
        self._mark = "?"
        if self._engine.dialect.name == "sqlite":
            sqlalchemy.event.listen(self._engine, "connect", _be_patient)
            sqlalchemy.event.listen(self._engine, "begin", _begin_to_write)
        else:
            self._mark = "%s"

    @staticmethod
    def may_be_at(uri: str) -> bool:
        """Whether that is a database of a kind that is known here."""
        return uri.partition(":")[0].partition("+")[0] in _DIALECTS

    def existing(self, runs: Sequence[CompleteRun], tag: str, values: Sequence[str]) -> set[str | tuple[int, str]]:
        """The ids of the runs that the store has; and each experiment and value with which a run has the tag.

        Raises Gone where `write` would.
        """
        by_id = sqlalchemy.select(SqlRun.run_uuid).where(SqlRun.run_uuid.in_([run.run_id for run in runs]))
        by_tag = (
            sqlalchemy.select(SqlRun.experiment_id, SqlTag.value)
            .join(SqlRun, SqlRun.run_uuid == SqlTag.run_uuid)
            .where(SqlTag.key == tag, SqlTag.value.in_(values))
        )
        with self._engine.begin() as connection:
            _hold_targets(connection, runs)
            return {*connection.scalars(by_id), *(tuple(row) for row in connection.execute(by_tag))}

    def write(self, runs: Sequence[CompleteRun]) -> None:
        """All of them; none, when one of them is there already or cannot be written.

        Raises Gone if what they belong to is not there, Changed if the tables are not those that `agree` saw.
        """
        with self._engine.begin() as connection:
            self._check_schema(connection)
            _hold_targets(connection, runs)
            of_datasets = {_dataset_key(run): run for run in runs if run.dataset is not None}
            ids = {key: self._dataset(connection, of_datasets[key]) for key in sorted(of_datasets)}
            written = [_rows(run, ids.get(_dataset_key(run), ""), uuid.uuid4().hex) for run in runs]
            for table, columns in _COLUMNS.items():
                if rows := [row for of_run in written for row in of_run[table]]:
                    marks = ", ".join([self._mark] * len(columns))
                    connection.exec_driver_sql(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)

    def schema(self) -> Schema:
        """How the tables are defined now."""
        with self._engine.begin() as connection:
            return self._schema(connection)

    def _schema(self, connection: Connection) -> Schema:
        """As `schema`; stays so until the transaction ends."""
        results = [connection.exec_driver_sql(query) for query in _SCHEMA[self._engine.dialect.name]]
        definitions = [tuple(row) for result in results if result.returns_rows for row in result]
        revision = [tuple(row) for row in connection.exec_driver_sql(_REVISION)]
        return Schema(tuple(revision), tuple(definitions))

    def _check_schema(self, connection: Connection) -> None:
        """Raises Changed."""
        schema = self._schema(connection)
        if schema != self._agreed:
            raise Changed(is_migrated=self._agreed is not None and schema.revision != self._agreed.revision)

    def agree(self, run: CompleteRun, schema: Schema) -> bool:
        """Whether the store has of the run, which MLflow's client has sent, exactly what `write` would have written.

        schema: how the tables were defined before it was sent. `write` refuses any other from then on.
        """
        owners = _tables_of_runs()
        self._agreed = schema
        with self._engine.begin() as connection:
            self._check_schema(connection)
            found = {table: self._select(connection, table, owners[table], run.run_id) for table in owners}
            inputs = found[SqlInput.__tablename__]
            if run.dataset is None or len(inputs) != 1:
                return False
            input_id, dataset_id = inputs[0]["input_uuid"], inputs[0]["source_id"]
            found[SqlInputTag.__tablename__] = self._select(
                connection, SqlInputTag.__tablename__, "input_uuid", input_id
            )
            datasets = self._select(connection, SqlDataset.__tablename__, "dataset_uuid", dataset_id)
        ours = _rows(run, dataset_id, input_id)
        expected = {
            table: [dict(zip(columns, row, strict=True)) for row in ours[table]] for table, columns in _COLUMNS.items()
        }
        return [dataset.keys() for dataset in datasets] == [set(_DATASET_COLUMNS)] and all(
            _counted(rows) == _counted(expected.get(table, [])) for table, rows in found.items()
        )

    def _select(self, connection: Connection, table: str, column: str, value: str) -> list[dict[str, Any]]:
        query = f"SELECT * FROM {table} WHERE {column} = {self._mark}"
        return [dict(row) for row in connection.exec_driver_sql(query, (value,)).mappings()]

    def _dataset(self, connection: Connection, run: CompleteRun) -> str:
        """The id of the run's data set, which is made where the experiment has none of its name and digest."""
        assert run.dataset is not None
        dataset = run.dataset.dataset
        fields = (dataset.source_type, dataset.source, dataset.schema, dataset.profile)
        row = (uuid.uuid4().hex, *_dataset_key(run), *fields)
        made = self._insert(SqlDataset).values(dict(zip(_DATASET_COLUMNS, row, strict=True)))
        connection.execute(made.on_conflict_do_nothing())
        own = (SqlDataset.experiment_id, SqlDataset.name, SqlDataset.digest)
        is_it = [column == value for column, value in zip(own, _dataset_key(run), strict=True)]
        return connection.scalars(sqlalchemy.select(SqlDataset.dataset_uuid).where(*is_it)).one()


def _hold_targets(connection: Connection, runs: Sequence[CompleteRun]) -> None:
    """Keeps the experiments and the studies' runs as they are until the transaction ends.

    SQLite has no other writer meanwhile; PostgreSQL has transactions wait that would delete the rows. Raises Gone.
    """
    experiments = {run.experiment_id: run.experiment for run in runs}
    parents = {run.tags[MLFLOW_PARENT_RUN_ID] for run in runs if MLFLOW_PARENT_RUN_ID in run.tags}
    found = connection.execute(
        sqlalchemy.select(SqlExperiment.experiment_id, SqlExperiment.name, SqlExperiment.artifact_location)
        .where(SqlExperiment.experiment_id.in_(experiments), SqlExperiment.lifecycle_stage == LifecycleStage.ACTIVE)
        .order_by(SqlExperiment.experiment_id)
        .with_for_update(read=True)
    )
    if {identity: (name, location) for identity, name, location in found} != experiments:
        raise Gone
    active = connection.scalars(
        sqlalchemy.select(SqlRun.run_uuid)
        .where(SqlRun.run_uuid.in_(parents), SqlRun.lifecycle_stage == LifecycleStage.ACTIVE)
        .order_by(SqlRun.run_uuid)
        .with_for_update(read=True)
    )
    if set(active) != parents:
        raise Gone


def _rows(run: CompleteRun, dataset_id: str, input_id: str) -> dict[str, list[Row]]:
    """What MLflow's client would have written of a run, by table, in the order of `_COLUMNS`."""
    latest: dict[str, Point] = {}
    points = dict.fromkeys(run.points)  # a row that stands twice is written once
    for key, value, time, step in points:
        known = latest.get(key)
        if known is None or (step, time, value) > (known[3], known[2], known[1]):
            latest[key] = (key, value, time, step)
    user, run_id = run.tags.get(MLFLOW_USER, "unknown"), run.run_id
    row = (run_id, run.name, "UNKNOWN", "", "", user, run.status, run.start_time, run.end_time, None, "", "active")
    inputs = [] if run.dataset is None else [(input_id, "DATASET", dataset_id, "RUN", run_id, 0)]
    input_tags = [] if run.dataset is None else [(input_id, tag.key, tag.value) for tag in run.dataset.tags]
    return {
        SqlRun.__tablename__: [(*row, run.artifact_uri, run.experiment_id)],
        SqlParam.__tablename__: [(run_id, key, value) for key, value in run.params.items()],
        SqlTag.__tablename__: [(run_id, key, value) for key, value in {**run.tags, MLFLOW_RUN_NAME: run.name}.items()],
        SqlMetric.__tablename__: [(run_id, key, value, time, step, False) for key, value, time, step in points],
        SqlLatestMetric.__tablename__: [
            (run_id, key, value, time, step, False) for key, value, time, step in latest.values()
        ],
        SqlInput.__tablename__: inputs,
        SqlInputTag.__tablename__: input_tags,
    }


def _dataset_key(run: CompleteRun) -> tuple[int, str, str]:
    """What tells data sets apart; that of a run without one stands for none."""
    dataset = None if run.dataset is None else run.dataset.dataset
    return (run.experiment_id, "", "") if dataset is None else (run.experiment_id, dataset.name, dataset.digest)


def _tables_of_runs() -> dict[str, str]:
    """Each table with rows that belong to runs, and its column that says to which."""
    owners = {name: [own for own in _OWNERS if own in table.columns] for name, table in Base.metadata.tables.items()}
    return {name: columns[0] for name, columns in owners.items() if columns}


def _counted(rows: list[dict[str, Any]]) -> Counter[frozenset[tuple[str, Any]]]:
    return Counter(frozenset(row.items()) for row in rows)


@lru_cache(4096)
def _validate_key(kind: str, key: str) -> None:
    """Raises MlflowException."""
    if kind == "metric":
        validation._validate_metric(key, 0.0, 0, 0)
    elif kind == "param":
        validation._validate_param(key, "")
    else:
        validation._validate_tag(key, "")


def _be_patient(connection: Any, record: object) -> None:
    connection.isolation_level = None  # the driver is to leave transactions to the next function
    connection.execute("PRAGMA cache_size = -65536")  # KiB; with the usual 2 MiB it takes 1.5 times as long
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")


def _begin_to_write(connection: Connection) -> None:
    """A transaction that first reads and then writes would fail, not wait, where another one writes meanwhile."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")
