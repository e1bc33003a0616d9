"""Bind a config node's target to its arguments. This is the only module that calls Hydra's `instantiate`.

It always calls it with a whitelist. Arguments are checked against the target's signature before anything is called, so
that an error names its config key. Functions here raise ConfigError if the target cannot be loaded, does not accept its
arguments, or fails.
"""

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate

from sweep.config.targets import allowed_targets
from sweep.utils.errors import ConfigError, SweepError, one_line

_UNIONS = (typing.Union, types.UnionType)
_EXTRAS = {"torchvision": "images"}  # by package


def bind(
    key: str,
    node: Mapping[str, Any],
    offered: Mapping[str, Any],
    positional: int = 0,
    allowed: Sequence[str] | None = None,
) -> Callable[..., Any]:
    """Bind the node's arguments to its target.

    Args:
        key: the config key of the node.
        node: the config node, with `_target_` and arguments.
        offered: arguments for parameters that the target has and the node leaves out.
        positional: the number of positional arguments that the caller of the returned function passes.
        allowed: patterns of targets; by default `allowed_targets()`.

    Returns:
        A function that calls the target. It raises ConfigError if the target raises.

    Raises:
        ConfigError: the target cannot be loaded, or does not accept the arguments.
    """
    whitelist = allowed_targets() if allowed is None else tuple(allowed)
    if _is_ours_to_build(node):
        own = {name: _built(f"{key}.{name}", value, whitelist) for name, value in node.items() if name != "_target_"}
        target = partial(located(key, node["_target_"], whitelist), **own)
    else:
        target = _instantiated(key, dict(node), whitelist)
    arguments = dict(target.keywords)
    _check_arguments(key, target.func, arguments, offered, positional)
    configured = dict(arguments)
    arguments |= {
        name: value for name, value in offered.items() if name in named(target.func) and name not in arguments
    }
    for name, annotation in _annotations(target.func).items():
        if type(arguments.get(name)) is int and _is_real(annotation):
            arguments[name] = float(arguments[name])  # some of torch's classes accept 1.0 but not 1

    def call(*args: Any) -> Any:
        try:
            return target(*args, **arguments)
        except SweepError:
            raise
        except Exception as error:  # constructors, torch's or the user's, may raise anything
            raise ConfigError(_argument_meant(key, configured, error), _reason(error)) from error

    return call


@lru_cache(maxsize=256)
def located(key: str, target: str, whitelist: tuple[str, ...]) -> Callable[..., Any]:
    """Import a target by its dotted path. The cache saves 2 ms a call: a study's trials name the same few targets."""
    found = _instantiated(key, {"_target_": target}, whitelist)
    return found if found.keywords or found.args else found.func  # a target may be a functools.partial itself


def located_by_setting(key: str, path: str, whitelist: tuple[str, ...]) -> Callable[..., Any]:
    """Import what a setting names by its dotted path. Raise ConfigError for the setting, which has no `_target_`."""
    try:
        return located(key, path, whitelist)
    except ConfigError as error:
        raise ConfigError(key, error.problem) from error


def _instantiated(key: str, node: dict[str, Any], whitelist: tuple[str, ...]) -> partial[Any]:
    """Return the target with the node's arguments, in which nested nodes are built. Raise ConfigError."""
    try:
        return instantiate(node, _partial_=True, _convert_="all", _execution_whitelist_=whitelist)
    except (HydraException, ImportError) as error:
        problem = f"cannot load '{node['_target_']}': {_what_to_install(node['_target_']) or _reason(error)}"
        raise ConfigError(f"{key}._target_", problem) from error
    except SweepError:
        raise
    except Exception as error:  # a nested node's own call
        raise ConfigError(key, _reason(error)) from error


def _what_to_install(target: str) -> str | None:
    """Return what to do about a target in a package that an extra installs, if the package is missing."""
    package = target.partition(".")[0]
    if package not in _EXTRAS or find_spec(package) is not None:
        return None
    return f"{package} is not installed; pip install 'hydra-sweep[{_EXTRAS[package]}]'"


def _is_ours_to_build(value: Any) -> bool:
    """Return False if Hydra has to build the node: something in it is no plain value, or has one of its `_keys_`."""
    if isinstance(value, Mapping):
        names = all(name == "_target_" or not str(name).startswith("_") for name in value)
        return names and all(map(_is_ours_to_build, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_ours_to_build, value))
    return value is None or isinstance(value, str | int | float)


def _built(key: str, value: Any, whitelist: tuple[str, ...]) -> Any:
    """Return an argument, in which nested nodes are built. They are checked as the node itself is."""
    if isinstance(value, Mapping) and "_target_" in value:
        return bind(key, value, offered={}, allowed=whitelist)()
    if isinstance(value, Mapping):
        return {name: _built(f"{key}.{name}", of_one, whitelist) for name, of_one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_built(f"{key}.{i}", of_one, whitelist) for i, of_one in enumerate(value))
    return value


