"""Where a study is kept: a file in its folder, or what `hydra.sweeper.storage` names; and its processes' common lock.

The embedded file has the format of Optuna's JournalFileBackend, so optuna-dashboard opens it, too.
"""

import fcntl
import hashlib
import importlib
import json
import os
import re
import socket
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend, JournalRedisBackend

from sweep.errors import ConfigError, one_line
from sweep.record.folder import StudyFolder
from sweep.record.store import without_password

if TYPE_CHECKING:
    import sqlalchemy  # 0.2 s, which a study in a file does without

_KEY = "hydra.sweeper.storage"
_PATIENCE_S = 10  # with a server that does not answer
_KINDS = "a path, sqlite:///path, postgresql+psycopg://, mysql+pymysql://, redis://, grpc://host:port"
_INSTALL = {  # by kind
    "sqlite": "install it",
    "postgresql": "pip install 'sweep[postgresql]' and write postgresql+psycopg://",
    "mysql": "pip install pymysql and write mysql+pymysql://",
    "redis": "pip install redis",
    "rediss": "pip install redis",
    "grpc": "pip install grpcio",
}
_CONNECT_ARGS = {  # by driver
    "pysqlite": {"timeout": 60},  # for a writer's turn
    **{driver: {"connect_timeout": _PATIENCE_S} for driver in ("psycopg", "psycopg2", "pymysql", "mysqldb")},
}
_BEGINNING = b'{"op_code":'  # of every line of a journal
# Intermediate values and user attributes of trials survive a crash of the process only, as does the trial's own
# journal, which has the same values. They come with every epoch, and an fsync costs up to 10 ms on a disk.
_NOT_SYNCED = (7, 8)


class JournalFile(BaseJournalBackend):
    """The file behind an Optuna JournalStorage: one JSON object a line; what was appended survives a power cut.

    A torn last line, left by a crash or a full disk, is not read, and cut off before the next is appended. Exclusion
    is by flock, which dies with its process; the lock file of Optuna's own backend is left alone.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).absolute()
        self._mark = (0, 0)  # lines read, and the offset behind them
        with self._locked(os.O_RDWR | os.O_CREAT, fcntl.LOCK_SH):
            if not self._path.is_file():
                raise ConfigError(_KEY, f"'{self._path}' is no file")

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """All of the logs or, when the disk is full, none."""
        data = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        with self._locked(os.O_RDWR | os.O_APPEND, fcntl.LOCK_EX) as file:
            size = self._without_torn_line(file)
            try:
                while data:
                    data = data[os.write(file, data) :]
            except OSError:
                os.ftruncate(file, size)
                raise
            fcntl.flock(file, fcntl.LOCK_UN)  # no need to wait for the disk in turn: fsync covers all lines so far
            if any(log["op_code"] not in _NOT_SYNCED for log in logs):
                os.fsync(file)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Raises ConfigError where a finished line cannot be read."""
        number, offset = self._mark if self._mark[0] <= log_number_from else (0, 0)
        with self._locked(os.O_RDONLY, fcntl.LOCK_SH) as file:
            data = os.pread(file, self._size(file) - offset, offset)
        *lines, torn = data.split(b"\n")
        if offset == 0 and not lines:
            self._check_beginning(torn)
        for line in lines:
            number, offset = number + 1, offset + len(line) + 1
            if number > log_number_from:
                log = self._parsed(line, number)
                self._mark = (number, offset)
                yield log

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            log = json.loads(line)
        except ValueError:
            log = None
        if isinstance(log, dict) and "op_code" in log:
            return log
        if number == 1:
            raise ConfigError(_KEY, f"'{self._path}' is no journal of Optuna's; name another file")
        remedy = "restore the file from a copy, or delete that line to go on with the others"
        raise ConfigError(_KEY, f"line {number} of '{self._path}' is damaged; {remedy}")

    def _without_torn_line(self, file: int) -> int:
        """The file's size, once it ends with a whole line."""
        size, (_, offset) = self._size(file), self._mark
        if size == offset or os.pread(file, 1, size - 1) == b"\n":
            return size
        tail = os.pread(file, size - offset, offset)
        whole = offset + tail.rfind(b"\n") + 1
        if whole == 0:
            self._check_beginning(tail)
        os.ftruncate(file, whole)
        return whole

    def _check_beginning(self, torn: bytes) -> None:
        """A file of a single unfinished line is only cut off if it was a journal; a power cut may leave zeros."""
        if not _BEGINNING.startswith(torn.rstrip(b"\0")[: len(_BEGINNING)]):
            raise ConfigError(_KEY, f"'{self._path}' is no journal of Optuna's; name another file")

    def _size(self, file: int) -> int:
        size = os.fstat(file).st_size
        if size < self._mark[1]:
            raise ConfigError(_KEY, f"'{self._path}' was cut or replaced while in use")
        return size

    def _locked(self, flags: int, kind: int) -> AbstractContextManager[int]:
        return _flocked(self._path, flags, kind)


