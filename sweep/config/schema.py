"""The schema every YAML file is validated against, and all that a config alone can reveal to be wrong.

Imports neither torch, Optuna nor MLflow: a bad config is refused before any of them is loaded.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.config.targets import check_targets
from sweep.utils.errors import ConfigError, one_line
from sweep.utils.passwords import overrides_without_passwords
from sweep.utils.paths import absolute, refuse_links_at, refuse_links_in

# Source checkouts keep conf/ beside the package; an installed wheel carries it inside.
_INSIDE = Path(__file__).parent / "conf"
CONF_DIR = _INSIDE if _INSIDE.is_dir() else Path(__file__).parent.parent / "conf"

COMPONENTS = ("data", "model", "optimizer", "scheduler")
PRECISIONS = ("float32", "bf16")
LOSSES = ("auto", "mse", "cross_entropy")
INTERVALS = ("step", "epoch")
METRICS = {"regression": ("mse", "mae", "r2"), "classification": ("accuracy",)}  # beside the loss, by task
_THE_MORE_THE_BETTER = ("/r2", "/accuracy")
CURVES = ("train/loss", "val/loss", *(f"val/{name}" for names in METRICS.values() for name in names))  # of each epoch
_LOSS_OF_TASK = {"regression": "mse", "classification": "cross_entropy"}
_ORIGIN = ("choices", "overrides", "composed")  # keys that composing fills in
_LONGEST_NAME = 500
_INTERPOLATION = re.compile(r"(\\*)\$\{")
_LONGEST_FOLDER = 200
_LONGEST_WAIT_S = 1e6
MOST_SEEDS = 1000  # of a comparison; they begin so far above `seed`, which tuning has to itself
FEWEST_UPDATES = 30  # of a learning-rate range test that can tell anything
_MOST_UPDATES = 1_000_000
_MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))  # far more crash torch


# Nodes are not frozen: OmegaConf would make them read-only.
@dataclass(kw_only=True)
class Split:
    """How samples are divided. `val` and `test` are shares of the samples, in (0, 1); the rest is for training.

    `max_samples` takes so many of the data, at random; null takes all.
    """

    val: float = 0.15
    test: float = 0.15
    seed: int = 0
    normalize: bool = True
    max_samples: int | None = None

    def __post_init__(self) -> None:
        for name, share in (("val", self.val), ("test", self.test)):
            _require(0 < share < 1, f"split.{name}", f"must be between 0 and 1, got {share}")
        _require(
            self.val + self.test < 1, "split.val", f"{self.val} and split.test {self.test} leave nothing to train on"
        )
        _require(self.seed >= 0, "split.seed", f"must be >= 0, got {self.seed}")
        if self.max_samples is not None:
            _require(self.max_samples >= 4, "split.max_samples", f"must be >= 4 or null, got {self.max_samples}")


@dataclass(kw_only=True)
class Trainer:
    """How a trial trains. `batch_size` counts samples; `epochs` counts passes over the training split."""

    epochs: int = 60
    batch_size: int = 64
    loss: str = "auto"
    device: str = "auto"
    precision: str = "float32"
    clip_norm: float | None = None
    monitor: str | None = None
    patience: int | None = None
    min_delta: float = 0.0
    compile: bool = False
    checkpoint_interval_s: float = 10.0
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "trainer.epochs", f"must be >= 1, got {self.epochs}")
        _require(self.batch_size >= 1, "trainer.batch_size", f"must be >= 1, got {self.batch_size}")
        _one_of("trainer.loss", self.loss, LOSSES)
        _one_of("trainer.precision", self.precision, PRECISIONS)
        _require(_positive(self.clip_norm), "trainer.clip_norm", f"must be > 0 or null, got {self.clip_norm}")
        if self.monitor is not None:
            _one_of("trainer.monitor", self.monitor, CURVES)
        _require(
            self.patience is None or self.patience >= 1,
            "trainer.patience",
            f"must be >= 1 epoch or null, got {self.patience}",
        )
        _require(self.min_delta >= 0, "trainer.min_delta", f"must be >= 0, got {self.min_delta}")
        _require(
            self.checkpoint_interval_s >= 0,
            "trainer.checkpoint_interval_s",
            f"must be >= 0 seconds (0 saves after every epoch), got {self.checkpoint_interval_s}",
        )
        _require(self.seed >= 0, "trainer.seed", f"must be >= 0, got {self.seed}")
        _require(
            self.threads is None or 1 <= self.threads <= _MOST_THREADS,
            "trainer.threads",
            f"must be between 1 and {_MOST_THREADS} or null, got {self.threads}",
        )

    @property
    def monitored(self) -> str:
        """The curve that the best weights, patience and plateau schedulers follow."""
        return self.monitor or "val/loss"


@dataclass(kw_only=True)
class Tracking:
    """Where runs are mirrored to. `step_points` bounds the points of a step-level curve of one trial."""

    mlflow: bool = True
    uri: str | None = None
    step_points: int = 2000
    close_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        _require(self.step_points >= 0, "tracking.step_points", f"must be >= 0, got {self.step_points}")
        _require(
            0 <= self.close_timeout_s <= _LONGEST_WAIT_S,
            "tracking.close_timeout_s",
            f"must be between 0 and {_LONGEST_WAIT_S:g} seconds, got {self.close_timeout_s}",
        )


@dataclass(kw_only=True)
class LrBounds:
    """Learning rates between which an optimizer is worth cycling; each optimizer option states its own."""

    base_lr: float = 1e-4
    max_lr: float = 1e-2


@dataclass(kw_only=True)
class LrSearch:
    """Where a study searches learning rates, in Hydra's sweep grammar; each optimizer option states its own."""

    lr: str = "tag(log, interval(1e-4, 1e-1))"
    base_lr: str = "tag(log, interval(1e-5, 1e-3))"
    max_lr: str = "tag(log, interval(1e-3, 1e-1))"


