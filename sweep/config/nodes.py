"""The nodes of a config whose keys are fixed, each with its checks. This module imports neither Hydra nor OmegaConf."""

import math
import os
import re
from dataclasses import dataclass, field
from typing import Any

from sweep.config.metrics import DIRECTIONS
from sweep.utils.errors import is_positive, one_of, require

LOSSES = ("auto", "mse", "cross_entropy")  # of earlier versions; now `task.loss` says which
PRECISIONS = ("float32", "bf16", "fp16")
LAUNCHERS = ("torchrun",)
SPLITS = ("random", "stratified", "grouped", "ordered", "given")
MOST_FOLDS = 1000
MOST_SEEDS = 1000  # of a comparison; fresh seeds start this far above `seed`, so that they never meet those of tuning
FEWEST_UPDATES = 30  # a range test with fewer updates shows nothing
_LONGEST_WAIT_S = 1e6
_MOST_UPDATES = 1_000_000
_MOST_THREADS = max(64, 4 * (os.cpu_count() or 1))  # torch crashes with far more threads


# Nodes are not frozen: OmegaConf would make them read-only.
@dataclass(kw_only=True)
class Split:
    """How the samples are divided.

    `val` and `test` are shares of the samples, in (0, 1). The rest is for training. `max_samples` draws a random subset
    of that size first; null takes all samples. `kind` is one of SPLITS, see `sweep.data.assignment`. `by` and `column`
    are columns of a table. With `folds`, `val` is the fold number `fold` of all samples that are not for testing.
    """

    val: float = 0.15
    test: float = 0.15
    seed: int = 0
    normalize: bool = True
    max_samples: int | None = None
    kind: str = "random"
    by: str | None = None
    column: str | None = None
    folds: int | None = None
    fold: int = 0

    def __post_init__(self) -> None:
        one_of("split.kind", self.kind, SPLITS)
        for name, share in (("val", self.val), ("test", self.test)):
            require(0 < share < 1, f"split.{name}", f"must be between 0 and 1, got {share}")
        require(
            self.val + self.test < 1, "split.val", f"{self.val} and split.test {self.test} leave nothing to train on"
        )
        require(self.seed >= 0, "split.seed", f"must be >= 0, got {self.seed}")
        if self.max_samples is not None:
            require(self.max_samples >= 4, "split.max_samples", f"must be >= 4 or null, got {self.max_samples}")
        may_have_by = self.by is None or self.kind in ("grouped", "ordered", "given")
        require(may_have_by, "split.by", "is for split=grouped, ordered or given; choose one, or leave it out")
        may_have_column = self.column is None or self.kind == "given"
        require(may_have_column, "split.column", "is for split=given; choose it, or leave it out")
        if self.folds is not None:
            require(
                2 <= self.folds <= MOST_FOLDS, "split.folds", f"must be 2 to {MOST_FOLDS} or null, got {self.folds}"
            )
        message = f"must be one of the {self.folds or 1} folds, from 0, got {self.fold}"
        require(0 <= self.fold < (self.folds or 1), "split.fold", message)


