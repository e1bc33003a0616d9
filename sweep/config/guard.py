"""Keep config files from making Hydra run programs, or write files outside the run's folder.

The command line is the user's own, so it is trusted. A config file may come from somebody else.
"""

import argparse
import functools
import importlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra._internal import hydra as hydra_commands
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins import basic_sweeper
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.utils import _run_hydra
from hydra.core import utils as hydra_utils
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig, Node, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from sweep.config.overrides import key_of
from sweep.utils.errors import ConfigError
from sweep.utils.ownership import is_hydras_file, note_hydras_file, note_log, refuse_existing
from sweep.utils.passwords import without_passwords
from sweep.utils.private import private

# Environment variables that a config may set: none of them names a file, a program or a server.
ENVIRONMENT = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_DEVICE_ORDER",
    "CUDA_VISIBLE_DEVICES",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
)
LOGGING_CLASSES = (
    *("sweep.utils.private.PrivateLog", "logging.FileHandler", "logging.StreamHandler"),
    *("logging.Formatter", "colorlog.ColoredFormatter"),
)
_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
_PART = r"\$\{hydra\.job\.(?:name|num)\}|\$\{now:%[^${}/]*\}"
_NAME = rf"(?:\w|{_PART})(?:[\w.-]|{_PART})*"  # no dot at the start: programs read hidden files as settings
_LOG_FILE = re.compile(rf"\$\{{(?:hydra\.runtime\.output_dir|hydra\.sweep\.dir)\}}(?:/{_NAME})+\.(?:log|txt)")
_RUN_LOG = "${hydra.runtime.output_dir}/run.log"
_JOBS_FILES = ("config.yaml", "hydra.yaml", "overrides.yaml")  # which Hydra writes in hydra.output_subdir
_SWEEPS_FILES = ("multirun.yaml", "optimization_results.yaml")  # of Hydra's own sweeper, and of sweeper plugins
# Launcher keys that set what a job runs before the trial, or instead of Python.
_PROGRAMS = ("setup", "python", "srun_args", "additional_parameters", "runtime_env", "commands", "env_setup")


def guard_hydra() -> None:
    """Patch Hydra so that every config it composes in this process is checked before Hydra acts on it.

    Hydra has no hook between composing a config and acting on it: it opens the log files of hydra.hydra_logging first.
    Calling this function again changes nothing.
    """
    load = ConfigLoaderImpl._load_configuration
    if hasattr(load, "__wrapped__"):
        return

    @functools.wraps(load)
    def checked(*args: Any, **kwargs: Any) -> DictConfig:
        try:
            config = load(*args, **kwargs)
        except KeyError as error:
            name = error.args[0] if error.args else None
            if not isinstance(name, str) or name in os.environ:
                raise
            raise ConfigError("hydra.job.env_copy", f"'{name}' is not set in the environment; leave it out") from error
        check_hydra(config.hydra)
        for node in (config.hydra.run, config.hydra.sweep):
            if isinstance(node, DictConfig):
                _expand_home(node)
        _refuse_file(config.hydra, "sweep" if kwargs.get("run_mode") == RunMode.MULTIRUN else "run")
        return config

    ConfigLoaderImpl._load_configuration = checked
    modules: tuple[Any, ...] = (hydra_commands, hydra_utils)
    for module in modules:  # the first configures hydra.hydra_logging, the second hydra.job_logging
        module.configure_log = _before(module.configure_log, _refuse_own_logs)
    Plugins.instantiate_sweeper = _before(Plugins.instantiate_sweeper, _refuse_own_sweep)
    hydra_utils._save_config = _save_config
    basic_sweeper.OmegaConf = _Saving  # type: ignore[attr-defined]  # that module calls OmegaConf.save
    hydra_commands.OmegaConf = _Selecting  # type: ignore[attr-defined]
    main: Any = importlib.import_module("hydra.main")  # the name `hydra.main` is a function
    main._run_hydra = _before(_run_hydra, _expand_config_dir)
    FileConfigSource.__init__ = _in_home(FileConfigSource.__init__)  # type: ignore[method-assign]


def _expand_home(node: DictConfig) -> None:
    """Expand `~` in the node's `dir`. Hydra would create a folder named `~`."""
    folder = _text(node, "dir")
    if folder is not None and folder.startswith("~"):
        with read_write(node):
            node.dir = os.path.expanduser(folder)


def _refuse_file(hydra: DictConfig, name: str) -> None:
    """Raise ConfigError if `hydra.run.dir` or `hydra.sweep.dir` names a file, or a folder below one.

    Only the part before the first `${...}` is checked, since the rest may not be resolved yet.
    """
    node = hydra[name]
    text = (_text(node, "dir") if isinstance(node, DictConfig) else None) or ""
    known, interpolation, _ = text.partition("${")
    folder = Path(os.path.abspath(os.path.dirname(known) if interpolation else known))
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not os.path.isdir(there):
        raise ConfigError(f"hydra.{name}.dir", f"'{there}' is a file, so it cannot hold outputs; name a folder")


