"""Checks the fields of journal records.

A checksum shows that a line is unchanged, but not that sweep wrote it.
"""

from collections.abc import Callable, Mapping
from typing import Any

Record = dict[str, Any]

STATUSES = ("FINISHED", "FAILED", "KILLED")
_LARGEST = 2**63  # MLflow stores integers in 64 bits


def odd_field(record: Record) -> str | None:
    """Return the name of the first field that is missing or has the wrong type for this kind of record, else None."""
    fields = _FIELDS.get(kind) if isinstance(kind := record.get("kind"), str) else None
    if fields is None:
        return "kind"
    return next((name for name, is_right in fields.items() if not is_right(record.get(name))), _odd_columns(record))


def _odd_columns(record: Record) -> str | None:
    """Return the name of an optional field that has the wrong type, else None."""
    steps, values = record.get("steps", []), record.get("values", {})
    if not (isinstance(steps, list) and set(map(type, steps)) <= {int} and _are_small(steps)):
        return "steps"
    if not isinstance(values, dict) or not all(_is_column(column, len(steps)) for column in values.values()):
        return "values"
    return None if isinstance(record.get("tags", {}), dict) else "tags"


def _is_column(column: Any, n: int) -> bool:
    if not isinstance(column, list) or len(column) != n:
        return False
    types = set(map(type, column))
    return types <= {float} or (types <= {int, float} and _are_small([v for v in column if isinstance(v, int)]))


def _are_small(numbers: list[int]) -> bool:
    return not numbers or -_LARGEST <= min(numbers) <= max(numbers) < _LARGEST


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_time(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _names_parent(value: Any) -> bool:
    return value is None or _has_texts(value, "uid", "name", "folder")


def _names_dataset(value: Any) -> bool:
    return value is None or (_has_texts(value, "name", "digest") and {"source", "profile"} <= value.keys())


def _has_texts(value: Any, *names: str) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in names)


_FIELDS: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    "start": {
        "time": _is_time,
        **dict.fromkeys(("uid", "name", "experiment", "output_dir"), _is_text),
        "store": _is_text_or_none,
        "params": _is_mapping,
        "tags": _is_mapping,
        "parent": _names_parent,
        "dataset": _names_dataset,
    },
    "metrics": {
        "time": _is_time,
        "steps": lambda value: isinstance(value, list),
        "values": _is_mapping,
    },
    "end": {
        "time": _is_time,
        "status": lambda value: value in STATUSES,
    },
}
