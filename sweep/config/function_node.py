"""The parts of a config that only a training function of the user's own has: `trainer.call`, and keys at the root."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sweep.config.targets import check_target, check_targets
from sweep.utils.errors import ConfigError, require

CALL = "trainer.call"
_GIVEN = "given:"  # precedes the name of a function that a program gives as an object; no module is loaded for it
_NAME = re.compile(r"[A-Za-z_]\w*")


def check_call(call: Any, option: str | None) -> None:
    """Raise ConfigError unless a config may call the function.

    Args:
        call: the dotted path of the function.
        option: the chosen option of the group `trainer`; None if it is not known.
    """
    require(bool(str(call).strip()), CALL, "is empty; write the dotted path of your function, such as mypkg.train")
    if option == "default":
        raise ConfigError(CALL, "is for trainer=function, but trainer is default; choose trainer=function too")
    if not is_given(call):
        check_target(CALL, str(call))


def given_call(function: Callable[..., Any]) -> str:
    """Return the value of `trainer.call` for a function that a program gives as an object."""
    named: Any = function.func if isinstance(function, partial) else function
    named = named if hasattr(named, "__qualname__") else type(named)
    return f"{_GIVEN}{named.__module__}.{named.__qualname__}"


def is_given(call: Any) -> bool:
    """Return whether `trainer.call` stands for a function that a program has given as an object."""
    return str(call).startswith(_GIVEN)


def shown_call(call: Any) -> str:
    """Return the name of a training function as it is shown."""
    return str(call).removeprefix(_GIVEN)


def check_own_keys(own: Mapping[str, Any]) -> None:
    """Raise ConfigError for a key of the user's own with a name that no attribute can have, or a target not allowed."""
    for key, value in own.items():
        message = "cannot be the name of a key; use letters, digits and _, and begin with a letter"
        require(_NAME.fullmatch(key) is not None, key, message)
        check_targets(key, value)


def needs_loop(what: str) -> str:
    """Return the problem of a setting that a training function cannot follow. `what`: what needs sweep's own loop."""
    return f"{what} needs sweep's own loop, but trainer.call names a training function"
