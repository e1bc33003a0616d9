"""A trial's folder: the one place that knows the names of its files."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any


class Busy(Exception):
    """Another process holds the lock."""


class RunFolder:
    """Paths of everything in one trial's folder. The folder itself is made by `create`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.config = self.path / "config.yaml"  # composed and resolved
        self.overrides = self.path / "overrides.yaml"  # as given on the command line
        self.journal = self.path / "journal.jsonl"
        self.checkpoint = self.path / "checkpoint.pt"  # to resume from
        self.best = self.path / "best.pt"  # weights of the best epoch
        self.curves = self.path / "curves.png"
        self.diff = self.path / "uncommitted.diff"
        self.mirror_state = self.path / "mlflow.json"
        self._lock = self.path / ".lock"
        self._mirror_lock = self.path / ".mirror.lock"

    def create(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    def artifacts(self) -> list[Path]:
        """The files worth keeping beside the metrics, those that exist."""
        return [f for f in (self.config, self.overrides, self.best, self.curves, self.diff) if f.exists()]

    def lock(self) -> AbstractContextManager[None]:
        """Held while the trial runs, so that a dead trial can be told from a slow one. Raises Busy."""
        return _locked(self._lock, patience_s=1.0)  # `is_running` takes it for a moment

    def mirror_lock(self) -> AbstractContextManager[None]:
        """Held while the journal is being mirrored, so that nothing is sent twice at once. Raises Busy."""
        return _locked(self._mirror_lock)

    def is_running(self) -> bool:
        """Whether some process holds the trial's lock."""
        try:
            with _locked(self._lock):
                return False
        except Busy:
            return True


@contextmanager
def _locked(path: Path, patience_s: float = 0.0) -> Iterator[None]:
    """An flock, which the kernel releases when the process dies."""
    deadline = time.monotonic() + patience_s
    with open(path, "a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Busy(str(path)) from None
                time.sleep(0.02)
        yield


def write_atomic(path: Path, text: str) -> None:
    """Replaces `path`; a reader, or a crash, sees the old text or the new."""
    tmp = path.with_name(path.name + ".tmp")
    with open(tmp, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(tmp, path)


def read_json(path: Path, default: Any) -> Any:
    """The file's content, or `default` where there is none or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default