@contextmanager
def _flocked(path: Path, flags: int, kind: int) -> Iterator[int]:
    """The opened file's descriptor, while locked. Raises ConfigError where it cannot be opened."""
    try:
        if flags & os.O_CREAT:
            with suppress(FileExistsError):  # by a file; that is told below
                path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, flags, 0o644)
    except OSError as error:
        raise ConfigError(_KEY, f"cannot open '{path}': {error.strerror}") from error
    try:
        fcntl.flock(file, kind)
        yield file
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough if another thread forked meanwhile
        os.close(file)


def open_storage(url: str | None, folder: StudyFolder) -> BaseStorage:
    """The storage at `url`, by default the file in the study's folder, made where there is none yet.

    Raises ConfigError, without passwords, where it cannot be used; a server has 10 s to answer.
    """
    where = str(folder.storage) if url is None else url
    with _told_in_one_line(where):
        match _kind(url):
            case None:
                return _journal(Path(where).absolute())
            case "redis" | "rediss":
                return _redis(where)
            case "grpc":
                return _grpc(where)
            case _:
                return _database(_database_url(where))


def _kind(url: str | None) -> str | None:
    """The URL's scheme without a driver; None for a path."""
    scheme = re.match(r"(\w{2,})(\+\w+)?:", url or "")
    if scheme and scheme[1] not in _INSTALL:
        raise ConfigError(_KEY, f"'{_shown(str(url))}' is of no known kind; choose {_KINDS}")
    return scheme[1] if scheme else None


@contextmanager
def _told_in_one_line(url: str) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None and str(cause.__cause__):  # what the driver says, below Optuna's words
            cause = cause.__cause__
        problem = f"cannot be used: {one_line(cause)}"
        if isinstance(cause, TimeoutError):
            problem = f"did not answer within {_PATIENCE_S} s"
        if isinstance(cause, ImportError):
            problem = f"needs a package: {one_line(cause)}; {_INSTALL[_kind(url) or 'sqlite']}"
        raise ConfigError(_KEY, f"'{_shown(url)}' {problem}") from error


def _shown(url: str) -> str:
    """Without passwords, be they in the query or not quoted as they should."""
    return without_password(re.sub(r"://([^:/@]*):.*@", r"://\1:***@", re.sub(r"(password=)[^&]*", r"\1***", url)))


def _journal(path: Path) -> BaseStorage:
    if path.suffix in (".db", ".sqlite", ".sqlite3"):
        raise ConfigError(_KEY, f"'{path}' would become a journal; for SQLite write sqlite:///{path}")
    return JournalStorage(JournalFile(path))


def _redis(url: str) -> BaseStorage:
    redis = importlib.import_module("redis")
    limits = {"socket_connect_timeout": _PATIENCE_S, "socket_timeout": _PATIENCE_S}
    with closing(redis.Redis.from_url(url, **limits)) as client:
        client.ping()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return JournalStorage(JournalRedisBackend(url))


def _grpc(url: str) -> BaseStorage:
    host, _, port = url.removeprefix("grpc://").rstrip("/").rpartition(":")
    if not (host and port.isdigit()):
        raise ConfigError(_KEY, f"'{url}' names no server; write grpc://host:port")
    socket.create_connection((host.strip("[]"), int(port)), _PATIENCE_S).close()  # fails in fewer words than gRPC
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        storage = GrpcStorageProxy(host=host, port=int(port))
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(storage.get_all_studies).result(_PATIENCE_S)
        except BaseException:
            storage.close()  # ends the call, which knows no deadline
            raise
    return storage


def _database_url(url: str) -> "sqlalchemy.URL":
    import sqlalchemy

    if url.partition("?")[0].count("@") > 1:
        raise ConfigError(_KEY, f"'{_shown(url)}' has more than one @; write those of the password as %40")
    parsed = sqlalchemy.make_url(url)
    if parsed.drivername == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite":
        return parsed
    if parsed.database in (None, "", ":memory:"):
        raise ConfigError(_KEY, f"'{url}' lives in one process only; name a file: sqlite:///path")
    return parsed.set(database=str(Path(parsed.database).absolute()))


