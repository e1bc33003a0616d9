"""The lock that all processes of a study share, on one machine or several."""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.storage.journal_file import flocked
from sweep.storage.url import connect_args, database_url, kind, one_line_errors, storage_file
from sweep.tracking.folders import StudyFolder

if TYPE_CHECKING:
    import sqlalchemy

_SETTINGS = {  # of the server, until the transaction ends
    # A machine that lost its power does not keep the lock for long: the server ends its silent session after 30 s.
    **{"tcp_keepalives_idle": 15, "tcp_keepalives_interval": 5, "tcp_keepalives_count": 3},
    "idle_in_transaction_session_timeout": 0,  # others may use the study meanwhile
    "lock_timeout": "5s",  # then the process's other threads may use its connection, before it waits again
}
_TURN_S = 0.05  # for another thread of the process to take its connection
_NOT_IN_TIME = "55P03"  # PostgreSQL's code for the end of `lock_timeout`


class ServerLock:
    """A named lock of a PostgreSQL server, which releases it when the transaction that holds it ends for any reason.

    It belongs to a transaction, not to a session, so that a pooler of connections may stand in between.
    """

    def __init__(self, name: str) -> None:
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
        settings = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in _SETTINGS.items())
        self._sql = f"SELECT {settings}, pg_advisory_xact_lock({key})"  # in this order

    @contextmanager
    def transaction(self, engine: "sqlalchemy.Engine") -> Iterator["sqlalchemy.Connection"]:
        """Begin a transaction, which holds the lock until it ends."""
        while True:
            with engine.connect() as connection:
                if self._acquire(connection):
                    yield connection
                    connection.commit()
                    return
            time.sleep(_TURN_S)

    @contextmanager
    def held(self, url: "sqlalchemy.URL") -> Iterator[None]:
        """Hold the lock by a connection of its own, which is closed afterwards."""
        import sqlalchemy
        from sqlalchemy.exc import DBAPIError

        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=connect_args(url))
        connection = engine.connect()
        try:
            while not self._acquire(connection):
                connection.rollback()
            yield
        finally:
            with suppress(DBAPIError):  # the session has ended, and the lock with it
                connection.close()

    def _acquire(self, connection: "sqlalchemy.Connection") -> bool:
        """Acquire the lock. Return False if others held it for long."""
        from sqlalchemy.exc import DBAPIError

        try:
            connection.exec_driver_sql(self._sql).close()
        except DBAPIError as error:
            own: Any = error.orig  # the driver's
            if (getattr(own, "sqlstate", None) or getattr(own, "pgcode", None)) != _NOT_IN_TIME:
                raise
            return False
        return True


class StudyLock:
    """A lock that one process of a study holds for a moment while the others wait. It is released if the process dies.

    On PostgreSQL, it is a lock in the server, named after the study's folder. If the storage is a file with a path of
    its own, the lock file lies beside it, since commands with other output folders may share that storage. With
    gRPC, the lock file lies in the study's folder, which the machines of the study must share.

    Entering the lock raises ConfigError if it cannot be acquired. The lock is not reentrant.
    """

    def __init__(self, storage: str | None, folder: StudyFolder) -> None:
        self._storage, self._folder = storage, folder
        self._held: AbstractContextManager[object] | None = None

    def __enter__(self) -> None:
        with one_line_errors(self._storage):
            lock = self._lock()
            lock.__enter__()
        self._held = lock

    def __exit__(self, *error: object) -> None:
        held, self._held = self._held, None
        assert held is not None
        held.__exit__(None, None, None)

    @contextmanager
    def transaction(self, engine: "sqlalchemy.Engine") -> Iterator["sqlalchemy.Connection"]:
        """Hold the lock during a transaction of the study's database. On PostgreSQL, this needs no other connection."""
        if kind(self._storage) == "postgresql":
            with self._server_lock().transaction(engine) as connection:
                yield connection
        else:
            with self, engine.begin() as connection:
                yield connection

    def _lock(self) -> AbstractContextManager[object]:
        if self._storage is not None and (file := storage_file(self._storage)) is not None:
            return flocked(Path(f"{file}.study.lock"), os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
        if kind(self._storage) != "postgresql":
            return self._folder.lock()
        return self._server_lock().held(database_url(str(self._storage)))

    def _server_lock(self) -> ServerLock:
        return ServerLock(f"sweep: study {self._folder.path.name}")
