"""Errors of Hydra's and OmegaConf's as one line with its config key: `config_error`."""

import os
import re
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from types import FrameType

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from yaml import YAMLError

from sweep.config import hydra_texts
from sweep.config.hydra_texts import key_in, plain_line, resolution_problem
from sweep.config.options import SETTING_GROUPS, is_group, is_setting, option_names
from sweep.config.overrides import key_of, value_of
from sweep.config.schema import COMPONENTS, keys_of
from sweep.utils.errors import ConfigError, one_line

_QUOTED_KEY = re.compile(r"[{,]\s*(['\"])([^'\"]*)\1\s*:")  # in an override
NO_KEY = "an override has no key; write key=value"
_GRAMMAR = "write a list as [a,b], a dict as {a:1}, and any other special text in quotes, as 'key=\"text\"'"


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
        return _unreadable(error)
    if isinstance(error, YAMLError):
        return ConfigError(_group_being_read(_frames(error)), one_line(error))  # names the file, the line, the column
    if isinstance(error, ValueError) and hydra_texts.NO_NAME.match(str(error)):
        return _no_name_for_option(overrides)
    if isinstance(error, UserWarning) and hydra_texts.UNAVAILABLE.search(str(error)):
        return ConfigError(
            "hydra.searchpath", f"{str(error).partition('path=')[2].rstrip('.')}; name a folder with options"
        )
    if isinstance(error, HydraException | OmegaConfBaseException):
        found = _of_key(error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error)
        return found if found.key != "config" else ConfigError(_suspected(overrides, found.problem), found.problem)
    return _of_hydra(error, overrides)


def foreign_config_error(error: Exception) -> ConfigError | None:
    """Return the error of another application's config, in Hydra's own words; None if Hydra did not raise it."""
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return ConfigError(group, _no_option(option, error.options))
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    key = str(getattr(error, "full_key", None) or key_in(str(error)) or "config")
    is_unknown = isinstance(error.__cause__ or error, ConfigAttributeError | ConfigKeyError)
    return ConfigError(key, (_of_sweeper(key) if is_unknown else "") or one_line(error).rstrip("."))


def _unreadable(error: OverrideParseException) -> ConfigError:
    """Return the error for an override that Hydra's grammar does not have."""
    _, _, reason = str(error).partition("\n")  # the first line only counts overrides
    reason = reason.removeprefix(f"Error parsing override '{error.override}'\n")
    reason = plain_line(reason)
    if (found := hydra_texts.EVALUATION.fullmatch(reason)) is not None:
        reason = f"{found[1]}; write for example choice(1,2), range(1,5) or interval(0.1,0.9)"
    elif hydra_texts.NO_VALUE.match(reason):
        reason = f"it has no value; write {error.override}=..."
    elif (found := _QUOTED_KEY.search(str(error.override))) is not None:
        reason = f"the keys of a dict have no quotes; write {{{found[2]}: ...}}"
    elif (found := hydra_texts.SYNTAX.fullmatch(reason)) is not None:
        reason = f"it is wrong or ends too early at {found[1]}; {_GRAMMAR}"
    elif hydra_texts.LEXER.search(reason):
        reason = f"a quotation mark or another special character stands alone; {_GRAMMAR}"
    problem = f"cannot read '{error.override}': {one_line(ValueError(reason))}"
    return ConfigError(key_of(error.override) or error.override or "override", problem)


def _missing_file(error: MissingConfigException, name: str) -> ConfigError:
    """Return the error for a primary config or an option whose file does not exist."""
    if hydra_texts.NO_PRIMARY.search(str(error)):
        folder = "give --config-dir the folder that has it"
        return ConfigError("--config-name", f"no config '{name}'; leave it out, or {folder}")
    group, _, option = name.rpartition("/")
    options, own = error.options or option_names(group), group.rpartition("/")[2]
    if not options and group != own and option_names(own):
        problem = f"an option's list of defaults names groups with a slash; write  - override /{own}: {option}"
        return ConfigError(group, f"no option '{option}'; {problem}")
    return ConfigError(group or "config", _no_option(option, options))


def _of_hydra(error: Exception, overrides: Sequence[str]) -> ConfigError | None:
    """Return the ConfigError for a Python error, such as a TypeError, that Hydra raises for some mistakes of the user.

    Returns None if the error comes from our own code or from the job: then the last of our functions in the traceback
    did not call Hydra.
    """
    frames = _frames(error)
    modules = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames]
    ours = [i for i, module in enumerate(modules) if module == "sweep"]
    if not ours or modules[ours[-1] + 1 : ours[-1] + 2] not in (["hydra"], ["contextlib"]):
        return None
    path = next((str(f.f_locals["full_path"]) for f in frames if "full_path" in f.f_locals), None)
    if isinstance(error, RecursionError) and path is None:
        return ConfigError("defaults", "an option includes itself; take it out of the defaults list of its own file")
    root = _root(error)
    reason = one_line(error if root is error else ValueError(f"{error}: {root}"))
    reason = reason if reason.count(" ") else f"is not what Hydra expects ({type(error).__name__})"
    if path is not None:
        if isinstance(root, UnicodeDecodeError):
            reason = f"byte {root.start + 1} is not UTF-8; save it in UTF-8"
        return ConfigError(_group_being_read(frames), f"cannot read '{path}': {reason}")
    if any(frame.f_code.co_name == "configure_log" for frame in frames):
        is_job = any(frame.f_code.co_name in ("run_job", "_run_job") for frame in frames)
        return ConfigError("hydra.job_logging" if is_job else "hydra.hydra_logging", reason)
    if (list_for_group := next(filter(None, map(_no_options, overrides)), None)) is not None:
        return list_for_group
    return ConfigError(_suspected(overrides), reason)


