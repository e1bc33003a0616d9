"""The functions and classes that a config may name with `_target_`. Checking them imports nothing."""

import functools
import os
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

from sweep.utils.errors import ConfigError

TRUSTED = "SWEEP_TARGETS"  # the environment variable of targets that the user has vouched for
_BUILT_IN_TARGETS = (
    "sweep.data.*",
    "sweep.models.*",
    "sweep.schedules.*",
    "sweep.tasks.*",
    "torch.optim.*",
    "torch.nn.*",
    "torchmetrics.*",
    "torchvision.transforms.v2.*",  # an extra; for data.augment
)


def allowed_targets() -> tuple[str, ...]:
    """Return patterns of the targets that a config may name: ours, PyTorch's, and those that the user has vouched for.

    A user vouches for a package by an entry point in the group `sweep.targets` (its value is the pattern's module,
    as in `mypkg = "mypkg"`) or by the environment variable SWEEP_TARGETS=mypkg.*,other.Model. A config cannot.
    """
    return (*_BUILT_IN_TARGETS, *_entry_point_targets(), *_environment_targets())


def is_allowed(target: str) -> bool:
    """Return True if a config may name `target`, a dotted path."""
    return any(
        target.startswith(pattern[:-1]) if pattern.endswith(".*") else target == pattern
        for pattern in allowed_targets()
    )


def check_targets(key: str, node: Any) -> None:
    """Raise ConfigError for the first target in the node, at any depth, that is not allowed."""
    for path, target in _targets(key, node):
        if not str(target).strip():
            raise ConfigError(f"{path}._target_", "is empty; write a dotted path such as torch.optim.Adam")
        check_target(f"{path}._target_", str(target))


def check_target(key: str, target: str) -> None:
    """Raise ConfigError, about `key`, unless a config may name `target`."""
    if not is_allowed(target):
        vouch = f"{TRUSTED}={target.partition('.')[0]}.*"
        raise ConfigError(key, f"'{target}' is not an allowed target; if you trust it, set {vouch}")


@functools.cache
def _entry_point_targets() -> tuple[str, ...]:
    return tuple(f"{point.value}.*" for point in entry_points(group="sweep.targets"))


def _environment_targets() -> tuple[str, ...]:
    """Return the patterns in SWEEP_TARGETS. Raise ConfigError for one that is neither a path nor `package.*`."""
    patterns = tuple(p.strip() for p in os.environ.get(TRUSTED, "").split(",") if p.strip())
    for pattern in patterns:
        if "*" in pattern.removesuffix(".*") or pattern == ".*":
            raise ConfigError(TRUSTED, f"'{pattern}' is not a pattern; write a dotted path, or mypkg.* for a package")
    return patterns


def _targets(key: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Yield every `_target_` in the node, at any depth, with the config key of the dict that has it."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node["_target_"]
        children = node.items()
    elif isinstance(node, list):
        children = enumerate(node)
    else:
        return
    for name, child in children:
        yield from _targets(f"{key}.{name}", child)
