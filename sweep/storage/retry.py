"""Retries while a storage is unreachable, as when a server restarts or the network is down."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from optuna.exceptions import StorageInternalError

from sweep.storage.url import KEY, kind, root_cause
from sweep.utils.errors import ConfigError, SweepError, one_line
from sweep.utils.passwords import without_password

log = logging.getLogger("sweep")
T = TypeVar("T")

_PATIENCE_S = 180.0
_LONGEST_PAUSE_S = 5.0
_DRIVERS = ("sqlalchemy", "psycopg", "psycopg2", "grpc")


@dataclass
class RetryPolicy:
    """Retries an action while the storage is unreachable, for at most 3 minutes.

    Actions must be idempotent: perhaps only the reply was lost. The last error is raised if the time is over.

    Attributes:
        storage: the URL of the study's storage. A file is never unreachable.
        is_over: returns True to stop waiting early.
    """

    storage: str | None
    is_over: Callable[[], bool] = lambda: False

    def __call__(self, action: Callable[[], T]) -> T:
        began, pause_s = time.monotonic(), 0.1
        while True:
            try:
                return action()
            except Exception as error:
                waited_s = time.monotonic() - began
                if not self.is_outage(error) or waited_s > _PATIENCE_S or self.is_over():
                    raise
                log.warning("the study's storage is unreachable (%s)", one_line(error, 120))
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    @contextmanager
    def one_line(self) -> Iterator[None]:
        """Turn the error of an outage inside the `with` block into a ConfigError of one line, without passwords."""
        try:
            yield
        except (SweepError, OSError):  # an OSError may be about any other file
            raise
        except Exception as error:
            if not self.is_outage(error):
                raise
            problem = f"'{without_password(str(self.storage))}' cannot be reached ({one_line(root_cause(error), 120)})"
            raise ConfigError(KEY, f"{problem}; once it can, the same command resumes the study") from error

    def is_outage(self, error: Exception) -> bool:
        """Return whether the error means that the storage is unreachable."""
        if kind(self.storage) in (None, "sqlite"):
            return False
        if isinstance(error, ConfigError):
            return error.key == KEY
        return isinstance(error, StorageInternalError | OSError) or _package(error) in _DRIVERS


def _package(error: Exception) -> str:
    return type(error).__module__.partition(".")[0]
