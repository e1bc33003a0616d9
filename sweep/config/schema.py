"""The schema of a config, and every check that needs nothing but the config.

This module imports neither torch, Optuna nor MLflow, so that a bad config is refused before any of them is loaded.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, field, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, Node, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from sweep.config.callback_node import check_callback
from sweep.config.function_node import check_call, check_own_keys
from sweep.config.hydra_texts import resolution_problem
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
APPLICATION = "hydra_application"  # the key that only the trials of another Hydra application have
_LONGEST_NAME = 500
_INTERPOLATION = re.compile(r"(\\*)\$\{")


@dataclass(kw_only=True)
class Config:
    """The configuration of one trial. `data`, `task`, `model`, `optimizer` and `scheduler` are `_target_` nodes.

    These accept any argument of their target. With a training function of the user's own, all but `task` may be None,
    and `own` has the user's own keys at the root.
    """

    seed: int = 0
    output_dir: str = "outputs"
    experiment_name: str = "sweep"
    resume: str | None = None
    from_study: str | None = None
    data: Any = None
    task: Any = field(default_factory=lambda: dict(AUTO_TASK))  # configs of earlier versions have none
    model: Any = None
    optimizer: Any = None
    scheduler: Any = None
    lr_bounds: LrBounds = field(default_factory=LrBounds)
    lr_search: LrSearch = field(default_factory=LrSearch)
    lr_range: LrRange = field(default_factory=LrRange)
    bounds: str | None = None  # auto: a study searches learning rates around what a range test suggests
    search: dict[str, Any] = field(default_factory=dict)  # what a study searches: ranges by full config key
    where: dict[str, Any] = field(default_factory=dict)  # named conditions that a searched configuration must meet
    when: dict[str, Any] = field(default_factory=dict)  # conditions on which keys are searched, by full config key
    split: Split = field(default_factory=Split)
    loader: Loader = field(default_factory=Loader)
    trainer: Trainer = field(default_factory=Trainer)
    tracking: Tracking = field(default_factory=Tracking)
    compare: Compare = field(default_factory=Compare)
    # `with_origin` fills in the rest.
    choices: dict[str, str] = field(default_factory=dict)  # the chosen option of each group
    overrides: list[str] | None = None  # the command line that composes this config; None if it is not known
    composed: str | None = None  # the fingerprint of the config that those overrides composed
    own: dict[str, Any] = field(default_factory=dict, metadata={"omegaconf_ignore": True})
    # The whole config of an application with a `@hydra.main` of its own, whose task function trains the trial.
    hydra_application: dict[str, Any] | None = field(default=None, metadata={"omegaconf_ignore": True})

    @property
    def is_application(self) -> bool:
        """Whether the task function of another Hydra application trains the trial. Then `is_function` is true too."""
        return self.hydra_application is not None

    @property
    def is_function(self) -> bool:
        """Whether a training function of the user's own trains the trial, instead of sweep's loop."""
        return self.trainer.call is not None

    @property
    def has_split(self) -> bool:
        """Whether something divides the data as `split` says: sweep's loop, or a function with an option of `split`."""
        return not self.is_function or ("split" in self.choices and not self.is_application)

    @property
    def monitor_direction(self) -> str:
        """Whether to minimize or maximize the curve that the trial monitors. Raises ConfigError if it is not known."""
        if self.is_function:
            return self.trainer.direction or "minimize"
        return direction_of(self.trainer.monitored, self.task, self.trainer.callbacks)


def register_schema() -> None:
    """Register with Hydra the schema `sweep_schema` and the resolver `sweep.part`, which conf/ uses.

    `sweep.config.output_folders` registers the resolvers of folders.
    """
    OmegaConf.register_resolver("sweep.part", _part, replace=True)
    known = ConfigStore.instance().repo
    if "sweep_schema.yaml" in known and known["sweep_schema.yaml"].provider == "sweep":  # which takes 30 ms
        return
    ConfigStore.instance().store(name="sweep_schema", node=Config, provider="sweep", replace=True)
    # Files of options may add keys at the root, for a training function. `refuse_unknown_keys` refuses all others.
    known["sweep_schema.yaml"].node._set_flag("struct", False)


