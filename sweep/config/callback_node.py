"""The nodes of `trainer.callbacks`: which metrics they declare, and whether lower or higher is better.

The attribute `metrics` of a class declares them, or the key `metrics` of a node. Either maps names to goals.
"""

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sweep.config.metrics import checked_goal, is_own
from sweep.config.targets import check_targets
from sweep.utils.errors import ConfigError, one_line, require

METRICS = "metrics"  # in a node, and of a class
_GOALS = "minimize or maximize, in the class or in the config"


def key_of_callback(place: int) -> str:
    """Return the config key of a callback. place: its number in the list, from 0."""
    return f"trainer.callbacks.{place}"


def arguments_of(callback: Mapping[str, Any]) -> dict[str, Any]:
    """Return the node without its declaration: the target and its arguments."""
    return {name: value for name, value in callback.items() if name != METRICS}


def check_callback(place: int, callback: Any) -> None:
    """Raise ConfigError unless the node has a target that is allowed."""
    key, message = key_of_callback(place), "needs a _target_, such as {_target_: mypkg.Images}"
    require(isinstance(callback, dict) and isinstance(callback.get("_target_"), str), key, message)
    check_targets(key, arguments_of(callback))


def declared(callbacks: Sequence[Mapping[str, Any]], taken: Collection[str] = ()) -> dict[str, str]:
    """Return the goal of each metric that the callbacks declare, by name.

    Args:
        callbacks: the config's nodes. Their classes are loaded.
        taken: names that a callback cannot have, since others have them.

    Raises:
        ConfigError: a class cannot be loaded, a goal is not known, or a name is taken.
    """
    found: dict[str, str] = {}
    for place, callback in enumerate(callbacks):
        own = declared_by(place, callback)
        for name in own:
            key = f"{key_of_callback(place)}.{METRICS}"
            is_free = name not in taken and not is_own(name)
            require(is_free, key, f"'{name}' is taken: sweep or one of its tasks records it; choose another name")
            require(name not in found, key, f"'{name}' is declared by two callbacks; choose another name for one")
        found |= own
    return found


def declared_by(place: int, callback: Mapping[str, Any]) -> dict[str, str]:
    """Return the goal of each metric that one callback declares, by name. Raise ConfigError as `declared` does."""
    key = f"{key_of_callback(place)}.{METRICS}"
    goals = {**_mapping(key, _of_class(place, callback)), **_mapping(key, callback.get(METRICS))}
    return {name: checked_goal(f"{key}.{name}", goal, _GOALS) for name, goal in goals.items()}


def _of_class(place: int, callback: Mapping[str, Any]) -> Any:
    """Return what the callback's class declares; None if it declares nothing."""
    check_callback(place, callback)
    try:
        return _declaration(callback["_target_"])
    except Exception as error:  # importing a module may raise anything
        message = f"cannot load '{callback['_target_']}': {one_line(error)}"
        raise ConfigError(f"{key_of_callback(place)}._target_", message) from error


@functools.cache
def _declaration(target: str) -> Any:
    from hydra.utils import get_object

    return getattr(get_object(target), METRICS, None)


def _mapping(key: str, value: Any) -> dict[str, Any]:
    value = {} if value is None else value
    is_one = isinstance(value, Mapping) and all(isinstance(name, str) and name.strip() for name in value)
    require(is_one, key, f"must map names to goals, such as {{val/gap: minimize}}; got {value!r}")
    return dict(value)
