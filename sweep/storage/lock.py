"""The lock that all processes of a study share."""

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
    """A named lock of a PostgreSQL server, which frees it when the session that holds it ends, however it ends.

    The session is kept for the next time, unless told otherwise. Belongs to one process; its threads take turns.
    """

    def __init__(self, url: "sqlalchemy.URL", name: str, *, keep: bool = True) -> None:
        import sqlalchemy
        from sqlalchemy.exc import DBAPIError

        self._keep = keep
        self._session_ended = DBAPIError
        self._engine = sqlalchemy.create_engine(
            url, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT", connect_args=connect_args(url)
        )
        self._session: sqlalchemy.Connection | None = None
        self._turn = threading.Lock()  # a session may take its own lock twice
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
        # A machine that lost its power keeps no lock for long: the server ends its session after half a minute.
        settings = {"tcp_keepalives_idle": 15, "tcp_keepalives_interval": 5, "tcp_keepalives_count": 3}
        self._begin = "SELECT " + ", ".join(f"set_config('{k}', '{v}', false)" for k, v in settings.items())
        self._take, self._give = f"SELECT pg_advisory_lock({key})", f"SELECT pg_advisory_unlock({key})"

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
            self._hang_up()  # the server may have given the lock by now
            self._turn.release()
            raise

    def __exit__(self, *error: object) -> None:
        given_back = False
        try:
            if self._keep and self._session is not None:
                with suppress(self._session_ended):  # and the lock with it
                    self._session.exec_driver_sql(self._give).close()
                    given_back = True
        finally:
            if not given_back:
                self._hang_up()
            self._turn.release()

    def _acquire(self) -> None:
        if self._session is None:
            self._session = self._engine.connect()
            self._session.exec_driver_sql(self._begin).close()
        self._session.exec_driver_sql(self._take).close()

    def _hang_up(self) -> None:
        if self._session is not None:
            self._session.invalidate()  # `close` alone would first speak with the server
            self._session.close()
            self._session = None


_server_locks: dict[tuple[int, str, str], ServerLock] = {}  # by process: a forked one must not use its parent's


class StudyLock:
    """Held for a moment by one of a study's processes while the others wait; freed when its process dies.

    On PostgreSQL it is the server's, named after the study's folder. For a storage that is a file it is a file's beside
    it, since commands with other output folders may share the storage. Otherwise (MySQL, Redis, gRPC) it is a file's in
    the study's folder, which the machines of the study must share. Not reentrant. Raises ConfigError if it cannot be
    had.
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
