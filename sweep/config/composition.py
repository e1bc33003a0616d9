"""Composing a config, and saying what is wrong with one in a single line."""

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

from sweep.config.overrides import key_of, setting, value_of
from sweep.config.schema import COMPONENTS, CONF_DIR, keys_of, register_schema, with_origin
from sweep.utils.errors import ConfigError, one_line
from sweep.utils.paths import absolute

_UNAVAILABLE = re.compile(r"provider=hydra\.searchpath.* is not available")
_OF_NO_PACKAGE = re.compile(
    r"In '(experiment/[^']*)': ConfigKeyError raised while composing config:\s+Key 'experiment'"
)


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> DictConfig:
    """The config that `python -m sweep.run OVERRIDES` would use.

    `config_dir` is a folder with options of your own, like Hydra's --config-dir. Hydra's global state is as before
    afterwards. Raises ConfigError.
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
    """Have what Hydra raises while it composes `overrides` become a ConfigError, where it is about them."""
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
    """Return config `name` as Hydra composes it for a multirun, with what `like` has cached. Raises ConfigError."""
    with composing(overrides):
        config = loader.load_configuration(name, [*overrides], RunMode.MULTIRUN)
    if like is not None:
        OmegaConf.copy_cache(from_config=like, to_config=config)
    return config


@contextmanager
def own_hydra() -> Iterator[ConfigLoader]:
    """Hydra initialised with our conf/, also inside a program that has initialised it with its own.

    Gives what loads configs. Hydra's global state is as before afterwards.
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
    """Have a folder of options that is not there raise an error, where Hydra only warns and goes on without it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", _UNAVAILABLE.pattern, UserWarning)
        yield


def searchpath_of(config_dir: str | Path | None) -> list[str]:
    """A folder with options of the user's own as an override, if there is one. Raises ConfigError."""
    if config_dir is None:
        return []
    folder = absolute(config_dir)
    if not folder.is_dir():  # Hydra would only warn
        raise ConfigError("config_dir", f"no folder '{folder}'")
    return [setting("hydra.searchpath", [f"file://{folder}"])]


def searchpath_overrides(hydra_node: Any) -> list[str]:
    """The user's own folders of options as an override, so that the recorded command finds them from anywhere."""
    sources = [s for s in hydra_node.runtime.config_sources if "command-line" in s.provider]
    folders = [f"{s.schema}://{s.path}" for s in sources]
    return [setting("hydra.searchpath", folders)] if folders else []


def given_overrides(hydra_node: Any) -> list[str]:
    """The overrides of the command line, without those of Hydra's own keys but for the searchpath, as they were given.

    Iterating over Hydra's node instead would resolve what is written in them.
    """
    return [*searchpath_overrides(hydra_node), *task_overrides(hydra_node)]


def task_overrides(hydra_node: Any) -> list[str]:
    """The same without the searchpath."""
    overrides: Any = OmegaConf.to_container(hydra_node.overrides, resolve=False)
    return list(overrides["task"])


def config_error(error: Exception, overrides: Sequence[str]) -> ConfigError | None:
    """Hydra's or OmegaConf's error, which may run over many lines and causes, as one line with its config key.

    None for an error that is not about the config.
    """
    if isinstance(error, InterpolationResolutionError) and isinstance(own := _root(error), ConfigError):
        return own  # raised by a resolver of ours
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
    if "primary config" in str(error):
        folder = "give --config-dir the folder that has it"
        return ConfigError("--config-name", f"no config '{name}'; leave it out, or {folder}")
    group, _, option = name.rpartition("/")
    return ConfigError(group or "config", _no_option(option, error.options or ()))


def _of_hydra(error: Exception, overrides: Sequence[str]) -> ConfigError | None:
    """What Hydra stumbled over: some things that a user can write, it only meets with an error of Python's own.

    None if it is ours, or of the job: then the last of our functions on the way did not call Hydra.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames]
    ours = [i for i, module in enumerate(modules) if module == "sweep"]
    if not ours or modules[ours[-1] + 1 : ours[-1] + 2] not in (["hydra"], ["contextlib"]):
        return None
    path = next((str(f.f_locals[name]) for f in frames for name in ("full_path",) if name in f.f_locals), None)
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
    """What is wrong with a list for a group, where not all in it are options."""
    group, value = key_of(override), value_of(override)
    options = sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml")) if group else []
    named = {name.strip() for name in value[1:-1].split(",")}
    if not options or value[:1] not in ("[", "{") or named <= set(options):
        return None
    return ConfigError(group, _no_option(value, options))


def _suspected(overrides: Sequence[str]) -> str:
    """The key of the one override that must be meant, where Hydra does not say which: a list for a group, or of its own
    keys."""
    pairs = [(key_of(o), value_of(o)) for o in overrides]
    lists = [key for key, value in pairs if value[:1] in ("[", "{") and key and (CONF_DIR / key).is_dir()]
    own = [key for key, _ in pairs if key.startswith(("hydra.", "hydra/"))]
    return lists[0] if lists else own[0] if len(own) == 1 else "config"


def _of_key(error: BaseException) -> ConfigError:
    key = str(getattr(error, "full_key", None) or _key_in(str(error)) or "config")
    problem = one_line(error)
    if (option := _OF_NO_PACKAGE.match(str(error))) is not None:
        message = "for its keys to be those of the config, it must begin with the line  # @package _global_"
        return ConfigError("experiment", f"'{option[1]}.yaml' is taken for keys below experiment; {message}")
    if problem.startswith(("Additional config directory", "Primary config")):
        return ConfigError("--config-dir" if problem.startswith("Additional") else "--config-path", problem)
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        problem = _unknown(key, problem)
    elif problem.startswith("Ambiguous value"):  # Hydra's next lines, in a few words
        problem = f"{str(error).splitlines()[0]}; add -m to run each, or write a list as [a,b]"
    elif "does not support sweep type" in problem:
        key, problem = "hydra/sweeper", f"{problem}; choose hydra/sweeper=study"
    return ConfigError(key, problem)


def _unknown(key: str, problem: str) -> str:
    """What is wrong with a key that does not exist; a component takes whatever its target takes."""
    node, _, _ = key.rpartition(".")
    if node.partition(".")[0] in COMPONENTS:
        return f"{problem} (to add an argument, write +{key}=...)"
    keys = keys_of(node)
    return f"is no key of the config; choose one of: {', '.join(keys)}" if keys else problem


def _no_name_for_option(overrides: Sequence[str]) -> ConfigError:
    """For `optimizer=null` or `optimizer=3`; Hydra does not say which group it means."""
    for override in overrides:
        group, option = key_of(override), value_of(override)
        options = sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))
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
    """The key that a message is about: as OmegaConf appends it, or else the first that is quoted."""
    found = (
        re.search(r"full_key: (\S+)", message)
        or re.match(r"Invalid ([\w.]+) '", message)
        or re.search(r"'\+*([\w./@]+)(?:=[^']*)?'", message)
    )
    return found.group(1) if found else None