@dataclass(kw_only=True)
class Compare:
    """What `python -m sweep.compare` is to do; a trial takes no notice. conf/config.yaml says what each key means."""

    name: str | None = None
    over: dict[str, Any] = field(default_factory=dict)
    n_seeds: int = 20
    retune: bool = True
    metric: str = "test/loss"
    target: float | None = None
    level: float = 0.05

    def __post_init__(self) -> None:
        _require(2 <= self.n_seeds <= MOST_SEEDS, "compare.n_seeds", f"must be 2 to {MOST_SEEDS}, got {self.n_seeds}")
        told = f"must be one of the test split, such as test/loss, got '{self.metric}'"
        _require(self.metric.startswith("test/"), "compare.metric", told)
        _require(0 < self.level < 1, "compare.level", f"must be between 0 and 1, got {self.level}")
        if self.target is not None:
            _require(math.isfinite(self.target), "compare.target", f"must be a finite loss or null, got {self.target}")


@dataclass(kw_only=True)
class LrRange:
    """The learning-rate range test, for `python -m sweep.lr_range` and `bounds=auto`; a trial takes no notice.

    `smoothing` is the share of the ramp over which losses are averaged; `divergence` how many times its lowest the
    averaged loss is when the ramp ends.
    """

    min_lr: float = 1e-6
    max_lr: float = 10.0
    n_updates: int = 200
    n_seeds: int = 8
    smoothing: float = 0.05
    divergence: float = 4.0

    def __post_init__(self) -> None:
        for name in ("min_lr", "max_lr"):
            lr = getattr(self, name)
            _require(_positive(lr), f"lr_range.{name}", f"must be a finite number > 0, got {lr}")
        told = f"is {self.min_lr:g}, less than ten times below lr_range.max_lr = {self.max_lr:g}; lower it"
        _require(self.min_lr * 10 <= self.max_lr, "lr_range.min_lr", told)
        told = f"must be {FEWEST_UPDATES} to {_MOST_UPDATES}, got {self.n_updates}"
        _require(FEWEST_UPDATES <= self.n_updates <= _MOST_UPDATES, "lr_range.n_updates", told)
        _require(1 <= self.n_seeds <= MOST_SEEDS, "lr_range.n_seeds", f"must be 1 to {MOST_SEEDS}, got {self.n_seeds}")
        told = f"must be a share of the ramp from 0 to 0.2, got {self.smoothing}"
        _require(0 <= self.smoothing <= 0.2, "lr_range.smoothing", told)
        told = f"must be a finite number > 1, got {self.divergence}"
        _require(1 < self.divergence < math.inf, "lr_range.divergence", told)

    @property
    def memory(self) -> float:
        """Updates over which losses are averaged."""
        return max(1.0, self.smoothing * self.n_updates)


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


