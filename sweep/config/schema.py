"""The schema every YAML file is validated against, and all that a config alone can reveal to be wrong.

Imports neither torch, Optuna nor MLflow: a bad config is refused before any of them is loaded.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.config.nodes import Compare, LrBounds, LrRange, LrSearch, Split, Tracking, Trainer
from sweep.config.scheduler_node import INTERVALS, check_learning_rates, counts_steps, interval_of
from sweep.config.targets import check_targets
from sweep.utils.errors import ConfigError, one_line, one_of, require
from sweep.utils.passwords import overrides_without_passwords
from sweep.utils.paths import absolute, refuse_links_at

# Source checkouts keep conf/ beside the package; an installed wheel carries it inside.
_PACKAGE = Path(__file__).parent.parent
_INSIDE = _PACKAGE / "conf"
CONF_DIR = _INSIDE if _INSIDE.is_dir() else _PACKAGE.parent / "conf"

COMPONENTS = ("data", "model", "optimizer", "scheduler")
_ORIGIN = ("choices", "overrides", "composed")  # keys that composing fills in
_LONGEST_NAME = 500
_INTERPOLATION = re.compile(r"(\\*)\$\{")


@dataclass(kw_only=True)
class Config:
    """One trial. `data`, `model`, `optimizer` and `scheduler` are `_target_` nodes, open to any argument."""

    seed: int = 0
    output_dir: str = "outputs"
    experiment_name: str = "sweep"
    resume: str | None = None
    from_study: str | None = None
    data: Any = MISSING
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
    trainer: Trainer = field(default_factory=Trainer)
    tracking: Tracking = field(default_factory=Tracking)
    compare: Compare = field(default_factory=Compare)
    choices: dict[str, str] = field(default_factory=dict)  # which option each group has; filled in by composing, as is
    overrides: list[str] | None = None  # the command line that composes this; None where none is known
    composed: str | None = None  # fingerprint of what those overrides composed


def register_schema() -> None:
    """Make known to Hydra what conf/ uses, but for output folders: the schema `sweep_schema`, a resolver of numbers."""
    OmegaConf.register_resolver("sweep.part", lambda whole, parts: max(1, whole // parts), replace=True)
    ConfigStore.instance().store(name="sweep_schema", node=Config, provider="sweep", replace=True)


def with_origin(cfg: DictConfig, choices: Mapping[str, str | None], overrides: Sequence[str]) -> DictConfig:
    """`cfg` with what `origin` says of it."""
    own = origin(OmegaConf.to_container(cfg, resolve=False), choices, overrides)
    for key, value in (own | {"overrides": literal(own["overrides"])}).items():
        cfg[key] = value
    return cfg


def literal(plain: Any) -> Any:
    """Escape the texts in lists and dicts, so that OmegaConf resolves each to itself, whatever `${...}` it holds."""
    if isinstance(plain, dict):
        return {key: literal(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [literal(value) for value in plain]
    return _INTERPOLATION.sub(lambda match: f"{match[1]}{match[1]}\\${{", plain) if isinstance(plain, str) else plain


def origin(plain: Any, choices: Mapping[str, str | None], overrides: Sequence[str]) -> dict[str, Any]:
    """The chosen option of each of its own groups (Hydra's left out), the overrides that chose them, and a fingerprint.

    plain: the config as dicts, not resolved.
    """
    own = {group: option for group, option in choices.items() if option and not group.startswith("hydra/")}
    return {"overrides": overrides_without_passwords(overrides), "choices": own, "composed": fingerprint(plain)}


def fingerprint(plain: Any) -> str:
    """Tells whether a config was edited since its overrides composed it. plain: as `origin` takes it."""
    values = {key: value for key, value in plain.items() if key not in _ORIGIN}
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()[:16]


def is_edited(config: "Config", cfg: DictConfig) -> bool:
    """Return whether `cfg`, which `config` was read from, was changed since its overrides composed it."""
    return config.composed != fingerprint(OmegaConf.to_container(cfg, resolve=False))


def keys_of(node: str) -> list[str]:
    """The keys of a node that the schema describes ("" for the root); of any other, none."""
    return [key.name for key in fields(_SCHEMA[node]) if key.name not in _ORIGIN] if node in _SCHEMA else []


def validate(cfg: DictConfig) -> Config:
    """The config as plain typed values, `data` to `scheduler` as dicts. Raises ConfigError for the first mistake."""
    _refuse_unknown_keys(cfg)
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # to_object takes three times as long
        assert isinstance(plain, dict)
    except OmegaConfBaseException as error:
        raise ConfigError(str(getattr(error, "full_key", None) or "config"), one_line(error)) from error
    return validate_plain(plain)


def validate_plain(plain: dict[Any, Any]) -> Config:
    """The same of a config as dicts, resolved, whose keys are known."""
    require(plain["seed"] >= 0, "seed", f"must be >= 0, got {plain['seed']}")  # before trainer.seed, its copy
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
    for key in COMPONENTS:
        _check_component(key, getattr(config, key))
    check_learning_rates(config.optimizer, config.scheduler)
    one_of("scheduler.interval", interval_of(config.scheduler) or "epoch", INTERVALS)
    if counts_steps(config.scheduler) and interval_of(config.scheduler) == "epoch":
        raise ConfigError("scheduler.interval", "is epoch, but this schedule counts steps; set it to step")
    return config


def is_auto(bounds: Any) -> bool:
    """Whether a range test is to suggest learning rates. Raises ConfigError for what means nothing."""
    require(bounds in (None, "auto"), "bounds", f"'{bounds}' is unknown; choose auto, or leave it out")
    return bounds == "auto"


_SCHEMA = {
    "": Config,
    "split": Split,
    "trainer": Trainer,
    "tracking": Tracking,
    "lr_bounds": LrBounds,
    "lr_search": LrSearch,
    "compare": Compare,
    "lr_range": LrRange,
}


def _refuse_unknown_keys(cfg: DictConfig) -> None:
    """A key added with + slips past Hydra, and would be ignored."""
    for node, schema in _SCHEMA.items():
        known = {key.name for key in fields(schema)}
        for key in cfg[node] if node else cfg:
            name = f"{node}.{key}" if node else str(key)
            require(key in known, name, f"is no key of the config; choose one of: {', '.join(keys_of(node))}")


def checked_output_dir(output_dir: str) -> str:
    """Return output_dir with ~ expanded. Raise ConfigError if it is empty, or leads through a link."""
    require(bool(output_dir.strip()), "output_dir", "is empty; name a folder")
    refuse_links_at(absolute(output_dir))
    return os.path.expanduser(output_dir)


def _check_component(key: str, node: Any) -> None:
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise ConfigError(key, f"needs a _target_; choose an option such as {key}={_example(key)}")
    check_targets(key, node)


def _example(group: str) -> str:
    return next((path.stem for path in sorted((CONF_DIR / group).glob("*.yaml"))), "<option>")