@dataclass(kw_only=True)
class Trainer:
    """How a trial trains.

    `batch_size` counts samples, `epochs` counts passes over the training split, and `patience` counts epochs. A run
    stops early if `monitor` has not improved by more than `min_delta` for `patience` epochs. `val_interval` is a number
    of epochs, or a number of updates such as "500 steps" (docs/recipe.md).

    `call` is a training function of the user's own (docs/functions.md), in place of sweep's loop. Only with one may
    `epochs` be None, and may there be a `direction`: whether to minimize or maximize `monitor`. Only such a function
    can be launched in `n_processes` processes.
    """

    epochs: int | None = 60
    batch_size: int = 64
    loss: str = "auto"
    device: str = "auto"
    precision: str = "float32"
    clip_norm: float | None = None
    clip_value: float | None = None
    accumulate: int = 1
    max_steps: int | None = None
    val_interval: int | str = 1
    ema: float | None = None
    callbacks: list[Any] = field(default_factory=list)
    monitor: str | None = None
    direction: str | None = None
    patience: int | None = None
    min_delta: float = 0.0
    compile: bool = False
    checkpoint_interval_s: float = 10.0
    seed: int = 0
    threads: int | None = None
    call: str | None = None
    launch: str | None = None
    n_processes: int | None = None

    def __post_init__(self) -> None:
        has_epochs = self.call is not None if self.epochs is None else self.epochs >= 1
        require(has_epochs, "trainer.epochs", f"must be >= 1, got {self.epochs}")
        if self.direction is not None:
            one_of("trainer.direction", self.direction, DIRECTIONS)
            message = "is for a training function; a task declares the goals of its metrics, so leave it out"
            require(self.call is not None, "trainer.direction", message)
        require(self.batch_size >= 1, "trainer.batch_size", f"must be >= 1, got {self.batch_size}")
        one_of("trainer.loss", self.loss, LOSSES)
        one_of("trainer.precision", self.precision, PRECISIONS)
        require(is_positive(self.clip_norm), "trainer.clip_norm", f"must be > 0 or null, got {self.clip_norm}")
        require(is_positive(self.clip_value), "trainer.clip_value", f"must be > 0 or null, got {self.clip_value}")
        require(self.accumulate >= 1, "trainer.accumulate", f"must be >= 1 batch, got {self.accumulate}")
        message = f"must be >= 1 update or null, got {self.max_steps}"
        require(self.max_steps is None or self.max_steps >= 1, "trainer.max_steps", message)
        message = f"must be a number of epochs >= 1, or of updates such as '500 steps', got {self.val_interval!r}"
        require(max(self.val_steps or 0, self.val_epochs) >= 1, "trainer.val_interval", message)
        if self.ema is not None:
            require(0 < self.ema < 1, "trainer.ema", f"must be between 0 and 1 or null, got {self.ema}")
        require(
            self.patience is None or self.patience >= 1,
            "trainer.patience",
            f"must be >= 1 epoch or null, got {self.patience}",
        )
        require(self.min_delta >= 0, "trainer.min_delta", f"must be >= 0, got {self.min_delta}")
        require(
            self.checkpoint_interval_s >= 0,
            "trainer.checkpoint_interval_s",
            f"must be >= 0 seconds (0 saves after every epoch), got {self.checkpoint_interval_s}",
        )
        require(self.seed >= 0, "trainer.seed", f"must be >= 0, got {self.seed}")
        require(
            self.threads is None or 1 <= self.threads <= _MOST_THREADS,
            "trainer.threads",
            f"must be between 1 and {_MOST_THREADS} or null, got {self.threads}",
        )
        self._check_launch()

    def _check_launch(self) -> None:
        """Raise ConfigError if `launch` is set without `call` or `n_processes`, or `n_processes` without `launch`."""
        if self.launch is not None:
            one_of("trainer.launch", self.launch, LAUNCHERS)
            message = "is for a training function, and sweep's own loop trains in one process; leave it out"
            require(self.call is not None, "trainer.launch", message)
            message = f"is needed with trainer.launch={self.launch}; set trainer.n_processes=2 or more"
            require(self.n_processes is not None, "trainer.n_processes", message)
        if self.n_processes is not None:
            message = "is for trainer.launch=torchrun, which is not set; set it, or leave this out"
            require(self.launch is not None, "trainer.n_processes", message)
            require(self.n_processes >= 1, "trainer.n_processes", f"must be >= 1, got {self.n_processes}")

    @property
    def monitored(self) -> str:
        """The curve that selects the best weights, and that early stopping and the plateau schedule follow."""
        return self.monitor or "val/loss"

    @property
    def n_passes(self) -> int:
        """The number of epochs of sweep's own loop."""
        assert self.epochs is not None
        return self.epochs

    @property
    def update_size(self) -> int:
        """The number of samples in an update. The last of an epoch may have fewer."""
        return self.batch_size * self.accumulate

    @property
    def val_steps(self) -> int | None:
        """The number of updates between two validations; None if `val_interval` counts epochs."""
        found = re.fullmatch(r"(\d+) steps?", str(self.val_interval))
        return int(found[1]) if found else None

    @property
    def val_epochs(self) -> int:
        """The number of epochs between two validations; 0 if `val_interval` counts updates or is no number."""
        return int(self.val_interval) if re.fullmatch(r"\d+", str(self.val_interval)) else 0


@dataclass(kw_only=True)
class Loader:
    """How batches of torch datasets are loaded (`sweep.Datasets`), as torch's DataLoader does. Arrays need no loading.

    `num_workers` counts the processes that load batches; 0 loads them in the process that trains. Each of these loads
    `prefetch_factor` batches ahead. `persistent_workers` keeps them from one epoch to the next. `drop_last` leaves out
    the last batch of an epoch if it is smaller. Only `drop_last` changes results.
    """

    num_workers: int = 0
    pin_memory: bool = False
    prefetch_factor: int | None = None
    drop_last: bool = False
    persistent_workers: bool = False

    def __post_init__(self) -> None:
        message = f"must be 0 to {_MOST_THREADS}, got {self.num_workers}"
        require(0 <= self.num_workers <= _MOST_THREADS, "loader.num_workers", message)
        message = f"must be >= 1 batch or null, got {self.prefetch_factor}"
        require(self.prefetch_factor is None or self.prefetch_factor >= 1, "loader.prefetch_factor", message)
        for name in ("prefetch_factor", "persistent_workers"):
            message = "is for worker processes; set loader.num_workers, or leave it out"
            require(self.num_workers > 0 or not getattr(self, name), f"loader.{name}", message)


