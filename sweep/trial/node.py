"""`sweep.build`: build what a node of the config describes, in a training function of the user's own."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sweep.config.optimizer_node import DEFAULTS, arguments_of, frozen_of
from sweep.config.targets import check_targets
from sweep.data import Datasets, Samples
from sweep.trial import build as parts
from sweep.trial.binding import bind
from sweep.utils.errors import ConfigError


def build(node: Mapping[str, Any], *arguments: Any, **offered: Any) -> Any:
    """Build what a node of the config describes: call its target with its arguments and yours.

        model = sweep.build(cfg.model, in_features=16, out_features=1)
        optimizer = sweep.build(cfg.optimizer, model)
        scheduler = sweep.build(cfg.scheduler, optimizer, steps_per_epoch=100, epochs=cfg.trainer.epochs)

    A few nodes have a meaning of their own:

    - `cfg.data` gives `sweep.Samples` or `sweep.Datasets`.
    - `cfg.model` also takes these in place of `in_features`, `in_shape`, `n_tokens` and `out_features`.
    - `cfg.optimizer` takes the model, and heeds `optimizer.groups`, `freeze` and `no_decay`. It also takes
      `model.parameters()` if none of these is set.
    - `cfg.scheduler` takes the optimizer, and needs to know `steps_per_epoch` and `epochs`.

    Args:
        node: a node of the config that a training function gets, or a dict with a `_target_`.
        arguments: the first arguments of the target.
        offered: further arguments. The target gets those that it has and that the node leaves out.

    Raises:
        ConfigError: the target is not allowed, cannot be loaded, does not take its arguments, or fails. The error names
            the config key.
    """
    key, plain = _named(node)
    if not isinstance(plain.get("_target_"), str):
        raise ConfigError(key, f"needs a _target_; choose an option such as {key}=..., or write one")
    check_targets(key, plain)
    if key == "data" and not arguments and not offered:
        return parts.samples(plain)
    if key == "model" and len(arguments) == 1 and isinstance(arguments[0], Samples | Datasets):
        return parts.model(plain, arguments[0], **offered)
    if key == "optimizer":
        return _optimizer(plain, *arguments, **offered)
    if key == "scheduler":
        if {"steps_per_epoch", "epochs"} <= offered.keys():
            return parts.scheduler(plain, **offered)(*arguments)
        plain.pop("interval", None)
    return bind(key, plain, offered, positional=len(arguments))(*arguments)


def _optimizer(node: dict[str, Any], first: Any, *arguments: Any, **offered: Any) -> Any:
    from torch import nn

    if isinstance(first, nn.Module) and not arguments and not offered:
        from sweep.training.groups import freeze

        freeze(first, frozen_of(node))
        return parts.optimizer(node, first)
    for name in DEFAULTS:
        if node.get(name):
            message = "chooses weights by their names; give the model: sweep.build(cfg.optimizer, model)"
            raise ConfigError(f"optimizer.{name}", message)
    return bind("optimizer", arguments_of(node), offered, positional=1 + len(arguments))(first, *arguments)


def _named(node: Any) -> tuple[str, dict[str, Any]]:
    """Return the full config key of a node, and its content. Raise ConfigError if it is no node."""
    if isinstance(node, DictConfig):
        key, plain = node._get_full_key(None) or "config", OmegaConf.to_container(node, resolve=True)
    else:
        key, plain = "node", node
    if not isinstance(plain, Mapping):
        raise ConfigError(key, f"must be a node of the config, with a _target_; got {type(node).__name__}")
    return key, {str(name): value for name, value in plain.items()}
