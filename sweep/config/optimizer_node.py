"""The keys of the node `optimizer` that are not arguments of its target, and their checks.

They say which weights an optimizer updates, and how. conf/config.yaml has their defaults.
"""

from collections.abc import Mapping
from typing import Any

from sweep.utils.errors import ConfigError, is_positive, one_of, require

LR_SCALE = "lr_scale"  # in a group: the factor of the learning rate that the schedule sets
NO_DECAY = "norm_and_bias"
DEFAULTS: Mapping[str, Any] = {"groups": None, "freeze": [], "no_decay": None}


def arguments_of(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the node without the keys of `DEFAULTS`: the target and its arguments."""
    return {key: value for key, value in optimizer.items() if key not in DEFAULTS}


def groups_of(optimizer: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Return the values of each group of weights, by the pattern of their names."""
    return optimizer.get("groups") or {}


def frozen_of(optimizer: Mapping[str, Any]) -> list[str]:
    """Return the patterns of the names of weights that are not trained."""
    return optimizer.get("freeze") or []


def check_weights(optimizer: Mapping[str, Any]) -> None:
    """Raise ConfigError unless groups, freeze and no_decay have the right form. Patterns are checked with the model."""
    groups, frozen, no_decay = (optimizer.get(key) for key in DEFAULTS)
    if groups is not None and not isinstance(groups, dict):
        raise ConfigError("optimizer.groups", f"must map patterns of names to values, got {groups!r}")
    for pattern, values in (groups or {}).items():
        _check_group(f"optimizer.groups.{pattern}", values)
    is_list = isinstance(frozen, list) and all(isinstance(pattern, str) for pattern in frozen)
    if frozen is not None and not is_list:
        raise ConfigError(
            "optimizer.freeze", f"must be a list of patterns of names, such as [backbone.*]; got {frozen!r}"
        )
    if no_decay is not None:
        one_of("optimizer.no_decay", str(no_decay), (NO_DECAY,))


def _check_group(key: str, values: Any) -> None:
    if not isinstance(values, dict) or not values:
        raise ConfigError(key, f"must map names to values, such as {{weight_decay: 0}}; got {values!r}")
    for name in ("params", "lr"):
        message = f"a group cannot set it; set {LR_SCALE}, a factor of the learning rate that the schedule sets"
        require(name not in values, f"{key}.{name}", message)
    scale = values.get(LR_SCALE, 1.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not is_positive(scale):
        raise ConfigError(f"{key}.{LR_SCALE}", f"must be a finite number > 0, got {scale!r}")
