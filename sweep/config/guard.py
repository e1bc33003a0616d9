"""What the text of a config may not ask of Hydra: to run programs, or to write files outside the run's folder.

The command line is the user's own. A config file may come from somebody else.
"""

import functools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins import basic_sweeper
from hydra.core import utils as hydra_utils
from omegaconf import DictConfig, Node, OmegaConf

from sweep.config.overrides import key_of
from sweep.utils.errors import ConfigError
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
_NAME = r"(?!\.\.?(?:/|$))(?:[\w.-]|\$\{hydra\.job\.(?:name|num)\}|\$\{now:[^${}/]*\})+"
_LOG_FILE = re.compile(rf"\$\{{(?:hydra\.runtime\.output_dir|hydra\.sweep\.dir)\}}(?:/{_NAME})+")
# Keys of launchers that say what a job runs before the trial, or instead of Python.
_PROGRAMS = ("setup", "python", "srun_args", "additional_parameters", "runtime_env", "commands", "env_setup")


def guard_hydra() -> None:
    """Have every config that Hydra composes in this process checked before Hydra does anything with it.

    Hydra has no hook between composing a config and acting on it: it opens the log files of hydra.hydra_logging first.
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
        return config

    ConfigLoaderImpl._load_configuration = checked
    hydra_utils._save_config = _save_config
    basic_sweeper.OmegaConf = _Saving  # type: ignore[attr-defined]  # that module saves by this name


def _save_config(config: Any, filename: str, output_dir: Path) -> None:
    """Write a file of Hydra's with a config or overrides, such as those in .hydra/, as our own files are written."""
    output_dir.mkdir(parents=True, exist_ok=True)
    with open(output_dir / filename, "w", encoding="utf-8", opener=private) as file:
        file.write(without_passwords(OmegaConf.to_yaml(config)))


class _Saving(OmegaConf):
    """What Hydra's basic sweeper writes multirun.yaml with."""

    @staticmethod
    def save(config: Any, f: Any, resolve: bool = False) -> None:
        _save_config(config, Path(f).name, Path(f).parent)


def check_hydra(node: Any) -> None:
    """Raise ConfigError for the first setting under `hydra` with which a config's text could run programs or write
    files outside the folder of its run."""
    overrides = (_plain(node, "overrides") or {}).get("hydra") or []  # on the command line; a job's may name its number
    given = [key_of(str(o)) for o in overrides]
    _check_environment(node)
    for name in _plain(node, "callbacks") or {}:
        raise ConfigError(f"hydra.callbacks.{name}", "callbacks are not run here, since they run code; leave it out")
    subdir = node._get_node("output_subdir")
    subdir = subdir._value() if isinstance(subdir, Node) else None  # not resolved
    if subdir is not None and not re.fullmatch(_NAME, str(subdir)):
        raise ConfigError(
            "hydra.output_subdir", f"'{subdir}' is no name of a folder; leave it at null, or write .hydra"
        )
    for key in ("hydra_logging", "job_logging"):
        _check_logging(f"hydra.{key}", _plain(node, key), given)
    if "/" in str((_plain(node, "job") or {}).get("name")):
        raise ConfigError("hydra.job.name", "is part of a file's name; leave out the /")
    for path, value in _leaves("hydra.launcher", _plain(node, "launcher")):
        words = path.split(".")[2:]
        if value and any(w in _PROGRAMS or w.endswith("_commands") for w in words) and not _is_given(path, given):
            raise ConfigError(path, "says what a job runs; a config file may not set it, only the command line")


def _check_environment(node: DictConfig) -> None:
    job = _plain(node, "job") or {}
    for key, names in (("env_set", job.get("env_set") or {}), ("env_copy", job.get("env_copy") or [])):
        for name in names:
            if name not in ENVIRONMENT:
                told = "a config may not set it, since programs go by it; set it in the shell"
                raise ConfigError(f"hydra.job.{key}.{name}", f"{told} (allowed are {', '.join(ENVIRONMENT)})")


def _check_logging(key: str, node: Any, given: Sequence[str]) -> None:
    for path, value in _leaves(key, node):
        name = path.rpartition(".")[2]
        if name in ("()", "class", "listener", "queue") and value not in LOGGING_CLASSES:
            raise ConfigError(path, f"'{value}' could run code; choose one of: {', '.join(LOGGING_CLASSES)}")
        if isinstance(value, str) and value.startswith(("ext://", "cfg://")) and value not in _STREAMS:
            raise ConfigError(path, f"'{value}' could run code; choose one of: {', '.join(_STREAMS)}")
        is_file = name == "filename" and not (isinstance(value, str) and _LOG_FILE.fullmatch(value))
        if is_file and not _is_given(path, given):
            told = f"'{value}' may be anywhere; begin it with ${{hydra.runtime.output_dir}}/, or set it on the command"
            raise ConfigError(path, f"{told} line")


def _is_given(path: str, given: Sequence[str]) -> bool:
    return any(path == key or path.startswith(f"{key}.") for key in given)


def _plain(node: DictConfig, key: str) -> Any:
    """The part as dicts and lists, not resolved; None where it is missing."""
    part = None if OmegaConf.is_missing(node, key) else node._get_node(key)
    return OmegaConf.to_container(part, resolve=False) if isinstance(part, DictConfig) else None


def _leaves(path: str, node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict | list):
        for name, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _leaves(f"{path}.{name}", child)
    else:
        yield path, node
