"""What `hydra.sweeper.storage` says, and how to say what is wrong with it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.tracking.folders import StudyFolder
from sweep.utils.errors import ConfigError, Damaged, one_line
from sweep.utils.passwords import is_hidden, without_password
from sweep.utils.paths import absolute

if TYPE_CHECKING:
    import sqlalchemy  # 0.2 s, which a study in a file does without

KEY = "hydra.sweeper.storage"
_STUDY = "hydra.sweeper.study_name"  # to change where the storage is the study's own file, which no key names
PATIENCE_S = 10  # with a server that does not answer
_KINDS = "a path, sqlite:///path, postgresql+psycopg://, mysql+pymysql://, redis://, grpc://host:port"
_INSTALL = {  # by kind
    "sqlite": "install it",
    "postgresql": "pip install 'hydra-sweep[postgresql]' and write postgresql+psycopg://",
    "mysql": "pip install pymysql and write mysql+pymysql://",
    "redis": "pip install redis",
    "rediss": "pip install redis",
    "grpc": "pip install grpcio",
}
_CONNECT_ARGS = {  # by driver
    "pysqlite": {"timeout": 60},  # for a writer's turn
    **{driver: {"connect_timeout": PATIENCE_S} for driver in ("psycopg", "psycopg2", "pymysql", "mysqldb")},
}


class NotAStorage(ConfigError):
    """A file stands where a study would be kept, and no storage of Optuna's wrote it."""


def kind(url: str | None) -> str | None:
    """The URL's scheme without a driver; None for a path."""
    scheme = re.match(r"(\w{2,})(\+\w+)?:", url or "")
    if scheme and scheme[1] not in _INSTALL:
        raise ConfigError(KEY, f"'{without_password(str(url))}' is of no known kind; choose {_KINDS}")
    return scheme[1] if scheme else None


def without_driver(uri: str) -> str:
    """postgresql+psycopg:// and postgresql:// are the same place."""
    return re.sub(r"^(\w+)\+\w+:", r"\1:", uri)


def storage_file(url: str) -> Path | None:
    """Return the file that a storage is kept in, if it is one. Raises ConfigError for a URL of no known kind."""
    match kind(url):
        case None:
            return absolute(url)
        case "sqlite":
            return Path(str(database_url(url).database))
    return None


def storage_place(url: str | None, folder: StudyFolder) -> str:
    """Return what messages call the storage of a study: its file, or its URL without a password."""
    return str(folder.storage if url is None else storage_file(url) or without_password(url))


@contextmanager
def one_line_errors(url: str | None) -> Iterator[None]:
    """Of what the storage at `url` raises; None is the file below `output_dir`."""
    if is_hidden(url or ""):
        raise ConfigError(KEY, f"'{url}' lacks its password; write it in place of ***")
    try:
        yield
    except Damaged as error:
        if url is None and error.line is not None:
            remedy = f"{error.remedy}, or choose another name"
            raise Damaged(_STUDY, error.path, error.reason, remedy, error.line) from error
        raise
    except ConfigError as error:
        is_foreign = isinstance(error, NotAStorage) or isinstance(error.__cause__, IsADirectoryError)
        if is_foreign and url is None:
            message = "and the study would keep its trials there; move it away, or set another hydra.sweeper.study_name"
            raise ConfigError("study", f"{error.problem}, {message}") from error
        if is_foreign:
            raise ConfigError(KEY, f"{error.problem}; name another file") from error
        if url is None:
            raise ConfigError("output_dir", f"{error.problem}; give another one") from error
        raise
    except Exception as error:
        if url is None and not isinstance(error, OSError):
            problem = (
                f"the study's optuna.log is damaged ({one_line(error)}); restore it from a copy, or choose another name"
            )
            raise ConfigError(_STUDY, problem) from error
        if url is None:
            raise ConfigError("output_dir", f"cannot be written ({one_line(error)}); give another one") from error
        cause: BaseException = error
        while cause.__cause__ is not None and str(cause.__cause__):  # what the driver says, below Optuna's words
            cause = cause.__cause__
        problem = f"cannot be used: {one_line(cause)}"
        if isinstance(cause, TimeoutError):
            problem = f"did not answer within {PATIENCE_S} s"
        if isinstance(cause, ImportError):
            problem = f"needs a package: {one_line(cause)}; {_INSTALL[kind(url) or 'sqlite']}"
        raise ConfigError(KEY, f"'{without_password(url)}' {problem}") from error


def recorded_url(url: str | None) -> str | None:
    """How a study's record names its storage: from any directory, without a password; None for the file beside it."""
    if url is None:
        return None
    if kind(url) is None:
        return str(absolute(url))
    return without_password(str(database_url(url))) if kind(url) == "sqlite" else without_password(url)


def database_url(url: str) -> "sqlalchemy.URL":
    import sqlalchemy

    if url.partition("?")[0].count("@") > 1:
        raise ConfigError(KEY, f"'{without_password(url)}' has more than one @; write those of the password as %40")
    parsed = sqlalchemy.make_url(url)
    if parsed.drivername == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite":
        return parsed
    if parsed.database in (None, "", ":memory:"):
        raise ConfigError(KEY, f"'{url}' lives in one process only; name a file: sqlite:///path")
    return parsed.set(database=str(absolute(parsed.database)))


def connect_args(url: "sqlalchemy.URL") -> dict[str, Any]:
    args = _CONNECT_ARGS.get(url.get_driver_name(), {})
    return {name: value for name, value in args.items() if name not in url.query}