def register() -> None:
    """Makes known to Hydra what conf/ uses: the schema `sweep_schema` and resolvers, of folders and of numbers."""
    OmegaConf.register_resolver("sweep.run_dir", _run_dir, replace=True)
    OmegaConf.register_resolver("sweep.multirun_dir", _multirun_dir, replace=True)
    OmegaConf.register_resolver("sweep.lr_range_dir", _lr_range_dir, replace=True)
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
    _require(plain["seed"] >= 0, "seed", f"must be >= 0, got {plain['seed']}")  # before trainer.seed, its copy
    nodes = {node: schema(**plain[node]) for node, schema in _SCHEMA.items() if node}
    config = Config(**{str(key): value for key, value in plain.items()} | nodes)
    _checked_output_dir(config.output_dir)
    _require(bool(config.experiment_name.strip()), "experiment_name", "is empty; name an MLflow experiment")
    _require(
        len(config.experiment_name) <= _LONGEST_NAME,
        "experiment_name",
        f"has {len(config.experiment_name)} characters; MLflow takes {_LONGEST_NAME}",
    )
    is_auto(config.bounds)
    for key in COMPONENTS:
        _check_component(key, getattr(config, key))
    _check_learning_rates(config)
    _one_of("scheduler.interval", interval_of(config.scheduler) or "epoch", INTERVALS)
    if _counts_steps(config.scheduler) and interval_of(config.scheduler) == "epoch":
        raise ConfigError("scheduler.interval", "is epoch, but this schedule counts steps; set it to step")
    return config


def is_auto(bounds: Any) -> bool:
    """Whether a range test is to suggest learning rates. Raises ConfigError for what means nothing."""
    _require(bounds in (None, "auto"), "bounds", f"'{bounds}' is unknown; choose auto, or leave it out")
    return bounds == "auto"


def direction_of(metric: str) -> str:
    """Return "minimize" or "maximize", for a metric such as val/accuracy."""
    return "maximize" if metric.endswith(_THE_MORE_THE_BETTER) else "minimize"


def interval_of(scheduler: Mapping[str, Any]) -> str | None:
    """Whether the scheduler is stepped after each `step` or each `epoch`: what it says, or else what our own schedules
    count in; None where only the scheduler itself knows."""
    return scheduler.get("interval") or ("step" if _counts_steps(scheduler) else None)


def _counts_steps(scheduler: Mapping[str, Any]) -> bool:
    return scheduler["_target_"].startswith("sweep.schedules.") and scheduler["_target_"] != "sweep.schedules.constant"


def in_epochs(length: Any, epochs: int) -> float | None:
    """A schedule's length, a number of epochs or a share of the run such as "25%", in epochs; None for what is none."""
    if isinstance(length, bool):
        return None
    share = isinstance(length, str) and length.endswith("%")
    try:
        value = float(str(length).removesuffix("%")) * (epochs / 100 if share else 1)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def loss_name(loss: str, task: str) -> str:
    """The loss to train with; `auto` takes the task's own. Raises ConfigError when the two do not fit."""
    own = _LOSS_OF_TASK[task]
    _require(loss in ("auto", own), "trainer.loss", f"{loss} does not fit {task} data; use {own} or auto")
    return own


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
            _require(key in known, name, f"is no key of the config; choose one of: {', '.join(keys_of(node))}")


def folder_name(name: str) -> str:
    """Return `name` as the name of one folder: options may hold a / or be of any length."""
    return re.sub(r"[^\w.+@,=-]+", "-", name).lstrip(".")[:_LONGEST_FOLDER]


def _run_dir(output_dir: str, resume: str | None, from_study: str | None, stamp: str) -> str:
    """A new folder for a new run; a resumed one keeps what it has, and Hydra's files of the new attempt go below it.

    Hydra makes the folder before anything else can be checked.
    """
    if from_study is not None:
        require_study(absolute(_checked_output_dir(output_dir)), from_study)
    if resume is None:
        return f"{_checked_output_dir(output_dir)}/runs/{_named(stamp, output_dir, from_study)}"
    folder = absolute(resume)
    require_run(folder)
    refuse_links_in(folder, "resume")
    return f"{folder}/resumed/{_named(stamp, output_dir, None)}"


def _named(stamp: str, output_dir: str, from_study: str | None) -> str:
    """Such as 2026-11-24_01-25-51-799835_adam-cyclic-mlp; a study's best is named after its own options."""
    choices = HydraConfig.get().runtime.choices
    if from_study is not None:
        from sweep.study.best_config import best_choices  # it composes, which rests on this module

        choices = best_choices(output_dir, from_study, HydraConfig.get())
    options = "-".join(str(choices.get(group)) for group in ("optimizer", "scheduler", "model"))
    return folder_name(f"{stamp}_{options}")


