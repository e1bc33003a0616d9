"""Compose a config with Hydra, from the command line or inside a program."""

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sweep.config.hydra_errors import config_error, foreign_config_error
from sweep.config.hydra_files import remember_files
from sweep.config.hydra_texts import UNAVAILABLE
from sweep.config.options import CONF_DIR
from sweep.config.overrides import setting
from sweep.config.schema import refuse_unknown_keys, register_schema, with_origin
from sweep.utils.errors import ConfigError
from sweep.utils.paths import absolute

_TURN = threading.RLock()  # Hydra's state is global


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> DictConfig:
    """Return the config that `python -m sweep.run OVERRIDES` would use. Hydra's global state is restored afterwards.

    >>> import sweep
    >>> sweep.compose(["optimizer=sgd", "trainer.epochs=20"]).trainer.epochs
    20

    Args:
        overrides: as on the command line, such as `["optimizer=sgd", "trainer.epochs=20"]`.
        config_dir: a folder with options of your own, like Hydra's --config-dir.

    Raises:
        ConfigError: an override cannot be read, or names a key, group, option or folder that does not exist.
    """
    if isinstance(overrides, str):
        raise ConfigError("overrides", f"must be a list of texts, got the text '{overrides}'")
    searchpath = searchpath_of(config_dir)
    with composing(overrides), own_hydra():
        cfg = hydra.compose("config", overrides=[*searchpath, *overrides], return_hydra_config=True)
    choices = dict(cfg.hydra.runtime.choices)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    OmegaConf.set_struct(cfg, True)
    refuse_unknown_keys(cfg, choices)
    return with_origin(cfg, choices, [*searchpath, *overrides])


@contextmanager
def composing(overrides: Sequence[str], of_sweep: bool = True) -> Iterator[None]:
    """Turn an error of Hydra's about the config into a ConfigError, while Hydra composes `overrides`.

    Other errors pass through unchanged. `of_sweep` is False for the config of another application.
    """
    try:
        yield
    except Exception as error:
        refusal = config_error(error, overrides) if of_sweep else foreign_config_error(error)
        if refusal is None:
            raise
        raise refusal from error


def load_multirun(
    loader: ConfigLoader,
    name: str,
    overrides: Sequence[str],
    like: DictConfig | None = None,
    of_sweep: bool = True,
) -> DictConfig:
    """Return config `name` as Hydra composes it for a multirun.

    Args:
        loader: Hydra's loader of configs.
        name: the name of the primary config.
        overrides: as on the command line.
        like: a config whose cached resolver results are reused, so that `${now:...}` gives the same time in both.
        of_sweep: False for the config of another application.

    Raises:
        ConfigError: Hydra cannot compose the overrides.
    """
    remember_files()
    with composing(overrides, of_sweep):
        config = loader.load_configuration(name, [*overrides], RunMode.MULTIRUN)
    if like is not None:
        OmegaConf.copy_cache(from_config=like, to_config=config)
    return config


@contextmanager
def own_hydra() -> Iterator[ConfigLoader]:
    """Hold Hydra initialised with our conf/, also inside a program that has initialised it with its own folder.

    Yields the loader of configs. Hydra's global state is restored at the end. Threads take turns.
    """
    with _TURN:
        yield from _own_hydra()


def _own_hydra() -> Iterator[ConfigLoader]:
    register_schema()
    outer, job, name = GlobalHydra.instance().hydra, HydraConfig.instance().cfg, JobRuntime.instance().get("name")
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF_DIR), job_name="sweep"), unavailable_refused():
            yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = outer, job
        JobRuntime.instance().set("name", name)


@contextmanager
def unavailable_refused() -> Iterator[None]:
    """Make a missing folder in hydra.searchpath an error. Hydra itself only warns and continues without it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", UNAVAILABLE.pattern, UserWarning)
        yield


def searchpath_of(config_dir: str | Path | None) -> list[str]:
    """Return the override that adds `config_dir` to Hydra's searchpath; an empty list for None.

    Raises:
        ConfigError: the folder does not exist.
    """
    if config_dir is None:
        return []
    folder = absolute(config_dir)
    if not folder.is_dir():  # Hydra would only warn
        raise ConfigError("config_dir", f"no folder '{folder}'")
    return [setting("hydra.searchpath", [f"file://{folder}"])]


def searchpath_overrides(hydra_node: Any) -> list[str]:
    """Return the override that names the user's own option folders by absolute path; an empty list without any.

    With it, a recorded command finds the folders from any working directory.
    """
    sources = [s for s in hydra_node.runtime.config_sources if "command-line" in s.provider]
    folders = [f"{s.schema}://{s.path}" for s in sources]
    return [setting("hydra.searchpath", folders)] if folders else []


def given_overrides(hydra_node: Any) -> list[str]:
    """Return the overrides of the command line as they were given: the searchpath first, then `task_overrides`."""
    return [*searchpath_overrides(hydra_node), *task_overrides(hydra_node)]


def task_overrides(hydra_node: Any) -> list[str]:
    """Return the overrides of the command line as they were given, without those of Hydra's own keys.

    Iterating over Hydra's node instead would resolve the interpolations in them.
    """
    overrides: Any = OmegaConf.to_container(hydra_node.overrides, resolve=False)
    return list(overrides["task"])
