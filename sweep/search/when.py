"""Conditions of `when`: a key is searched only if its condition holds for the values that were chosen before it."""

import graphlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sweep.search.conditions import NoCondition, holds, keys_in
from sweep.utils.errors import ConfigError, one_line

_LONGEST_SHOWN = 100  # characters of a condition in a message
_INTERPOLATION = re.compile(r"\$\{([^{}]*)\}")  # the innermost, of a key or with a resolver
_NAME = re.compile(r"[\w.]+")


def in_order(keys: Iterable[str], conditions: Mapping[str, str], config: Mapping[str, Any]) -> list[str]:
    """Return the searched keys in an order in which each follows the keys that its condition reads.

    Args:
        keys: what is searched. Those without a condition come first, and keep their order.
        conditions: for keys that have one. They may contain references, such as `${width}`.
        config: the config that they read, as plain dicts, with its references unresolved.

    Raises:
        ConfigError: a condition cannot be parsed, or depends on itself.
    """
    keys = list(keys)
    free = [key for key in keys if key not in conditions]
    reads = {key: _keys_read(f"when.{key}", condition, config) for key, condition in conditions.items()}
    graph = {key: [other for other in keys if any(_is_of(read, other) for read in reads[key])] for key in conditions}
    try:
        sorted_keys = [*graphlib.TopologicalSorter(graph).static_order()]
    except graphlib.CycleError as error:
        circle = error.args[1]
        problem = f"depends on itself: {' reads '.join(reversed(circle))}; change one of these conditions"
        raise ConfigError(f"when.{circle[-1]}", problem) from error
    return [*free, *(key for key in sorted_keys if key in conditions)]


def meets(name: str, condition: Any, config: Mapping[str, Any]) -> bool:
    """Return whether a condition holds for a resolved config.

    Raises ConfigError about `name`, the condition's own key, if it cannot be evaluated.
    """
    try:
        return holds(str(condition), config)
    except NoCondition as error:
        raise _cannot_evaluate(name, condition, error) from error


def _cannot_evaluate(name: str, condition: Any, error: NoCondition) -> ConfigError:
    shown = one_line(ValueError(str(condition)), _LONGEST_SHOWN)
    return ConfigError(name, f"cannot evaluate '{shown}': {error}")


def _keys_read(name: str, condition: str, config: Mapping[str, Any]) -> list[str]:
    """Return the keys that a condition reads, also through references such as `width: ${model.width}`."""
    text, found = _without_references(condition)
    try:
        found += keys_in(text)
    except NoCondition as error:
        raise _cannot_evaluate(name, condition, error) from error
    for key in found:  # the list grows in the loop
        found += [other for other in _without_references(str(_at(config, key)))[1] if other not in found]
    return found


def _without_references(text: str) -> tuple[str, list[str]]:
    """Return a text with a name in place of each `${...}`, and all names in these. Some of them may be keys."""
    found: list[str] = []
    while bodies := _INTERPOLATION.findall(text):
        found += [name for body in bodies for name in _NAME.findall(body)]
        text = _INTERPOLATION.sub("_", text)
    return text, found


def _at(config: Any, key: str) -> Any:
    """Return the value of the key, or of the nearest node above it that is no dict."""
    for part in key.split("."):
        if not isinstance(config, dict):
            break
        config = config.get(part)
    return config


def _is_of(read: str, key: str) -> bool:
    """Return whether reading `read` also reads the key, or a part of its value."""
    return read == key or read.startswith(f"{key}.") or key.startswith(f"{read}.")
