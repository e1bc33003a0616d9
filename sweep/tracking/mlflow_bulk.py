"""Writes complete runs straight into the tables of MLflow's database, many in one transaction.

MLflow's client needs ten transactions for each run. This module writes the same rows itself. Before it does, the client
sends one run, and `Tables.agree` checks that the client wrote exactly the rows that this module would have written.
"""

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
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
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_USER
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from sweep.tracking.chunks import Point
from sweep.tracking.mlflow_internals import check_dataset, check_key

_DIALECTS = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_BUSY_TIMEOUT_MS = 60_000  # a SQLite store may have other writers; MLflow waits for 20 s

Row = tuple[Any, ...]

# Every column of every table in which a run has rows. `agree` rejects a store with any other column.
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
_SCHEMA = {  # queries whose results change if the definition of a written table changes
    "sqlite": ["PRAGMA schema_version"],
    "postgresql": [
        f"LOCK TABLE {_WRITTEN} IN ROW EXCLUSIVE MODE",  # the lock of an INSERT: nobody else can alter them
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
    """The experiment, or the study's run, that new runs would belong to was deleted or replaced."""


class Schema(NamedTuple):
    """How a store's tables are defined. `revision` is the revision of MLflow's migrations."""

    revision: tuple[Row, ...]
    definitions: tuple[Row, ...]


class Changed(Exception):
    """The definition of the tables has changed since `agree` compared them.

    `is_migrated` is True if MLflow itself migrated them.
    """

    def __init__(self, is_migrated: bool) -> None:
        super().__init__(is_migrated)
        self.is_migrated = is_migrated


class CompleteRun(NamedTuple):
    """Everything that is written to a store about a run that has ended.

    Attributes:
        experiment: the experiment's name and artifact location. The id alone does not identify an experiment, since
            `mlflow gc` frees ids for reuse.
        start_time: in milliseconds since 1970, like `end_time`.
        tags: all tags except that of the run's name.
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
        """Return whether MLflow's client would accept the run and store it unchanged."""
        try:
            if self.dataset is not None:
                check_dataset(self.dataset)
            for key in self.params:
                check_key("param", key)
            for key in self.tags:
                check_key("tag", key)
            for key in {point[0] for point in self.points}:
                check_key("metric", key)
        except MlflowException:
            return False
        return (
            bool(self.name)
            and MLFLOW_RUN_NAME not in self.tags
            and {type(value) for _, value, _, _ in self.points} <= {int, float}
            and {type(step) for _, _, _, step in self.points} <= {int}
        )


class Tables:
    """The tables of one store. All methods may raise SQLAlchemyError."""

    def __init__(self, uri: str) -> None:
        self._engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
        self._insert = _DIALECTS[self._engine.dialect.name]
        self._agreed: Schema | None = None  # the definitions that `agree` accepted
        self._mark = "?"
        if self._engine.dialect.name == "sqlite":
            sqlalchemy.event.listen(self._engine, "connect", _be_patient)
            sqlalchemy.event.listen(self._engine, "begin", _begin_to_write)
        else:
            self._mark = "%s"

    @staticmethod
    def may_be_at(uri: str) -> bool:
        """Return whether this module can write to the kind of database that `uri` names."""
        return uri.partition(":")[0].partition("+")[0] in _DIALECTS

    def existing(self, runs: Sequence[CompleteRun], tag: str, values: Sequence[str]) -> set[str | tuple[int, str]]:
        """Return which runs the store already has, by id and by tag.

        Args:
            runs: the runs whose ids are looked up.
            tag: the key of the tag that is looked up.
            values: the values of that tag that are looked up.

        Returns:
            The ids that exist, and a pair (experiment id, value) for each run that has one of the tag values.

        Raises:
            Gone: an experiment or a parent run that `runs` belong to was deleted or replaced.
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
        """Write all runs in one transaction, or none of them if one exists already or cannot be written.

        Raises:
            Gone: an experiment or a parent run that they belong to was deleted or replaced.
            Changed: the tables are no longer defined as they were when `agree` compared them.
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
        """Return how the tables are defined now."""
        with self._engine.begin() as connection:
            return self._schema(connection)

    def _schema(self, connection: Connection) -> Schema:
        """Return how the tables are defined. The definitions cannot change until the transaction ends."""
        results = [connection.exec_driver_sql(query) for query in _SCHEMA[self._engine.dialect.name]]
        definitions = [tuple(row) for result in results if result.returns_rows for row in result]
        revision = [tuple(row) for row in connection.exec_driver_sql(_REVISION)]
        return Schema(tuple(revision), tuple(definitions))

    def _check_schema(self, connection: Connection) -> None:
        """Raise Changed if the tables are not defined as `agree` found them."""
        schema = self._schema(connection)
        if schema != self._agreed:
            raise Changed(is_migrated=self._agreed is not None and schema.revision != self._agreed.revision)

    def agree(self, run: CompleteRun, schema: Schema) -> bool:
        """Return whether the rows that MLflow's client wrote for a run are exactly those that `write` would write.

        Args:
            run: a run with a data set, as sent by the client.
            schema: how the tables were defined before the run was sent. From now on, `write` accepts no other schema.

        Raises:
            Changed: the tables have been redefined since `schema` was read.
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
        """Return the id of the run's data set. Insert one if the experiment has none with that name and digest."""
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
    """Lock the rows of the runs' experiments and parent runs until the transaction ends.

    SQLite allows only one writer at a time. PostgreSQL makes transactions wait that would delete the rows. Raises Gone
    if one of the rows was deleted or replaced.
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
    """Return the rows that MLflow's client would have written for a run, by table, in the order of `_COLUMNS`."""
    latest: dict[str, Point] = {}
    points = dict.fromkeys(run.points)  # duplicate rows are written once
    for key, value, time, step in points:
        known = latest.get(key)
        # MLflow's rule for the latest metric: the highest step, then the latest time, then the highest value.
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
    """Return the key that identifies the run's data set: (experiment id, name, digest), empty texts if it has none."""
    dataset = None if run.dataset is None else run.dataset.dataset
    return (run.experiment_id, "", "") if dataset is None else (run.experiment_id, dataset.name, dataset.digest)


def _tables_of_runs() -> dict[str, str]:
    """Return each table whose rows belong to runs, with the column that holds the run's id."""
    owners = {name: [own for own in _OWNERS if own in table.columns] for name, table in Base.metadata.tables.items()}
    return {name: columns[0] for name, columns in owners.items() if columns}


def _counted(rows: list[dict[str, Any]]) -> Counter[frozenset[tuple[str, Any]]]:
    return Counter(frozenset(row.items()) for row in rows)


def _be_patient(connection: Any, record: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions; `_begin_to_write` does
    connection.execute("PRAGMA cache_size = -65536")  # KiB; with the default of 2 MiB, writing takes 1.5 times as long
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")


def _begin_to_write(connection: Connection) -> None:
    """Begin a transaction as a writer.

    A transaction that reads first and writes later would fail instead of waiting if another writer is active.
    """
    connection.exec_driver_sql("BEGIN IMMEDIATE")