def _connect_args(url: "sqlalchemy.URL") -> dict[str, Any]:
    args = _CONNECT_ARGS.get(url.get_driver_name(), {})
    return {name: value for name, value in args.items() if name not in url.query}


def _database(url: "sqlalchemy.URL") -> BaseStorage:
    import sqlalchemy

    is_file = url.get_backend_name() == "sqlite"
    options: dict[str, Any] = {"connect_args": _connect_args(url)}
    if not is_file:
        options["pool_pre_ping"] = True  # the server may restart meanwhile
    address = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")  # Optuna formats it
    if url.get_driver_name() in ("pymysql", "mysqldb"):  # they wait for the server's greeting without end
        limits = {**options["connect_args"], "read_timeout": _PATIENCE_S}
        sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=limits).connect().close()
    with _creation_lock(url):
        storage = RDBStorage(address, engine_kwargs=options)
        if is_file:
            with storage.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")  # who reads does not hold up who writes
    return storage


def _creation_lock(url: "sqlalchemy.URL") -> AbstractContextManager[Any]:
    """Of two processes that create the tables of a database at once, one would fail."""
    if url.get_backend_name() == "sqlite":
        return _flocked(Path(f"{url.database}.lock"), os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
    return _ServerLock(url, "sweep: creation of tables", keep=False)


class _ServerLock:
    """A named lock that a database server takes back when the session holding it ends, however it ends.

    The session is kept for the next time, unless told otherwise. Belongs to one process; its threads take turns.
    """

    def __init__(self, url: "sqlalchemy.URL", name: str, *, keep: bool = True) -> None:
        import sqlalchemy
        from sqlalchemy.exc import DBAPIError

        self._keep = keep
        self._session_ended = DBAPIError
        self._engine = sqlalchemy.create_engine(
            url, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT", connect_args=_connect_args(url)
        )
        self._session: sqlalchemy.Connection | None = None
        self._turn = threading.Lock()  # a session may take its own lock twice
        # A machine that lost its power keeps no lock for long: its silence ends the session after half a minute on
        # PostgreSQL, after five on MySQL.
        if url.get_backend_name() == "postgresql":
            key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
            settings = {"tcp_keepalives_idle": 15, "tcp_keepalives_interval": 5, "tcp_keepalives_count": 3}
            self._begin = "SELECT " + ", ".join(f"set_config('{k}', '{v}', false)" for k, v in settings.items())
            self._take, self._give = f"SELECT pg_advisory_lock({key})", f"SELECT pg_advisory_unlock({key})"
        else:  # MySQL's names are the server's, of at most 64 characters
            key = hashlib.sha256(f"{url.database}/{name}".encode()).hexdigest()[:48]
            self._begin = "SET SESSION wait_timeout = 300"
            self._take, self._give = f"SELECT GET_LOCK('{key}', 1000000)", f"SELECT RELEASE_LOCK('{key}')"

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
        if self._session.exec_driver_sql(self._take).scalar() in (0, None):  # MySQL's ways of saying no
            raise RuntimeError("the server gave no lock")

    def _hang_up(self) -> None:
        if self._session is not None:
            self._session.invalidate()  # `close` alone would first speak with the server
            self._session.close()
            self._session = None


_server_locks: dict[tuple[int, str, str], _ServerLock] = {}  # by process: a forked one must not use its parent's


class StudyLock:
    """Held for a moment by one of a study's processes while the others wait; freed when its process dies.

    On PostgreSQL and MySQL it is the server's, named after the study's folder; else a file's in that folder, which
    machines only share where they share the folder. Raises ConfigError where it cannot be had. Not reentrant.
    """

    def __init__(self, storage: str | None, folder: StudyFolder) -> None:
        self._storage, self._folder = storage, folder
        self._held: AbstractContextManager[None] | None = None

    def __enter__(self) -> None:
        with _told_in_one_line(self._storage or str(self._folder.path)):
            lock = self._lock()
            lock.__enter__()
        self._held = lock

    def __exit__(self, *error: object) -> None:
        held, self._held = self._held, None
        assert held is not None
        held.__exit__(None, None, None)

    def _lock(self) -> AbstractContextManager[None]:
        if _kind(self._storage) not in ("postgresql", "mysql"):
            return self._folder.lock()
        key = os.getpid(), str(self._storage), self._folder.path.name
        if key not in _server_locks:
            lock = _ServerLock(_database_url(key[1]), f"sweep: study {key[2]}")
            return _server_locks.setdefault(key, lock)  # another thread may have been faster
        return _server_locks[key]
