"""Read the overrides that an output folder has stored.

The folder may come from somebody else. So it decides neither where results go nor what is read from the environment.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from omegaconf.grammar_parser import parse

from sweep.config.overrides import key_of, sets, setting, word
from sweep.utils.errors import ConfigError

_SEARCHPATH = "hydra.searchpath"
_OF_THE_COMMAND = ("output_dir", "tracking", "resume", "from_study")  # only the user's own command may set these
_KEPT = ("tracking=off", "tracking=mlflow")  # they set whether to track, not where


def stored_overrides(overrides: Sequence[Any], given: Sequence[str], key: str) -> list[str]:
    """Return the overrides that a folder has stored, without those that only the user's own command may give.

    Args:
        overrides: those that the folder has stored.
        given: the overrides of the user's own command.
        key: the config key that an error names.

    Raises:
        ConfigError: a stored override uses a resolver such as oc.env, sets one of Hydra's keys, or names a folder of
            options that the command does not name too.
    """
    kept = []
    for override in map(str, overrides):
        name = key_of(override).partition("@")[0]
        node = name.partition(".")[0].partition("/")[0]
        if name == _SEARCHPATH:
            _require_folders(override, given, key)
        elif node == "hydra":
            raise ConfigError(key, f"its configuration sets {name}, which only your own command may; leave it out")
        elif node not in _OF_THE_COMMAND or override in _KEPT:
            refuse_resolvers(override, key)
            kept.append(override)
    return kept


def _require_folders(override: str, given: Sequence[str], key: str) -> None:
    """Raise ConfigError for a folder of options that the command does not name: its files could contain anything."""
    own = {folder for o in given if sets(o, _SEARCHPATH) for folder in _folders(o)}
    if missing := [folder for folder in _folders(override) if folder not in own]:
        problem = f"its options come from another folder; if you trust that, add  {word(setting(_SEARCHPATH, missing))}"
        raise ConfigError(key, problem)


def _folders(override: str) -> list[str]:
    value = _value(override)
    return [str(folder) for folder in value] if isinstance(value, list) else [str(value)]


def refuse_resolvers(override: str, key: str) -> None:
    """Raise ConfigError, about `key`, if the override calls a resolver."""
    texts = [key_of(override), *_texts(_value(override))]
    if any(_calls_resolver(text) for text in texts):
        raise ConfigError(key, f"its configuration holds a resolver ({override}), which could read your environment")


def _value(override: str) -> Any:
    """Return the override's value as Hydra reads it; the text if Hydra cannot (composing it then raises the error)."""
    try:
        return OverridesParser.create().parse_override(override).value()
    except (HydraException, ValueError, TypeError, OmegaConfBaseException):
        return override


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in the value at any depth, keys included."""
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from (str(name), *_texts(child))
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _texts(child)
    elif value is not None and not isinstance(value, bool | int | float):
        yield str(value)


def _calls_resolver(text: str) -> bool:
    """Return True if the text calls a resolver, or if OmegaConf cannot parse it."""
    if "${" not in text:
        return False
    try:
        return _has_call(parse(text))
    except OmegaConfBaseException:
        return True


def _has_call(node: Any) -> bool:
    if type(node).__name__ == "InterpolationResolverContext":
        return True
    return any(map(_has_call, getattr(node, "children", None) or ()))