def _check_arguments(
    key: str, target: Callable[..., Any], arguments: Mapping[str, Any], offered: Mapping[str, Any], positional: int
) -> None:
    """Raise ConfigError for an argument that the target does not have, lacks or does not accept by its annotation."""
    parameters = parameters_of(target)
    name_of_target = getattr(target, "__qualname__", str(target))
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        takes = [p.name for p in parameters[positional:] if p.kind is not p.VAR_POSITIONAL]
        for name in arguments:
            if name not in takes:
                raise ConfigError(
                    f"{key}.{name}",
                    f"{name_of_target} takes no such argument; it takes: {', '.join(takes) or 'nothing'}",
                )
    for parameter in parameters[positional:]:
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if required and parameter.name not in arguments and parameter.name not in offered:
            raise ConfigError(f"{key}.{parameter.name}", f"{name_of_target} needs it; set {key}.{parameter.name}=...")
    for name, annotation in _annotations(target).items():
        if name in arguments and not _fits(arguments[name], annotation):
            raise ConfigError(f"{key}.{name}", f"must be {_annotation_text(annotation)}, got {arguments[name]!r}")


@lru_cache(maxsize=256)
def parameters_of(target: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):  # a builtin without a signature: accept any arguments
        return [inspect.Parameter("arguments", inspect.Parameter.VAR_KEYWORD)]


def named(target: Callable[..., Any]) -> set[str]:
    """Return the names of the parameters that the target accepts by keyword."""
    return {p.name for p in parameters_of(target) if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


@lru_cache(maxsize=256)
def _annotations(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if isinstance(target, type) else target)
    except (NameError, TypeError, AttributeError):  # forward references that only a type checker can resolve
        return {}


def _fits(value: Any, annotation: Any) -> bool:
    """Return True if a config value fits the annotation. An annotation that this function cannot judge fits any value.

    Annotations from torch fit only objects of nested nodes: a config has no tensors.
    """
    origin, options = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in _UNIONS:
        return any(_fits(value, option) for option in options)
    if origin is typing.Literal:
        return value in options
    if origin in (list, Sequence) and options:
        return isinstance(value, list | tuple) and all(_fits(item, options[0]) for item in value)
    if origin is tuple and options and options[-1] is not Ellipsis:
        return isinstance(value, list | tuple) and len(value) == len(options) and all(map(_fits, value, options))
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str):
        return isinstance(value, annotation)
    if annotation is None or annotation is type(None):
        return value is None
    is_of_torch = isinstance(annotation, type) and annotation.__module__.startswith("torch")
    return not is_of_torch or isinstance(value, annotation)  # a nested node may be built already


def _is_real(annotation: Any) -> bool:
    """Return True if the annotation allows float but does not name int."""
    options = typing.get_args(annotation) if typing.get_origin(annotation) in _UNIONS else (annotation,)
    return float in options and int not in options


def _annotation_text(annotation: Any) -> str:
    """Return the annotation in words, such as "a number or null"."""
    origin, options = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in _UNIONS:
        kinds = [_annotation_text(o) for o in options if not getattr(o, "__module__", "").startswith("torch")]
        return " or ".join(dict.fromkeys(kinds))
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, options))}"
    if origin is tuple and options and options[-1] is not Ellipsis:
        return f"a list of {len(options)}: {', '.join(map(_annotation_text, options))}"
    if origin in (list, tuple, Sequence) and options:
        return f"a list, each {_annotation_text(options[0])}"
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", type(None): "null"}
    return words.get(annotation) or inspect.formatannotation(annotation)


def _argument_meant(key: str, arguments: Mapping[str, Any], error: Exception) -> str:
    """Return the config key of the argument that the error message names, or the key of the node if none is clear."""
    words = set(re.findall(r"\w+", str(error)))
    also = {"beta": "betas", "epsilon": "eps", "learning": "lr"}  # torch's words for its arguments
    words |= {argument for word, argument in also.items() if word in words}
    named = [name for name in arguments if name in words]
    return f"{key}.{named[0]}" if len(named) == 1 else key


def _reason(error: BaseException) -> str:
    """Return, in one line, what caused an error of Hydra's."""
    cause = error
    while isinstance(cause, HydraException) and cause.__cause__ is not None:
        cause = cause.__cause__
    bare = isinstance(cause, LookupError | ArithmeticError)  # their messages say little
    return f"{type(cause).__name__}: {one_line(cause)}" if bare else one_line(cause)
