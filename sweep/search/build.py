"""Build a study's sampler and pruner from their config nodes.

Both functions raise ConfigError if the target cannot be loaded, does not accept its arguments, or fails.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from sweep.config.targets import allowed_targets
from sweep.trial.binding import bind
from sweep.utils.errors import ConfigError

T = TypeVar("T")

_TARGETS = ("optuna.samplers.*", "optuna.pruners.*", "sweep.search.pruners.*", "hydra_plugins.hydra_optuna_sweeper.*")


def sampler(node: Mapping[str, Any]) -> BaseSampler:
    """Call the target of `hydra.sweeper.sampler`."""
    return _built("hydra.sweeper.sampler", node, BaseSampler)


def pruner(node: Mapping[str, Any]) -> BasePruner:
    """Call the target of `hydra.sweeper.pruner`."""
    return _built("hydra.sweeper.pruner", node, BasePruner)


def _built(key: str, node: Mapping[str, Any], kind: type[T]) -> T:
    """Call the node's target, which may be one of Optuna's. Raise ConfigError if it returns anything but a `kind`."""
    if not isinstance(node.get("_target_"), str):
        group = key.replace(".", "/")
        raise ConfigError(key, f"needs a _target_; choose an option with {group}=...")
    made = bind(key, node, offered={}, allowed=(*_TARGETS, *allowed_targets()))()
    if not isinstance(made, kind):
        raise ConfigError(
            f"{key}._target_", f"{node['_target_']} returned {type(made).__name__}, which is not a {kind.__name__}"
        )
    return made
