"""Compose a config with Hydra, and turn Hydra's errors into one line that names the config key."""

import re
import traceback
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
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

from sweep.config.options import CONF_DIR, is_group, option_names
from sweep.config.overrides import key_of, setting, value_of
from sweep.config.schema import COMPONENTS, keys_of, register_schema, with_origin
from sweep.utils.errors import ConfigError, one_line
from sweep.utils.paths import absolute

_UNAVAILABLE = re.compile(r"provider=hydra\.searchpath.* is not available")
_OF_NO_PACKAGE = re.compile(
    r"In '(experiment/[^']*)': ConfigKeyError raised while composing config:\s+Key 'experiment'"
)


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> DictConfig:
    """Return the config that `python -m sweep.run OVERRIDES` would use. Hydra's global state is restored afterwards.

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
    return with_origin(cfg, choices, [*searchpath, *overrides])


@contextmanager
def composing(overrides: Sequence[str]) -> Iterator[None]:
    """Turn an error of Hydra's about the config into a ConfigError, while Hydra composes `overrides`.

    Other errors pass through unchanged.
    """
    try:
        yield
    except Exception as error:
        refusal = config_error(error, overrides)
        if refusal is None:
            raise
        raise refusal from error


def load_multirun(
    loader: ConfigLoader, name: str, overrides: Sequence[str], like: DictConfig | None = None
) -> DictConfig:
    """Return config `name` as Hydra composes it for a multirun.

    Args:
        loader: Hydra's loader of configs.
        name: the name of the primary config.
        overrides: as on the command line.
        like: a config whose cached resolver results are reused, so that `${now:...}` gives the same time in both.

    Raises:
        ConfigError: Hydra cannot compose the overrides.
    """
    with composing(overrides):
        config = loader.load_configuration(name, [*overrides], RunMode.MULTIRUN)
    if like is not None:
        OmegaConf.copy_cache(from_config=like, to_config=config)
    return config


@contextmanager
def own_hydra() -> Iterator[ConfigLoader]:
    """Hold Hydra initialised with our conf/, also inside a program that has initialised it with its own folder.

    Yields the loader of configs. Hydra's global state is restored at the end.
    """
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
        warnings.filterwarnings("error", _UNAVAILABLE.pattern, UserWarning)
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


def config_error(error: Exception, overrides: Sequence[str]) -> ConfigError | None:
    """Turn an error of Hydra's or OmegaConf's, often long and with many causes, into one line with its config key.

    Args:
        error: what Hydra raised.
        overrides: those that Hydra was composing. They help to find the key if Hydra does not name it.

    Returns:
        The ConfigError; None if the error is not about the config.
    """
    if isinstance(error, InterpolationResolutionError) and isinstance(own := _root(error), ConfigError):
        return own  # one of our resolvers raised it
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_file(error, error.missing_cfg_file)
    if isinstance(error, OverrideParseException):
        _, _, reason = str(error).partition("\n")  # the first line only counts overrides
        key = key_of(error.override) or error.override
        hint = " (a value with other than plain characters needs quotes: 'key=\"value\"')" if "Lexer" in reason else ""
        return ConfigError(key or "override", f"cannot read '{error.override}'; {one_line(ValueError(reason))}{hint}")
    if isinstance(error, YAMLError):
        return ConfigError("config", one_line(error))  # names the file, the line and the column
    if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
        return _no_name_for_option(overrides)
    if isinstance(error, UserWarning) and _UNAVAILABLE.search(str(error)):
        return ConfigError(
            "hydra.searchpath", f"{str(error).partition('path=')[2].rstrip('.')}; name a folder with options"
        )
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _of_key(error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error)
    return _of_hydra(error, overrides)


def _missing_file(error: MissingConfigException, name: str) -> ConfigError:
    """Return the error for a primary config or an option whose file does not exist."""
    if "primary config" in str(error):
        folder = "give --config-dir the folder that has it"
        return ConfigError("--config-name", f"no config '{name}'; leave it out, or {folder}")
    group, _, option = name.rpartition("/")
    return ConfigError(group or "config", _no_option(option, error.options or option_names(group)))


def _of_hydra(error: Exception, overrides: Sequence[str]) -> ConfigError | None:
    """Return the ConfigError for a Python error, such as a TypeError, that Hydra raises for some mistakes of the user.

    Returns None if the error comes from our own code or from the job: then the last of our functions in the traceback
    did not call Hydra.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames]
    ours = [i for i, module in enumerate(modules) if module == "sweep"]
    if not ours or modules[ours[-1] + 1 : ours[-1] + 2] not in (["hydra"], ["contextlib"]):
        return None
    path = next((str(f.f_locals[name]) for f in frames for name in ("full_path",) if name in f.f_locals), None)
    if isinstance(error, RecursionError) and path is None:
        return ConfigError("defaults", "an option includes itself; take it out of the defaults list of its own file")
    root = _root(error)
    reason = one_line(error if root is error else ValueError(f"{error}: {root}"))
    reason = reason if reason.count(" ") else f"is not what Hydra expects ({type(error).__name__})"
    if path is not None:
        return ConfigError("config", f"cannot read '{path}': {reason}")
    if any(frame.f_code.co_name == "configure_log" for frame in frames):
        is_job = any(frame.f_code.co_name in ("run_job", "_run_job") for frame in frames)
        return ConfigError("hydra.job_logging" if is_job else "hydra.hydra_logging", reason)
    if (list_for_group := next(filter(None, map(_no_options, overrides)), None)) is not None:
        return list_for_group
    return ConfigError(_suspected(overrides), reason)


