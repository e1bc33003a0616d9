"""The lock that all processes of a study share, on one machine or several."""

import fcntl
import hashlib
import os
import threading
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.storage.journal_file import flocked
from sweep.storage.url import connect_args, database_url, kind, one_line_errors, storage_file
from sweep.tracking.folders import StudyFolder

if TYPE_CHECKING:
    import sqlalchemy


class ServerLock:
    """A named lock of a PostgreSQL server, which releases it when the session that holds it ends for any reason.

    An object belongs to one process, whose threads take turns.
    """

    def __init__(self, url: "sqlalchemy.URL", name: str, *, keep: bool = True) -> None:
        """`keep` is whether the session stays open after a release, for the next time."""
        import sqlalchemy
        from sqlalchemy.exc import DBAPIError

        self._keep = keep
        self._session_ended = DBAPIError
        self._engine = sqlalchemy.create_engine(
            url, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT", connect_args=connect_args(url)
        )
        self._session: sqlalchemy.Connection | None = None
        self._turn = threading.Lock()  # a session can acquire its own lock twice
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
        # A machine that lost its power does not keep the lock for long: the server ends its silent session after 30 s.
        settings = {"tcp_keepalives_idle": 15, "tcp_keepalives_interval": 5, "tcp_keepalives_count": 3}
        self._begin_sql = "SELECT " + ", ".join(f"set_config('{k}', '{v}', false)" for k, v in settings.items())
        self._lock_sql, self._free_sql = f"SELECT pg_advisory_lock({key})", f"SELECT pg_advisory_unlock({key})"

    def __enter__(self) -> None:
        self._turn.acquire()
        try:
            kept = self._session is not None
            try:
                self._acquire()
            except self._session_ended:
                self._hang_up()
                if not kept:
                    raise
                self._acquire()  # the kept session had ended
        except BaseException:
            self._hang_up()  # the server may have granted the lock by now
            self._turn.release()
            raise

    def __exit__(self, *error: object) -> None:
        released = False
        try:
            if self._keep and self._session is not None:
                with suppress(self._session_ended):  # the lock ends with the session
                    self._session.exec_driver_sql(self._free_sql).close()
                    released = True
        finally:
            if not released:
                self._hang_up()
            self._turn.release()

    def _acquire(self) -> None:
        if self._session is None:
            self._session = self._engine.connect()
            self._session.exec_driver_sql(self._begin_sql).close()
        self._session.exec_driver_sql(self._lock_sql).close()

    def _hang_up(self) -> None:
        if self._session is not None:
            self._session.invalidate()  # `close` alone would first send a message to the server
            self._session.close()
            self._session = None


# By process id, storage and study. A forked process must not use the session of its parent.
_server_locks: dict[tuple[int, str, str], ServerLock] = {}


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

    def _lock(self) -> AbstractContextManager[object]:
        if self._storage is not None and (file := storage_file(self._storage)) is not None:
            return flocked(Path(f"{file}.study.lock"), os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
        if kind(self._storage) != "postgresql":
            return self._folder.lock()
        key = os.getpid(), str(self._storage), self._folder.path.name
        if key not in _server_locks:
            lock = ServerLock(database_url(key[1]), f"sweep: study {key[2]}")
            return _server_locks.setdefault(key, lock)  # another thread may have been faster
        return _server_locks[key]
