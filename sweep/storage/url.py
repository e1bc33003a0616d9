"""Parses `hydra.sweeper.storage`, and turns the errors of a storage into one line."""

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
    import sqlalchemy  # takes 0.2 s, and a study in a file does not need it

KEY = "hydra.sweeper.storage"
_STUDY = "hydra.sweeper.study_name"  # the key to change if the storage is the study's own file, which has no key
PATIENCE_S = 10  # how long a server has to answer
_KINDS = "a path, sqlite:///path, postgresql+psycopg://, grpc://host:port"
_INSTALL = {  # by kind
    "sqlite": "install it",
    "postgresql": "pip install 'hydra-sweep[postgresql]' and write postgresql+psycopg://",
    "grpc": "pip install grpcio",
}
_CONNECT_ARGS = {  # by driver
    "pysqlite": {"timeout": 60},  # while other processes write
    **{driver: {"connect_timeout": PATIENCE_S} for driver in ("psycopg", "psycopg2")},
}
_SQLITE_SETTINGS = ("timeout", "isolation_level", "detect_types", "check_same_thread", "cached_statements", "uri")


class NotAStorage(ConfigError):
    """The file at the place of the storage is not an Optuna storage."""


def kind(url: str | None) -> str | None:
    """Return the URL's scheme without a driver; None for a path. Raise ConfigError if the scheme is unknown."""
    scheme = re.match(r"(\w{2,})(\+\w+)?:", url or "")
    if scheme and scheme[1] not in _INSTALL:
        raise ConfigError(KEY, f"'{without_password(str(url))}' is of an unknown kind; choose {_KINDS}")
    return scheme[1] if scheme else None


def without_driver(uri: str) -> str:
    """Return the URI without a driver, since postgresql+psycopg:// and postgresql:// are the same place."""
    return re.sub(r"^(\w+)\+\w+:", r"\1:", uri)


def storage_file(url: str) -> Path | None:
    """Return the file that a storage is kept in, if it is one. Raises ConfigError for an unknown kind of URL."""
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
    """Turn errors of the storage inside the `with` block into ConfigErrors of one line, without passwords.

    `url` is None for the file in the study's folder. Raises ConfigError at once if the URL lacks its password.
    """
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
        cause = root_cause(error)
        problem = f"cannot be used: {one_line(cause)}"
        if isinstance(cause, TimeoutError):
            problem = f"did not answer within {PATIENCE_S} s"
        if isinstance(cause, ImportError):
            problem = f"needs a package: {one_line(cause)}; {_INSTALL[kind(url) or 'sqlite']}"
        raise ConfigError(KEY, f"'{without_password(url)}' {problem}") from error


def root_cause(error: BaseException) -> BaseException:
    """Return the driver's own error, which has the reason, below Optuna's."""
    while error.__cause__ is not None and str(error.__cause__):
        error = error.__cause__
    return error


def recorded_url(url: str | None) -> str | None:
    """Return the URL that a study's record stores: absolute, without a password; None for the study's own file."""
    if url is None:
        return None
    if kind(url) is None:
        return str(absolute(url))
    return without_password(str(database_url(url))) if kind(url) == "sqlite" else without_password(url)


def database_url(url: str) -> "sqlalchemy.URL":
    """Return the parsed URL, with psycopg as the default driver and an absolute path for SQLite.

    Raises ConfigError for a SQLite database in memory, or a password with an unquoted @.
    """
    import sqlalchemy

    if url.partition("?")[0].count("@") > 1:
        raise ConfigError(KEY, f"'{without_password(url)}' has more than one @; write those of the password as %40")
    parsed = sqlalchemy.make_url(url)
    if parsed.drivername == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite":
        return parsed
    _refuse_lost_end(url)
    if parsed.database in (None, "", ":memory:"):
        raise ConfigError(KEY, f"'{url}' lives in one process only; name a file: sqlite:///path")
    return parsed.set(database=str(absolute(parsed.database)))


def _refuse_lost_end(url: str) -> None:
    """Raise ConfigError for a `?` in a SQLite URL that begins no settings: SQLAlchemy would drop the rest of a path."""
    _, _, rest = url.partition("?")
    if "file:" not in url and any(part.partition("=")[0] not in _SQLITE_SETTINGS for part in rest.split("&") if rest):
        raise ConfigError(KEY, f"'{url}' is cut at its '?', which begins settings; name a file without one")


def connect_args(url: "sqlalchemy.URL") -> dict[str, Any]:
    """Return the driver's timeout arguments, except those that the URL itself sets."""
    args = _CONNECT_ARGS.get(url.get_driver_name(), {})
    return {name: value for name, value in args.items() if name not in url.query}
