"""Read each config file once: a study composes many configs, and parsing YAML is a third of Hydra's time for one."""

import functools
import os
import pickle
import time
from collections.abc import Callable

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.plugins.config_source import ConfigResult

_Load = Callable[[FileConfigSource, str], ConfigResult]
_State = tuple[int, ...]  # of a file, as in `_state`: an edited file differs in one of these numbers
_RECENT_S = 2.0  # as coarse as the times of a file are on some file systems


def remember_files() -> None:
    """Patch Hydra so that this process parses a config file again only once it has changed.

    Calling this function again changes nothing.
    """
    load = FileConfigSource.load_config
    if not hasattr(load, "__wrapped__"):
        FileConfigSource.load_config = _remembered(load)  # type: ignore[method-assign]


def _remembered(load: _Load) -> _Load:
    """Wrap a function that reads a config file. Each call returns a copy, since Hydra modifies what it gets."""
    known: dict[tuple[str, str, str], tuple[_State, bytes]] = {}

    @functools.wraps(load)
    def remembered(self: FileConfigSource, config_path: str) -> ConfigResult:
        key = (self.provider, self.path, config_path)
        state = _state(os.path.join(self.path, self._normalize_file_name(config_path)))
        if state is None or known.get(key, (None,))[0] != state:
            found = load(self, config_path)
            if state is None:
                return found
            known[key] = state, pickle.dumps(found)
        return pickle.loads(known[key][1])

    return remembered


def _state(path: str) -> _State | None:
    """Return the state of a file; None if it cannot be had, or if the next edit might not change it."""
    try:
        found = os.stat(path)
    except OSError:  # Hydra reports it
        return None
    if time.time() - found.st_mtime < _RECENT_S:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