def _part(whole: int | None, parts: int) -> int | None:
    """Return a part of a number of epochs, at least 1; None if the number is not known."""
    return None if whole is None else max(1, whole // parts)


def structured() -> DictConfig:
    """Return the schema with its defaults, to be merged with a stored config, which may have keys of the user's own."""
    schema = OmegaConf.structured(Config)
    schema._set_flag("struct", False)
    return schema


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
    return [name for name in _names(node) if name not in (*_ORIGIN, APPLICATION)] if node in _SCHEMA else []


def _names(node: str) -> list[str]:
    """Return the names of all keys of a node that the schema describes."""
    return [key.name for key in fields(_SCHEMA[node]) if (node, key.name) != ("", "own")]


def own_keys(keys: Iterable[object]) -> list[str]:
    """Return those of the keys at the root that are the user's own."""
    known = {*_names("")}
    return [str(key) for key in keys if key not in known]


def is_own_key(key: str) -> bool:
    """Return whether a full config key is one of the user's own, or in a node of theirs."""
    return bool(own_keys([key.partition(".")[0]]))


def unchecked(cfg: DictConfig) -> Config:
    """Return a config that may be invalid, to record why it cannot be trained. Its nodes are objects or dicts."""
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    config.own = {key: vars(config).pop(key) for key in own_keys(cfg)}
    return config


def validate(cfg: DictConfig) -> Config:
    """Resolve and check a config.

    Returns:
        The config as plain values. `data`, `task`, `model`, `optimizer` and `scheduler` are dicts; nothing is built.

    Raises:
        ConfigError: for the first mistake.
    """
    refuse_unknown_keys(cfg)
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
    own = {key: plain[key] for key in own_keys(plain)}
    config = Config(**{str(key): value for key, value in plain.items() if key not in own} | nodes, own=own)
    checked_output_dir(config.output_dir)
    require(bool(config.experiment_name.strip()), "experiment_name", "is empty; name an MLflow experiment")
    require(
        len(config.experiment_name) <= _LONGEST_NAME,
        "experiment_name",
        f"has {len(config.experiment_name)} characters; MLflow takes {_LONGEST_NAME}",
    )
    is_auto(config.bounds)
    require(
        config.is_function or not config.tracking.share_run,
        "tracking.share_run",
        "is for a training function or an application that logs to MLflow by itself; leave it out",
    )
    if config.is_function and not config.is_application:
        check_call(config.trainer.call, config.choices.get("trainer"))
        check_own_keys(config.own)
        message = "is set, but has no option, so your function would not get it; add split=random"
        require(config.has_split or config.split == Split(), "split", message)
    if config.is_function:
        for key in COMPONENTS:
            if _is_left_out(key, getattr(config, key)):
                setattr(config, key, None)
    present = [key for key in COMPONENTS if not config.is_function or getattr(config, key) is not None]
    for key in (*present, "task"):
        _check_component(key, getattr(config, key))
    for place, callback in enumerate(config.trainer.callbacks):
        check_callback(place, callback)
    if not config.is_function:
        if config.trainer.monitor is not None:
            check_monitor(config.trainer.monitor, config.task, config.trainer.callbacks)
        direction_of(config.trainer.monitored, config.task, config.trainer.callbacks)
    if "optimizer" in present:
        check_weights(config.optimizer)
    check_learning_rates(config.optimizer or {}, config.scheduler or {})
    if "scheduler" in present:
        one_of("scheduler.interval", interval_of(config.scheduler) or "epoch", INTERVALS)
        if counts_steps(config.scheduler) and interval_of(config.scheduler) == "epoch":
            raise ConfigError("scheduler.interval", "is epoch, but this schedule counts steps; set it to step")
    return config


def _is_left_out(key: str, node: Any) -> bool:
    """Return whether a config has no option of the group: nothing but what conf/config.yaml sets for all options."""
    return node is None or (key == "optimizer" and isinstance(node, dict) and node == dict(OPTIMIZER_DEFAULTS))


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

    The default of a new key keeps the earlier behaviour. So an older record without the key is read as having the
    default.
    """
    found = {f"optimizer.{name}": value for name, value in OPTIMIZER_DEFAULTS.items()}
    for node, schema in _SCHEMA.items():
        for key in fields(schema):
            made = key.default if key.default_factory is NO_DEFAULT else key.default_factory()
            found[f"{node}.{key.name}" if node else key.name] = made
    return found


def refuse_unknown_keys(cfg: DictConfig, choices: Mapping[str, str | None] | None = None) -> None:
    """Raise ConfigError for an unknown key. Hydra accepts a key that is added with +, and it would be ignored.

    With a training function, which gets the config, the user's own keys at the root are welcome.

    Args:
        cfg: the composed config.
        choices: the option of each group, by default those that the config names.
    """
    is_function = has_function(cfg)
    if "experiment" in cfg:  # an option of the group without a package
        option = (choices or cfg.choices or {}).get("experiment")
        message = "for its keys to be those of the config, it must begin with the line  # @package _global_"
        raise ConfigError("experiment", f"'experiment/{option}.yaml' is taken for keys below experiment; {message}")
    for node in _SCHEMA:
        known = {*_names(node)}
        for key in cfg[node] if node else cfg:
            name = f"{node}.{key}" if node else str(key)
            is_known = key in known or (is_function and not node)
            require(is_known, name, f"is not a key of the config; choose one of: {', '.join(keys_of(node))}")


def has_function(cfg: DictConfig) -> bool:
    """Return whether a composed config names a training function, or leaves open which."""
    return named_call(cfg) is not None


def named_call(cfg: DictConfig) -> str | None:
    """Return `trainer.call` as it is written: None without a training function, ??? if it is left open."""
    call = cfg.trainer._get_node("call")
    return call._value() if isinstance(call, Node) else None


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
