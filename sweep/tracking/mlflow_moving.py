"""Changes the artifact locations in an MLflow database after its artifacts were moved."""

from pathlib import Path

import sqlalchemy
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlLoggedModel, SqlRun
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from sweep.tracking.store import Store
from sweep.utils.errors import ConfigError, one_line
from sweep.utils.passwords import without_password

# Every column in which MLflow keeps the place of artifacts.
_COLUMNS = (
    (SqlExperiment.__tablename__, "artifact_location"),
    (SqlRun.__tablename__, "artifact_uri"),
    (SqlLoggedModel.__tablename__, "artifact_location"),
    (SqlModelVersion.__tablename__, "source"),
    (SqlModelVersion.__tablename__, "storage_location"),
)


def relocate(store: Store, before: Path, now: Path) -> int:
    """Replace a folder at the beginning of every artifact location, in one transaction. It may be repeated.

    Args:
        store: the tracking store, a database.
        before: the folder where artifacts were.
        now: the folder where they are.

    Returns:
        The number of locations that were changed.

    Raises:
        ConfigError: the database cannot be reached or changed.
    """
    assert store.uri is not None
    try:
        engine = sqlalchemy.create_engine(store.uri, poolclass=sqlalchemy.NullPool)
        with engine.begin() as connection:
            known = sqlalchemy.inspect(connection)
            return sum(
                _replace(connection, table, column, before, now)
                for table, column in _COLUMNS
                if known.has_table(table) and column in {c["name"] for c in known.get_columns(table)}
            )
    except SQLAlchemyError as error:
        problem = f"{without_password(store.uri)} cannot be changed ({one_line(error)}); then move it again"
        raise ConfigError("tracking.uri", problem) from error


def _replace(connection: Connection, table: str, column: str, before: Path, now: Path) -> int:
    """Replace the folder in a column, written as a path or as a URI. Return the number of rows."""
    n_rows = 0
    for old, new in ((before.as_uri(), now.as_uri()), (str(before), str(now))):
        found = connection.execute(
            sqlalchemy.text(f"SELECT DISTINCT {column} FROM {table} WHERE substr({column}, 1, :n) = :old"),
            {"n": len(old), "old": old},
        )
        for (place,) in found.all():
            if place != old and place[len(old)] != "/":  # another folder, whose name only begins alike
                continue
            update = sqlalchemy.text(f"UPDATE {table} SET {column} = :new WHERE {column} = :place")
            n_rows += connection.execute(update, {"new": new + place[len(old) :], "place": place}).rowcount
    return n_rows
