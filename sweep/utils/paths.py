"""Paths that are made absolute, and symbolic links that are refused in output folders.

sweep never creates a link. One that somebody else created would direct files to another place.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweep.utils.errors import ConfigError

UPLOAD_LOG = "mirror.log"  # of the upload process, in an `output_dir`
# Everything directly below an `output_dir` that commands write to.
_OURS = ("runs", "studies", "multirun", "lr_range", "comparisons", "mlartifacts", UPLOAD_LOG, ".mlflow.lock")
_SUBMITIT = ".submitit"  # in a study: submitit makes links to files of its own there, and sweep does not use them
_DATABASE = ("mlflow.db", "mlflow.db-wal", "mlflow.db-shm", "mlflow.db-journal", "mlflow.db.new")


def absolute(path: str | Path) -> Path:
    """Return the absolute path, with `~` replaced by the home directory."""
    return Path(os.path.expanduser(path)).absolute()


def with_absolute_path(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config node of data whose key `path`, a text or texts by name, holds absolute paths."""
    path = node.get("path")
    if isinstance(path, Mapping):
        return {**node, "path": {name: _absolute_text(of_part) for name, of_part in path.items()}}
    return {**node, "path": _absolute_text(path)} if "path" in node else {**node}


def _absolute_text(path: Any) -> Any:
    """Return a path as an absolute one. Anything else, such as a number, stays as it is."""
    return os.path.abspath(os.path.expanduser(path)) if isinstance(path, str) else path


def refuse_links_at(output_dir: Path) -> None:
    """Raise ConfigError if an entry of `output_dir` that sweep writes to is a link to a place outside it."""
    for name in (*_OURS, *_DATABASE):
        path = output_dir / name
        if path.is_symlink() and not is_inside(path, output_dir):
            problem = f"'{path}' is a link that leads out of it; only output_dir itself may be a link to elsewhere"
            raise ConfigError("output_dir", problem)


def refuse_links_in(folder: Path, key: str) -> None:
    """Raise ConfigError if `folder`, which holds a run or a study, is a link or contains one at any depth.

    The links that submitit makes in its own folder do not count.
    """
    found = folder if folder.is_symlink() else _first_link(str(folder))
    if found is not None:
        raise ConfigError(key, f"'{found}' is a link, and links are not followed; put the file or folder itself there")


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether `path`, after links are resolved, is `folder` or below it."""
    real, root = os.path.realpath(path), os.path.realpath(folder)
    return real == root or real.startswith(root.rstrip("/") + "/")


def _first_link(folder: str) -> str | None:
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return None
    for entry in entries:
        if entry.is_symlink():
            return entry.path
        if entry.name != _SUBMITIT and entry.is_dir() and (found := _first_link(entry.path)):
            return found
    return None
