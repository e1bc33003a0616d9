"""Opens the storage of a study: a file in its folder, or what `hydra.sweeper.storage` names."""

import fcntl
import os
import socket
import sqlite3
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, GrpcStorageProxy, InMemoryStorage, JournalStorage, RDBStorage
from optuna.trial import FrozenTrial

from sweep.storage.journal_file import JournalFile, flocked
from sweep.storage.lock import ServerLock
from sweep.storage.url import KEY, PATIENCE_S, connect_args, database_url, kind, one_line_errors
from sweep.tracking.folders import StudyFolder
from sweep.utils.errors import ConfigError, one_line
from sweep.utils.passwords import without_password
from sweep.utils.paths import absolute

if TYPE_CHECKING:
    import sqlalchemy

    from sweep.storage.database import Database  # imports SQLAlchemy


def open_storage(url: str | None, folder: StudyFolder) -> BaseStorage:
    """Open the storage at `url`, and create it if it does not exist. None means the file in the study's folder.

    Raises ConfigError, without passwords, if the storage cannot be used or if its server does not answer within 10 s.
    """
    where = str(folder.storage) if url is None else url
    with one_line_errors(url):
        if url is None:
            folder.path.mkdir(parents=True, exist_ok=True)
        match kind(url):
            case None:
                return _journal(absolute(where))
            case "grpc":
                return _grpc(where)
            case _:
                return _database(database_url(where))


def open_to_read(url: str) -> BaseStorage:
    """Open the storage at `url` without creating any file, table or row.

    Raises ConfigError as `open_storage` does, and if there is no Optuna storage at `url`.
    """
    with one_line_errors(url):
        match kind(url):
            case None:
                return JournalStorage(JournalFile(absolute(url), read_only=True))
            case "grpc":
                return _grpc(url)
            case _:
                return _database_to_read(database_url(url))


def reading_rungs(storage: BaseStorage, trial: FrozenTrial, *, only_ranks: bool) -> AbstractContextManager[None]:
    """Let a database read less while a pruner that compares rungs judges the trial, inside the `with` block.

    Other storages have all trials at hand.
    """
    database = as_database(storage)
    return nullcontext() if database is None else database.reading_rungs(trial, only_ranks=only_ranks)


def as_database(storage: BaseStorage) -> "Database | None":
    """Return the storage if it is a database, otherwise None."""
    if isinstance(storage, JournalStorage | GrpcStorageProxy | InMemoryStorage):
        return None
    from sweep.storage.database import Database

    return storage if isinstance(storage, Database) else None


def _journal(path: Path) -> BaseStorage:
    if path.suffix in (".db", ".sqlite", ".sqlite3"):
        raise ConfigError(KEY, f"'{path}' would become a journal; for SQLite write sqlite:///{path}")
    return JournalStorage(JournalFile(path))


def _grpc(url: str) -> BaseStorage:
    host, _, port = url.removeprefix("grpc://").rstrip("/").rpartition(":")
    if not (host and port.isdigit()):
        raise ConfigError(KEY, f"'{url}' does not name a server; write grpc://host:port")
    socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S).close()  # shorter errors than gRPC's
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        storage = GrpcStorageProxy(host=host, port=int(port))
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(storage.get_all_studies).result(PATIENCE_S)
        except BaseException:
            storage.close()  # ends the call, which has no timeout of its own
            raise
    return storage


def _database(url: "sqlalchemy.URL") -> BaseStorage:
    """Open a database with one connection. Optuna's own check of its tables takes two, so it is for new ones only."""
    from sweep.storage.database import Database

    options: dict[str, Any] = {"connect_args": connect_args(url)}
    if not _is_prepared(url):
        _prepare(url)
    if url.get_backend_name() == "postgresql":
        options |= {"pool_size": 1, "max_overflow": 0, "pool_pre_ping": True}  # the server may restart meanwhile
        options["isolation_level"] = "READ COMMITTED"  # what is read after the study's lock must not be older than it
    place = url.render_as_string(hide_password=False)
    storage = RDBStorage(place, options, skip_compatibility_check=True, skip_table_creation=True)
    if storage.get_current_version() != storage.get_head_version():
        _prepare(url)  # raises Optuna's advice
    return Database(storage)


def _is_prepared(url: "sqlalchemy.URL") -> bool:
    """Return whether the database has all tables. Our own is made last."""
    import sqlalchemy

    from sweep.storage import worker_table

    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        return False
    engine = sqlalchemy.create_engine(url, **_for_a_moment(url))
    return worker_table.exists(engine) and sqlalchemy.inspect(engine).has_table("version_info")  # Optuna's


def _prepare(url: "sqlalchemy.URL") -> None:
    """Create the tables that are missing, and check that they are of Optuna's version."""
    import sqlalchemy.exc

    from sweep.storage import worker_table

    with _creation_lock(url):
        storage = RDBStorage(url.render_as_string(hide_password=False), _for_a_moment(url))
        if url.get_backend_name() == "sqlite":
            with storage.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")  # readers then do not block writers
        try:
            worker_table.create(storage.engine)
        except sqlalchemy.exc.ProgrammingError as error:
            place = without_password(url.render_as_string(hide_password=False))
            remedy = "its owner has to run any study there once, and GRANT ALL ON sweep_workers to this role"
            problem = f"'{place}' lacks the table sweep_workers, which cannot be made ({one_line(error, 80)})"
            raise ConfigError(KEY, f"{problem}; {remedy}") from error


def _for_a_moment(url: "sqlalchemy.URL") -> dict[str, Any]:
    """Return the options of connections that are closed after their use."""
    import sqlalchemy

    return {"connect_args": connect_args(url), "poolclass": sqlalchemy.NullPool}


def _database_to_read(url: "sqlalchemy.URL") -> BaseStorage:
    import sqlalchemy

    from sweep.storage.database import Database

    options: dict[str, Any] = {"connect_args": connect_args(url)}
    if url.get_backend_name() == "sqlite":
        uri = f"file:{quote(str(url.database))}?mode=ro"
        options = {"creator": partial(sqlite3.connect, uri, uri=True, timeout=60, check_same_thread=False)}
    elif url.get_backend_name() == "postgresql":
        options["execution_options"] = {"postgresql_readonly": True}
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, **options)
    with engine.connect() as connection:
        there = sqlalchemy.inspect(connection).get_table_names()
        for table in ("version_info", "alembic_version"):  # Optuna would add a row that is missing in them
            if table not in there or connection.execute(sqlalchemy.text(f"SELECT 1 FROM {table}")).first() is None:
                raise ConfigError(
                    KEY, f"'{without_password(str(url))}' is not an Optuna storage; name that of the study"
                )
    return Database(
        RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=options, skip_table_creation=True)
    )


def _creation_lock(url: "sqlalchemy.URL") -> AbstractContextManager[Any]:
    """Return the lock to hold while tables are created. If two processes create them at once, one fails."""
    if url.get_backend_name() == "sqlite":
        return flocked(Path(f"{url.database}.lock"), os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
    return ServerLock("sweep: creation of tables").held(url)
