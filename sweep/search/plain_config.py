"""A composed config as plain dicts. Setting values and resolving references takes a twentieth of OmegaConf's time.

This works only for simple interpolations and values. For anything else the methods return None, and the caller must use
OmegaConf.
"""

import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.]*)\}")  # to an absolute key
_CALL = re.compile(r"\$\{[\w.]+:[^${}\\]*\}")  # of a resolver, with arguments that do not depend on any key
_MOST_HOPS = 10  # references to references
_NOTHING = object()

Path = Sequence[Any]  # keys, starting at the root


class PlainConfig:
    """A config in which searched values are set many times."""

    def __init__(self, config: DictConfig) -> None:
        self._config = config
        plain = OmegaConf.to_container(config, resolve=False)
        marked = [(path, text) for path, text in _leaves(plain) if isinstance(text, str) and "${" in text]
        self._references = [path for path, text in marked if _REFERENCE.fullmatch(text)]
        self._calls = [path for path, text in marked if _CALL.fullmatch(text)]
        self._pickled = pickle.dumps(plain)
        self._takes: dict[tuple[str, type], bool] = {}
        self._called: dict[str, Any] = {}  # the config as OmegaConf resolves it, for the results of its resolvers
        self._is_simple = len(marked) == len(self._references) + len(self._calls) and self._is_resolved_alike()

    def unresolved(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config with `values` set and references unresolved. values: by key, accepted by `resolved`."""
        plain: dict[str, Any] = pickle.loads(self._pickled)
        for key, value in values.items():
            _set(plain, key.split("."), value)
        return plain

    def resolved(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the config with `values` set and everything resolved; None if only OmegaConf can do it."""
        if not self._is_simple or not all(self._takes_as_it_is(*item) for item in values.items()):
            return None
        return self._resolve(self.unresolved(values))

    def _resolve(self, plain: dict[str, Any]) -> dict[str, Any] | None:
        """Resolve `plain` in place and return it; None if a reference does not lead to a plain value."""
        for path in self._calls:
            if _CALL.fullmatch(str(_get(plain, path))):  # else a value was set here
                _set(plain, path, _get(self._called, path))
        for path in self._references:
            value = _get(plain, path)
            for _ in range(_MOST_HOPS):
                reference = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
                if reference is None:
                    break
                value = _get(plain, reference[1].split("."))
            if value is _NOTHING or isinstance(value, dict | list) or "${" in str(value):
                return None
            _set(plain, path, value)
        return plain

    def _is_resolved_alike(self) -> bool:
        """Return whether OmegaConf resolves the config, without values set, to the same. Keeps its result."""
        try:
            self._called = OmegaConf.to_container(self._config, resolve=True, throw_on_missing=True)  # pyright: ignore[reportAttributeAccessIssue]
        except OmegaConfBaseException:
            return False
        return repr(self._resolve(self.unresolved({}))) == repr(self._called)

    def _takes_as_it_is(self, key: str, value: Any) -> bool:
        """Return whether OmegaConf stores a value of this type under this key without converting it."""
        if not isinstance(value, float | int | bool | str) or (isinstance(value, str) and "${" in value):
            return False
        case = (key, type(value))
        if case not in self._takes:
            self._takes[case] = self._is_taken_as_it_is(key, value)
        return self._takes[case]

    def _is_taken_as_it_is(self, key: str, value: Any) -> bool:
        before = _get(pickle.loads(self._pickled), key.split("."))
        if before is _NOTHING or isinstance(before, dict | list):
            return False
        config = pickle.loads(pickle.dumps(self._config))
        OmegaConf.update(config, key, value, merge=True)
        after = OmegaConf.select(config, key)
        return type(after) is type(value) and after == value


def _leaves(plain: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every value that is not a dict or a list, with its path."""
    if isinstance(plain, dict | list):
        for key, part in plain.items() if isinstance(plain, dict) else enumerate(plain):
            yield from _leaves(part, (*path, key))
    else:
        yield path, plain


def _get(plain: Any, path: Path) -> Any:
    """Return the value at the path, or _NOTHING."""
    for key in path:
        try:
            plain = plain[key]
        except (KeyError, IndexError, TypeError):
            return _NOTHING
    return plain


def _set(plain: Any, path: Path, value: Any) -> None:
    _get(plain, path[:-1])[path[-1]] = value