@dataclass(kw_only=True)
class Tracking:
    """Where runs are uploaded to.

    `share_run` is for a training function or an application that logs to MLflow by itself: it gets the trial's run.
    `step_points` is the largest number of points that MLflow gets of one step-level curve of a trial.
    `close_timeout_s` is how long a command waits for its upload at the end, in seconds. `model` also logs the model of
    a run, or of a study's best trial, as a model of MLflow's, and `register` adds it to the registry under that name.
    """

    mlflow: bool = True
    uri: str | None = None
    share_run: bool = False
    model: bool = True
    register: str | None = None
    step_points: int = 2000
    close_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if self.register is not None:
            is_name = bool(self.register.strip()) and not set(self.register) & set("/:")
            require(is_name, "tracking.register", f"must be a name without / and :, got '{self.register}'")
            require(self.mlflow and self.model, "tracking.register", "needs tracking.mlflow and tracking.model")
        require(self.step_points >= 0, "tracking.step_points", f"must be >= 0, got {self.step_points}")
        require(
            0 <= self.close_timeout_s <= _LONGEST_WAIT_S,
            "tracking.close_timeout_s",
            f"must be between 0 and {_LONGEST_WAIT_S:g} seconds, got {self.close_timeout_s}",
        )


@dataclass(kw_only=True)
class LrBounds:
    """The learning rates between which a cyclic schedule moves by default. Each optimizer option sets its own."""

    base_lr: float = 1e-4
    max_lr: float = 1e-2


@dataclass(kw_only=True)
class LrSearch:
    """The ranges in which a study searches learning rates, in Hydra's sweep grammar.

    Each optimizer option sets its own.
    """

    lr: str = "tag(log, interval(1e-4, 1e-1))"
    base_lr: str = "tag(log, interval(1e-5, 1e-3))"
    max_lr: str = "tag(log, interval(1e-3, 1e-1))"


@dataclass(kw_only=True)
class Compare:
    """The settings of `python -m sweep.compare`. A trial ignores them. conf/config.yaml says what each key means.

    `seed` is the key of the config that is the seed. It is sweep's own, unless another application is compared.
    """

    seed: str = "seed"
    name: str | None = None
    over: dict[str, Any] = field(default_factory=dict)
    n_seeds: int = 20
    retune: bool = True
    metric: str = "test/loss"
    target: float | None = None
    level: float = 0.05

    def __post_init__(self) -> None:
        require(2 <= self.n_seeds <= MOST_SEEDS, "compare.n_seeds", f"must be 2 to {MOST_SEEDS}, got {self.n_seeds}")
        require(0 < self.level < 1, "compare.level", f"must be between 0 and 1, got {self.level}")
        if self.target is not None:
            require(math.isfinite(self.target), "compare.target", f"must be a finite loss or null, got {self.target}")


@dataclass(kw_only=True)
class LrRange:
    """The settings of the learning-rate range test, for `python -m sweep.lr_range` and `bounds=auto`.

    A trial ignores them. `smoothing` is the share of the ramp over which losses are averaged. The ramp ends
    early if the averaged loss exceeds `divergence` times its lowest value and the level at which it began.
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
            require(is_positive(lr), f"lr_range.{name}", f"must be a finite number > 0, got {lr}")
        message = f"is {self.min_lr:g}, less than ten times below lr_range.max_lr = {self.max_lr:g}; lower it"
        require(self.min_lr * 10 <= self.max_lr, "lr_range.min_lr", message)
        message = f"must be {FEWEST_UPDATES} to {_MOST_UPDATES}, got {self.n_updates}"
        require(FEWEST_UPDATES <= self.n_updates <= _MOST_UPDATES, "lr_range.n_updates", message)
        require(1 <= self.n_seeds <= MOST_SEEDS, "lr_range.n_seeds", f"must be 1 to {MOST_SEEDS}, got {self.n_seeds}")
        message = f"must be a share of the ramp from 0 to 0.2, got {self.smoothing}"
        require(0 <= self.smoothing <= 0.2, "lr_range.smoothing", message)
        message = f"must be a finite number > 1, got {self.divergence}"
        require(1 < self.divergence < math.inf, "lr_range.divergence", message)

    @property
    def memory(self) -> float:
        """The number of updates over which losses are averaged, at least 1."""
        return max(1.0, self.smoothing * self.n_updates)
