"""The schema of a config, and every check that needs nothing but the config.

This module imports neither torch, Optuna nor MLflow, so that a bad config is refused before any of them is loaded.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, field, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from sweep.config.callback_node import check_callback
from sweep.config.interpolations import resolution_problem
from sweep.config.nodes import Compare, Loader, LrBounds, LrRange, LrSearch, Split, Tracking, Trainer
from sweep.config.optimizer_node import DEFAULTS as OPTIMIZER_DEFAULTS
from sweep.config.optimizer_node import check_weights
from sweep.config.options import option_names
from sweep.config.scheduler_node import INTERVALS, check_learning_rates, counts_steps, interval_of
from sweep.config.targets import check_targets
from sweep.config.task_node import AUTO_TASK, check_monitor, direction_of
from sweep.utils.errors import ConfigError, one_of, require
from sweep.utils.passwords import overrides_without_passwords
from sweep.utils.paths import absolute, refuse_links_at

COMPONENTS = ("data", "model", "optimizer", "scheduler")
_ORIGIN = ("choices", "overrides", "composed")  # `with_origin` fills in these keys
_LONGEST_NAME = 500
_INTERPOLATION = re.compile(r"(\\*)\$\{")


@dataclass(kw_only=True)
class Config:
    """The configuration of one trial. `data`, `task`, `model`, `optimizer` and `scheduler` are `_target_` nodes.

    These accept any argument of their target.
    """

    seed: int = 0
    output_dir: str = "outputs"
    experiment_name: str = "sweep"
    resume: str | None = None
    from_study: str | None = None
    data: Any = MISSING
    task: Any = field(default_factory=lambda: dict(AUTO_TASK))  # configs of earlier versions have none
    model: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    lr_bounds: LrBounds = field(default_factory=LrBounds)
    lr_search: LrSearch = field(default_factory=LrSearch)
    lr_range: LrRange = field(default_factory=LrRange)
    bounds: str | None = None  # auto: a study searches learning rates around what a range test suggests
    search: dict[str, Any] = field(default_factory=dict)  # what a study searches: ranges by full config key
    where: dict[str, Any] = field(default_factory=dict)  # named conditions that a searched configuration must meet
    split: Split = field(default_factory=Split)
    loader: Loader = field(default_factory=Loader)
    trainer: Trainer = field(default_factory=Trainer)
    tracking: Tracking = field(default_factory=Tracking)
    compare: Compare = field(default_factory=Compare)
    # `with_origin` fills in the rest.
    choices: dict[str, str] = field(default_factory=dict)  # the chosen option of each group
    overrides: list[str] | None = None  # the command line that composes this config; None if it is not known
    composed: str | None = None  # the fingerprint of the config that those overrides composed

    @property
    def monitor_direction(self) -> str:
        """Whether to minimize or maximize the curve that the trial monitors. Raises ConfigError if it is not known."""
        return direction_of(self.trainer.monitored, self.task, self.trainer.callbacks)


def register_schema() -> None:
    """Register with Hydra the schema `sweep_schema` and the resolver `sweep.part`, which conf/ uses.

    `sweep.config.output_folders` registers the resolvers of folders.
    """
    OmegaConf.register_resolver("sweep.part", lambda whole, parts: max(1, whole // parts), replace=True)
    ConfigStore.instance().store(name="sweep_schema", node=Config, provider="sweep", replace=True)


def with_origin(cfg: DictConfig, choices: Mapping[str, str | None], overrides: Sequence[str]) -> DictConfig:
    """Add to `cfg` the keys that `origin` returns, in place, and return it."""
    own = origin(OmegaConf.to_container(cfg, resolve=False), choices, overrides)
    for key, value in (own | {"overrides": literal(own["overrides"])}).items():
        cfg[key] = value
    return cfg


def literal(plain: Any) -> Any:
    """Escape every `${...}` in a text, a list or a dict, so that OmegaConf resolves each text to itself."""
    if isinstance(plain, dict):
        return {key: literal(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [literal(value) for value in plain]
    return _INTERPOLATION.sub(lambda match: f"{match[1]}{match[1]}\\${{", plain) if isinstance(plain, str) else plain


def origin(plain: Any, choices: Mapping[str, str | None], overrides: Sequence[str]) -> dict[str, Any]:
    """Describe how a config was composed.

    Args:
        plain: the config as dicts, not resolved.
        choices: Hydra's record of the option of each group.
        overrides: the command line.

    Returns:
        `choices` without Hydra's own groups, `overrides` without passwords, and the fingerprint `composed`.
    """
    own = {group: option for group, option in choices.items() if option and not group.startswith("hydra/")}
    return {"overrides": overrides_without_passwords(overrides), "choices": own, "composed": fingerprint(plain)}


def fingerprint(plain: Any) -> str:
    """Return a hash of the config's values, which changes when the config is edited. `plain` is as for `origin`."""
    values = {key: value for key, value in plain.items() if key not in _ORIGIN}
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()[:16]