def _multirun_dir(output_dir: str, name: str) -> str:
    return f"{_checked_output_dir(output_dir)}/multirun/{name}"


def _lr_range_dir(output_dir: str, name: str) -> str:
    return f"{_checked_output_dir(output_dir)}/lr_range/{folder_name(name)}"


def _checked_output_dir(output_dir: str) -> str:
    _require(bool(output_dir.strip()), "output_dir", "is empty; name a folder")
    refuse_links_at(absolute(output_dir))
    return os.path.expanduser(output_dir)


def require_run(folder: Path) -> None:
    """Raises ConfigError unless there is an earlier run to resume in `folder`."""
    if not (folder / "config.yaml").is_file():
        raise ConfigError("resume", f"no run in '{folder}'; give the folder that the run printed")


def require_study(output_dir: Path, name: str) -> None:
    """Raises ConfigError unless the study `name` below `output_dir` has a best configuration."""
    _require_study("from_study", output_dir, name, "best.yaml", "has no complete trial yet")


def require_begun_study(output_dir: Path, name: str) -> None:
    """Raises ConfigError unless there is a study `name` below `output_dir`, finished or not."""
    _require_study("study", output_dir, name, "journal.jsonl", "has not begun")


def _require_study(key: str, output_dir: Path, name: str, file: str, without_it: str) -> None:
    studies = output_dir.absolute() / "studies"
    known = sorted(path.parent.name for path in studies.glob(f"*/{file}"))
    if name not in known:
        is_there = name not in ("", ".", "..") and (studies / name).is_dir()
        problem = without_it if is_there else f"is not below '{studies}'"
        raise ConfigError(key, f"'{name}' {problem}; choose of: {', '.join(known) or 'none yet'}")


def _check_component(key: str, node: Any) -> None:
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise ConfigError(key, f"needs a _target_; choose an option such as {key}={_example(key)}")
    check_targets(key, node)


def _check_learning_rates(config: Config) -> None:
    for key, node in (("optimizer", config.optimizer), ("scheduler", config.scheduler)):
        for name in ("lr", "base_lr", "max_lr"):
            if name not in node:
                continue
            lr = node[name]
            if isinstance(lr, bool) or not isinstance(lr, int | float):
                raise ConfigError(f"{key}.{name}", f"must be a number, got {lr!r}")
            _require(_positive(lr), f"{key}.{name}", f"must be a finite number > 0, got {lr}")
    gamma = config.scheduler.get("gamma")
    if isinstance(gamma, int | float):
        _require(_positive(gamma), "scheduler.gamma", f"must be a finite number > 0, got {gamma}")
    min_lr = config.scheduler.get("min_lr")
    if isinstance(min_lr, int | float):
        _require(0 <= min_lr < math.inf, "scheduler.min_lr", f"must be a finite number >= 0, got {min_lr}")
        lr = config.optimizer.get("lr", math.inf)
        _require(min_lr < lr, "scheduler.min_lr", f"is {min_lr:g}, not below optimizer.lr = {lr:g}; lower it")
    for name, length in config.scheduler.items():
        if name.endswith("_epochs") and config.scheduler["_target_"].startswith("sweep.schedules."):
            told = f"must be a number of epochs > 0, or a share of the run such as 25%, got {length!r}"
            _require(in_epochs(length, 1) is not None, f"scheduler.{name}", told)
    for name in ("div_factor", "final_div_factor"):
        factor = config.scheduler.get(name)
        if isinstance(factor, int | float):
            _require(_positive(factor), f"scheduler.{name}", f"must be a finite number > 0, got {factor}")
    base_lr, max_lr = config.scheduler.get("base_lr"), config.scheduler.get("max_lr")
    if base_lr is not None and max_lr is not None and base_lr >= max_lr:
        raise ConfigError(
            "scheduler.base_lr",
            f"is {base_lr:g}, not below scheduler.max_lr = {max_lr:g}; lower it, or raise scheduler.max_lr",
        )


def _example(group: str) -> str:
    return next((path.stem for path in sorted((CONF_DIR / group).glob("*.yaml"))), "<option>")


def _positive(value: float | None) -> bool:
    return value is None or (math.isfinite(value) and value > 0)


def _require(holds: bool, key: str, problem: str) -> None:
    if not holds:
        raise ConfigError(key, problem)


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, key, f"'{value}' is unknown; choose one of {', '.join(choices)}")