def _no_options(override: str) -> ConfigError | None:
    """Return the error for a list of options in which not every item is an option; None if nothing is wrong."""
    group, value = key_of(override), value_of(override)
    options = option_names(group)
    named = {name.strip() for name in value[1:-1].split(",")}
    if not options or value[:1] not in ("[", "{") or named <= set(options):
        return None
    return ConfigError(group, _no_option(value, options))


def _suspected(overrides: Sequence[str]) -> str:
    """Guess the key that an error is about, if Hydra does not name it.

    The candidates are a group that was given a list, then a single key of Hydra's own; otherwise "config".
    """
    pairs = [(key_of(o), value_of(o)) for o in overrides]
    lists = [key for key, value in pairs if value[:1] in ("[", "{") and is_group(key)]
    own = [key for key, _ in pairs if key.startswith(("hydra.", "hydra/"))]
    return lists[0] if lists else own[0] if len(own) == 1 else "config"


def _of_key(error: BaseException) -> ConfigError:
    """Return the error, in one line, about the config key that Hydra's or OmegaConf's message names."""
    key = str(getattr(error, "full_key", None) or _key_in(str(error)) or "config")
    problem = one_line(error)
    if (option := _OF_NO_PACKAGE.match(str(error))) is not None:
        message = "for its keys to be those of the config, it must begin with the line  # @package _global_"
        return ConfigError("experiment", f"'{option[1]}.yaml' is taken for keys below experiment; {message}")
    if problem.startswith(("Additional config directory", "Primary config")):
        return ConfigError("--config-dir" if problem.startswith("Additional") else "--config-path", problem)
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        problem = _unknown(key, problem)
    elif problem.endswith("does not support deletion"):
        problem = f"cannot be removed; leave out ~{key}"
    elif problem.startswith("Ambiguous value"):  # our hint replaces Hydra's next lines
        problem = f"{str(error).splitlines()[0]}; add -m to run each, or write a list as [a,b]"
    elif "does not support sweep type" in problem:
        key, problem = "hydra/sweeper", f"{problem}; choose hydra/sweeper=study"
    return ConfigError(key, problem)


def _unknown(key: str, problem: str) -> str:
    """Return the problem with a key that does not exist. A component accepts every argument of its target."""
    node, _, _ = key.rpartition(".")
    if node in ("where", "search"):
        return f"{problem} (to add it, write +{key}=...)"
    if node == "task.loss":
        return f"{problem} (name the loss first, as task/loss=huber or task=classification; or write +{key}=...)"
    if node.partition(".")[0] in (*COMPONENTS, "task"):
        return f"{problem} (to add an argument, write +{key}=...)"
    keys = keys_of(node)
    if key.rpartition(".")[2] in keys:
        return f"is needed; leave out ~{key}"
    return f"is not a key of the config; choose one of: {', '.join(keys)}" if keys else problem


def _no_name_for_option(overrides: Sequence[str]) -> ConfigError:
    """Return the error for `optimizer=null` or `optimizer=3`. Hydra's own message does not name the group."""
    for override in overrides:
        group, option = key_of(override), value_of(override)
        options = option_names(group)
        if option not in options and options:
            hint = "" if group in COMPONENTS else f"; to leave the group out, write ~{group}"
            return ConfigError(group, _no_option(option, options) + hint)
    return ConfigError("config", "an option of a group must be a name")


def _no_option(option: str, options: Sequence[str]) -> str:
    return f"no option '{option}'; choose one of: {', '.join(options)}" if options else f"no option '{option}'"


def _root(error: BaseException) -> BaseException:
    cause = error.__cause__ or error.__context__
    return error if cause is None else _root(cause)


def _key_in(message: str) -> str | None:
    """Return the key that a message is about: the one that OmegaConf appends, else the first that is quoted."""
    found = (
        re.search(r"full_key: (\S+)", message)
        or re.match(r"Invalid ([\w.]+) '", message)
        or re.search(r"'\+*([\w./@]+)(?:=[^']*)?'", message)
    )
    return found.group(1) if found else None