def is_edited(config: "Config", cfg: DictConfig) -> bool:
    """Return True if `cfg`, from which `config` was read, was changed after its overrides composed it."""
    return config.composed != fingerprint(OmegaConf.to_container(cfg, resolve=False))


def keys_of(node: str) -> list[str]:
    """Return the keys of a node that the schema describes ("" is the root); an empty list for any other node."""
    return [key.name for key in fields(_SCHEMA[node]) if key.name not in _ORIGIN] if node in _SCHEMA else []


def validate(cfg: DictConfig) -> Config:
    """Resolve and check a config.

    Returns:
        The config as plain values. `data`, `task`, `model`, `optimizer` and `scheduler` are dicts; nothing is built.

    Raises:
        ConfigError: for the first mistake.
    """
    _refuse_unknown_keys(cfg)
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # three times as fast as to_object
        assert isinstance(plain, dict)
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", None) or "config")
        is_open = isinstance(error, MissingMandatoryValue)
        raise ConfigError(key, f"has no value; set {key}=..." if is_open else resolution_problem(error)) from error
    return validate_plain(plain)


def validate_plain(plain: dict[Any, Any]) -> Config:
    """Check a config that is given as dicts, is resolved, and has no unknown keys. See `validate`."""
    # Check `seed` before the nodes: trainer.seed is a copy of it, and an error should name the key that the user wrote.
    require(plain["seed"] >= 0, "seed", f"must be >= 0, got {plain['seed']}")
    nodes = {node: schema(**plain[node]) for node, schema in _SCHEMA.items() if node}
    config = Config(**{str(key): value for key, value in plain.items()} | nodes)
    checked_output_dir(config.output_dir)
    require(bool(config.experiment_name.strip()), "experiment_name", "is empty; name an MLflow experiment")
    require(
        len(config.experiment_name) <= _LONGEST_NAME,
        "experiment_name",
        f"has {len(config.experiment_name)} characters; MLflow takes {_LONGEST_NAME}",
    )
    is_auto(config.bounds)
    for key in (*COMPONENTS, "task"):
        _check_component(key, getattr(config, key))
    for place, callback in enumerate(config.trainer.callbacks):
        check_callback(place, callback)
    if config.trainer.monitor is not None:
        check_monitor(config.trainer.monitor, config.task, config.trainer.callbacks)
    direction_of(config.trainer.monitored, config.task, config.trainer.callbacks)
    check_weights(config.optimizer)
    check_learning_rates(config.optimizer, config.scheduler)
    one_of("scheduler.interval", interval_of(config.scheduler) or "epoch", INTERVALS)
    if counts_steps(config.scheduler) and interval_of(config.scheduler) == "epoch":
        raise ConfigError("scheduler.interval", "is epoch, but this schedule counts steps; set it to step")
    return config


def is_auto(bounds: Any) -> bool:
    """Return True if a range test should suggest the learning rates. Raise ConfigError for an unknown value."""
    require(bounds in (None, "auto"), "bounds", f"'{bounds}' is unknown; choose auto, or leave it out")
    return bounds == "auto"


_SCHEMA = {
    "": Config,
    "split": Split,
    "loader": Loader,
    "trainer": Trainer,
    "tracking": Tracking,
    "lr_bounds": LrBounds,
    "lr_search": LrSearch,
    "compare": Compare,
    "lr_range": LrRange,
}


@functools.cache
def own_defaults() -> Mapping[str, Any]:
    """Return the default of each of sweep's own keys, such as trainer.epochs.

    A new key's default does what was done before the key existed. So a record from before, which lacks the key, had it.
    """
    found = {f"optimizer.{name}": value for name, value in OPTIMIZER_DEFAULTS.items()}
    for node, schema in _SCHEMA.items():
        for key in fields(schema):
            made = key.default if key.default_factory is NO_DEFAULT else key.default_factory()
            found[f"{node}.{key.name}" if node else key.name] = made
    return found


def _refuse_unknown_keys(cfg: DictConfig) -> None:
    """Raise ConfigError for an unknown key. Hydra accepts a key that is added with +, and it would be ignored."""
    for node, schema in _SCHEMA.items():
        known = {key.name for key in fields(schema)}
        for key in cfg[node] if node else cfg:
            name = f"{node}.{key}" if node else str(key)
            require(key in known, name, f"is not a key of the config; choose one of: {', '.join(keys_of(node))}")


def checked_output_dir(output_dir: str) -> str:
    """Return output_dir with ~ expanded. Raise ConfigError if it is empty, or if an entry that sweep
    writes to is a link to a place outside it."""
    require(bool(output_dir.strip()), "output_dir", "is empty; name a folder")
    refuse_links_at(absolute(output_dir))
    return os.path.expanduser(output_dir)


def _check_component(key: str, node: Any) -> None:
    """Raise ConfigError unless the node has a target, and may call every target in it."""
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise ConfigError(
            key, f"needs a _target_; choose an option such as {key}={next(iter(option_names(key)), '<option>')}"
        )
    check_targets(key, node)
