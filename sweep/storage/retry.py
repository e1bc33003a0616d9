"""Retries while a storage is unreachable, as when a server restarts or the network is down."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from optuna.exceptions import StorageInternalError

from sweep.storage.url import KEY, kind
from sweep.utils.errors import ConfigError, one_line

log = logging.getLogger("sweep")
T = TypeVar("T")

_PATIENCE_S = 180.0
_LONGEST_PAUSE_S = 5.0
_DRIVERS = ("sqlalchemy", "psycopg", "psycopg2", "pymysql", "MySQLdb", "redis", "grpc")


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

    def is_outage(self, error: Exception) -> bool:
        """Return whether the error means that the storage is unreachable."""
        if kind(self.storage) in (None, "sqlite"):
            return False
        if isinstance(error, ConfigError):
            return error.key == KEY
        return isinstance(error, StorageInternalError | OSError) or _package(error) in _DRIVERS


def _package(error: Exception) -> str:
    return type(error).__module__.partition(".")[0]
