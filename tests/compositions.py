"""What Hydra composes, kept for the next test or command that asks for the same: 0.25 s each, 5 times in a study.

Options in folders of the user's own are composed again once a file there has changed, and other applications always.
"""

import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.utils import JobRuntime
from omegaconf import DictConfig

from sweep.config.hydra_files import remember_files
from sweep.config.options import CONF_DIR

_SHARED = "SWEEP_TESTS_SHARE"
_COMPOSES = "_load_configuration_impl"
_ACTIVATE = "activate_config_repository"


@contextmanager
def sharing() -> Iterator[None]:
    """Give this process and those that it starts one folder, which is removed in the end."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, {_SHARED: folder}):
        yield


def shared_folder() -> Path:
    """What the processes of all tests make once: compositions, and tables of MLflow's."""
    return Path(os.environ[_SHARED])


def remember(folder: Path) -> ExitStack:
    """Have Hydra keep its configs in the folder until the stack is closed, and files in memory, as studies do."""
    remember_files()
    with ExitStack() as stack:
        stack.enter_context(patch.object(ConfigLoaderImpl, _COMPOSES, _composing(folder)))
        return stack.pop_all()


def _composing(folder: Path) -> Callable[..., DictConfig]:
    compose = getattr(ConfigLoaderImpl, _COMPOSES)

    def composed(loader: ConfigLoaderImpl, **asked: Any) -> DictConfig:
        places = _places(loader, asked)
        if CONF_DIR not in places:
            return compose(loader, **asked)
        said = {name: value for name, value in asked.items() if name not in ("parsed_overrides", _ACTIVATE)}
        stamps = [_stamps(place) for place in places if place != CONF_DIR]
        key = repr((said, places, stamps, JobRuntime.instance().get("name")))
        file = folder / hashlib.sha256(key.encode()).hexdigest()
        if not file.exists():
            config = compose(loader, **asked)
            if not config.hydra.job.env_copy:  # whose values may change
                part = file.with_suffix(f".{os.getpid()}")
                with suppress(OSError):  # a test may have limited the size of files
                    part.write_bytes(pickle.dumps(config))
                    part.rename(file)
            return config
        config = pickle.loads(file.read_bytes())
        config.hydra.runtime.cwd = os.getcwd()
        if asked[_ACTIVATE]:
            loader._active_repository = _repository(loader, asked)
        return config

    return composed


def _places(loader: ConfigLoaderImpl, asked: Mapping[str, Any]) -> list[Path]:
    """The folders of options."""
    if any("searchpath" in override for override in asked["overrides"]):
        return [Path(source.path) for source in _repository(loader, asked).get_sources() if source.scheme() == "file"]
    found = [str(place.path).partition("://") for place in loader.config_search_path.get_path()]
    return [Path(rest or scheme) for scheme, _, rest in found if not rest or scheme == "file"]


def _repository(loader: ConfigLoaderImpl, asked: Mapping[str, Any]) -> CachingConfigRepository:
    names = ("config_name", "overrides", "parsed_overrides")
    return loader._parse_overrides_and_create_caching_repo(*(asked[name] for name in names))[1]


def _stamps(folder: Path) -> list[tuple[str, int, int]]:
    """Of every file: its name, when it was changed, and its size."""
    found = [(path, path.lstat()) for path in sorted(folder.absolute().rglob("*"))]
    return [(str(path), stat.st_mtime_ns, stat.st_size) for path, stat in found]