def _expand_config_dir(*, args: argparse.Namespace, **rest: Any) -> None:
    """Expand `~` in --config-dir and --config-path."""
    for name in ("config_dir", "config_path"):
        if (folder := getattr(args, name)) is not None:
            setattr(args, name, os.path.expanduser(folder))


def _in_home(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap the initialiser of a config source so that it expands `~` in hydra.searchpath."""

    @functools.wraps(init)
    def expanded(self: FileConfigSource, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.path = os.path.expanduser(self.path)

    return expanded


def _before(function: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    """Return a function that calls `check`, then `function`, with the same arguments."""

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return function(*args, **kwargs)

    return checked


def _save_config(config: Any, filename: str, output_dir: Path) -> None:
    """Write one of Hydra's YAML files, such as those in .hydra/: private to the user, and without passwords.

    Raises:
        ConfigError: the file, or another of its group, is there already and this process did not write it.
    """
    is_sweeps = filename in _SWEEPS_FILES
    key, names = ("hydra.sweep.dir", [filename]) if is_sweeps else ("hydra.output_subdir", _JOBS_FILES)
    output_dir.mkdir(parents=True, exist_ok=True)
    folder = Path(os.path.abspath(output_dir))
    refuse_existing(key, folder, [folder / name for name in names if not is_hydras_file(folder / name)])
    if not is_hydras_file(folder / filename):
        note_hydras_file(folder / filename)
    with open(folder / filename, "w", encoding="utf-8", opener=private) as file:
        file.write(without_passwords(OmegaConf.to_yaml(config)))


def _refuse_own_logs(node: DictConfig | None, *rest: Any, **others: Any) -> None:
    """Raise ConfigError if a log file that a config file names is there already. Hydra opens it next.

    Args:
        node: hydra.hydra_logging or hydra.job_logging. Jobs of one sweep may share a file in the sweep's folder.
    """
    if node is not None:
        _note_logs(node)
        hydra = node._get_parent()
        assert isinstance(hydra, DictConfig)
        shared = hydra.mode == RunMode.MULTIRUN and node._key() == "job_logging"
        _refuse_logs(hydra, str(node._key()), "${hydra.runtime.output_dir}" if shared else "${")


def _note_logs(node: DictConfig) -> None:
    """Note the log files that Hydra is about to create, so that they are known as files of this command."""
    for name, handler in (_plain(node, "handlers") or {}).items():
        if isinstance(handler, dict) and "filename" in handler and not handler.get("delay"):
            with suppress(OmegaConfBaseException, TypeError):  # Hydra reports it when it opens the file
                note_log(Path(OmegaConf.select(node, f"handlers.{name}.filename")))


def _refuse_own_sweep(plugins: Any, *, config: DictConfig, **rest: Any) -> None:
    """Raise ConfigError if a sweep that is about to begin would write to files that are there already."""
    _refuse_logs(config.hydra, "job_logging", "${hydra.sweep.dir}")
    sweeper = config.hydra.sweeper  # not validated yet: it may be of any type
    target = str(sweeper.get("_target_")) if OmegaConf.is_dict(sweeper) else ""
    if not target.startswith("sweep."):  # our own sweepers check their folder themselves
        folder = Path(os.path.abspath(config.hydra.sweep.dir))
        refuse_existing("hydra.sweep.dir", folder, [folder / name for name in _SWEEPS_FILES])


def _refuse_logs(hydra: DictConfig, key: str, prefix: str) -> None:
    """Raise ConfigError for a log file that is there already.

    Args:
        hydra: Hydra's own node.
        key: hydra_logging or job_logging.
        prefix: only file names that start with it are checked, as they are written, not resolved. Those that the
            command line sets are not checked.
    """
    given = _hydra_overrides(hydra)
    for path, value in _leaves(f"hydra.{key}", _plain(hydra, key)):
        names = path.split(".")
        is_file = names[-1] == "filename" and str(value).startswith(prefix) and not _is_given(path, given)
        if is_file and value != _RUN_LOG:  # the run itself checks its run.log
            file = OmegaConf.select(hydra, ".".join(names[1:]))
            if os.path.lexists(file):
                raise ConfigError(path, f"'{file}' is there already; name another file, or set it on the command line")


class _Selecting(OmegaConf):
    """Hydra's OmegaConf, with an error for a --package that names no part of the config."""

    @staticmethod
    def select(cfg: Any, key: str, **rest: Any) -> Any:
        if (part := OmegaConf.select(cfg, key, **rest)) is None:
            raise ConfigError(
                "--package", f"'{key}' is not a key of that config, or it is null; leave it out, or name another"
            )
        return part


class _Saving(OmegaConf):
    """The OmegaConf of Hydra's basic sweeper, which writes multirun.yaml."""

    @staticmethod
    def save(config: Any, f: Any, resolve: bool = False) -> None:
        _save_config(config, Path(f).name, Path(f).parent)


def check_hydra(node: Any) -> None:
    """Raise ConfigError for the first setting under `hydra` that could run programs or write outside the run's folder.

    A few of these settings are allowed on the command line, which is the user's own.
    """
    given = _hydra_overrides(node)
    _check_environment(node)
    for name in _plain(node, "callbacks") or {}:
        raise ConfigError(f"hydra.callbacks.{name}", "callbacks are not run here, since they run code; leave it out")
    subdir = _text(node, "output_subdir")
    if subdir is not None and not re.fullmatch(rf"\.?{_NAME}", subdir):
        raise ConfigError(
            "hydra.output_subdir", f"'{subdir}' is not the name of a folder; leave it at null, or write .hydra"
        )
    for key in ("hydra_logging", "job_logging"):
        _check_logging(f"hydra.{key}", _plain(node, key), given)
    name = str((_plain(node, "job") or {}).get("name"))
    if "/" in name or name.startswith("."):
        raise ConfigError("hydra.job.name", "is part of a file's name; leave out the / and a dot at its beginning")
    for path, value in _leaves("hydra.launcher", _plain(node, "launcher")):
        words = path.split(".")[2:]
        if value and any(w in _PROGRAMS or w.endswith("_commands") for w in words) and not _is_given(path, given):
            raise ConfigError(path, "says what a job runs; a config file may not set it, only the command line")


def _hydra_overrides(node: DictConfig) -> list[str]:
    """Return the keys below `hydra` that the command line sets."""
    overrides = (_plain(node, "overrides") or {}).get("hydra") or []
    return [key_of(str(o)) for o in overrides]


def _check_environment(node: DictConfig) -> None:
    job = _plain(node, "job") or {}
    for key, names in (("env_set", job.get("env_set") or {}), ("env_copy", job.get("env_copy") or [])):
        for name in names:
            if name not in ENVIRONMENT:
                message = "a config may not set it, since programs go by it; set it in the shell"
                raise ConfigError(f"hydra.job.{key}.{name}", f"{message} (allowed are {', '.join(ENVIRONMENT)})")


def _check_logging(key: str, node: Any, given: Sequence[str]) -> None:
    """Raise ConfigError for a logging setting that could run code, empty a file, or write outside the run's folder.

    Args:
        key: the full config key of the node.
        node: the node as dicts and lists, not resolved.
        given: the keys below `hydra` that the command line sets. It may name any log file.
    """
    for path, value in _leaves(key, node):
        name = path.rpartition(".")[2]
        if name in ("()", "class", "listener", "queue") and value not in LOGGING_CLASSES:
            raise ConfigError(path, f"'{value}' could run code; choose one of: {', '.join(LOGGING_CLASSES)}")
        if isinstance(value, str) and value.startswith(("ext://", "cfg://")) and value not in _STREAMS:
            raise ConfigError(path, f"'{value}' could run code; choose one of: {', '.join(_STREAMS)}")
        is_file = name == "filename" and not (isinstance(value, str) and _LOG_FILE.fullmatch(value))
        if is_file and not _is_given(path, given):
            message = (
                f"'{value}' may be anywhere; write ${{hydra.runtime.output_dir}}/NAME.log, or set it on the command"
            )
            raise ConfigError(path, f"{message} line")
        if name == "mode" and value != "a" and not _is_given(path, given):
            raise ConfigError(path, f"'{value}' could empty a file; leave it out, or set it on the command line")


def _is_given(path: str, given: Sequence[str]) -> bool:
    """Return True if the command line sets the key or a node that contains it."""
    return any(path == key or path.startswith(f"{key}.") for key in given)


def _plain(node: DictConfig, key: str) -> Any:
    """Return the child node as dicts and lists, not resolved; None if it is missing."""
    part = None if OmegaConf.is_missing(node, key) else node._get_node(key, validate_access=False)
    return OmegaConf.to_container(part, resolve=False) if isinstance(part, DictConfig) else None


def _text(node: DictConfig, key: str) -> str | None:
    """Return the value as it is written, not resolved; None if there is none."""
    child = node._get_node(key, validate_access=False)
    value = child._value() if isinstance(child, Node) else None
    return None if value is None else str(value)


def _leaves(path: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Yield each value at any depth of the node, with its full config key."""
    if isinstance(node, dict | list):
        for name, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _leaves(f"{path}.{name}", child)
    else:
        yield path, node