def _frames(error: Exception) -> list[FrameType]:
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def _group_being_read(frames: Sequence[FrameType]) -> str:
    """Return the group of the option whose file Hydra was reading; "config" if it is not an option."""
    names = (f.f_locals.get("normalized_config_path") for f in frames)
    return os.path.dirname(next((str(name) for name in names if name), "")) or "config"


def _no_options(override: str) -> ConfigError | None:
    """Return the error for a list of options in which not every item is an option; None if nothing is wrong."""
    group, value = key_of(override), value_of(override)
    options = option_names(group)
    named = {name.strip() for name in value[1:-1].split(",")}
    if not options or value[:1] not in ("[", "{") or named <= set(options):
        return None
    return ConfigError(group, _no_option(value, options))


def _suspected(overrides: Sequence[str], problem: str = "") -> str:
    """Guess the key that an error is about, if Hydra does not name it.

    The candidates are an interpolation that the problem quotes, a group that was given a list, then a single key of
    Hydra's own; otherwise "config".
    """
    pairs = [(key_of(o), value_of(o)) for o in overrides]
    quoted = [key for key, value in pairs if value.startswith("${") and value in problem]
    lists = [key for key, value in pairs if value[:1] in ("[", "{") and is_group(key)]
    own = [key for key, _ in pairs if key.startswith(("hydra.", "hydra/"))]
    return next(iter((*quoted, *lists)), own[0] if len(own) == 1 else "config")


def _of_key(error: BaseException, default: str = "config") -> ConfigError:
    """Return the error, in one line, about the config key that Hydra's or OmegaConf's message names, or `default`."""
    file = hydra_texts.IN_A_FILE.match(str(error))
    if file is not None and isinstance(error.__context__, OmegaConfBaseException):
        group = os.path.dirname(file[1]) or "config"
        inner = _of_key(error.__context__, group)
        return ConfigError(inner.key, f"{inner.problem} (in {file[1]}.yaml)")
    if (choice := hydra_texts.two_options(error)) is not None:
        group, option, origin = choice
        remedy = f"write {group}={option} without the +"
        if origin != "command line":
            remedy = f"in the defaults of {origin}.yaml, write  - override /{group}: {option}"
        return ConfigError(group, f"has an option already, and '{option}' would be a second one; {remedy}")
    key = str(getattr(error, "full_key", None) or key_in(str(error)) or default)
    problem = resolution_problem(error) if isinstance(error, OmegaConfBaseException) else one_line(error)
    if hydra_texts.NO_CONFIG_DIR.match(problem):
        return ConfigError("--config-dir", problem)
    if hydra_texts.NO_CONFIG_PATH.match(problem):
        return ConfigError("--config-path", problem)
    if isinstance(error, MissingMandatoryValue):
        problem = f"has no value; set {key}=..."
    elif isinstance(error, ConfigAttributeError | ConfigKeyError):
        problem = _unknown(key, problem)
    elif hydra_texts.NO_DELETION.search(problem):
        problem = f"cannot be removed; leave out ~{key}"
    elif hydra_texts.AMBIGUOUS.match(problem):  # our hint replaces Hydra's next lines
        problem = f"{str(error).splitlines()[0]}; add -m to run each, or write a list as [a,b]"
    elif hydra_texts.FORCED_GROUP.match(problem):
        problem = f"is a group, which has an option already; write {key}=... without the +"
    elif hydra_texts.NO_SWEEP_TYPE.search(problem):
        key, problem = "hydra/sweeper", f"{problem}; choose hydra/sweeper=study"
    return ConfigError(key, problem)


def _unknown(key: str, problem: str) -> str:
    """Return the problem with a key that does not exist. A component accepts every argument of its target."""
    if setting := _of_sweeper(key):
        return setting
    node, _, _ = key.rpartition(".")
    if node.partition(".")[0] in ("where", "when", "search"):
        return f"{problem} (to add it, write +{key}=...)"
    if node == "task.loss":
        return f"{problem} (name the loss first, as task/loss=huber or task=classification; or write +{key}=...)"
    if node.partition(".")[0] in (*COMPONENTS, "task"):
        return f"{problem} (to add an argument, write +{key}=...)"
    keys = keys_of(node)
    if key.rpartition(".")[2] in keys:
        return f"is needed; leave out ~{key}"
    similar = get_close_matches(key.rpartition(".")[2], keys, n=1)
    hint = (
        f"; did you mean '{similar[0]}'?"
        if similar
        else ""
        if node
        else f"; with trainer=function, add it as +{key}=..."
    )
    return f"is not a key of the config; choose one of: {', '.join(keys)}{hint}" if keys else problem


def _of_sweeper(key: str) -> str:
    """Return the problem with a key that the config lacks, if it is a setting of a study; else an empty text."""
    if not is_setting(key):
        return ""
    setting = f"hydra/sweeper/{key}" if key in SETTING_GROUPS else f"hydra.sweeper.{key}"
    return f"is not a key of the config; if you mean the study's setting, write {setting}=..."


def _no_name_for_option(overrides: Sequence[str]) -> ConfigError:
    """Return the error for `optimizer=null` or `optimizer=3`. Hydra's own message does not name the group."""
    for override in overrides:
        group, option = key_of(override), value_of(override)
        if not group:
            return ConfigError("config", NO_KEY)
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
