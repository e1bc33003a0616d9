"""`hydra.sweeper.dry_run=true`: show what a study would do, without storing anything."""

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from rich import box
from rich.table import Table

from sweep.config.schema import validate
from sweep.execution.plan import WorkerPlan
from sweep.search.ranges import range_text
from sweep.search.space import Configuration, Space
from sweep.training.trial import UnrecordedTrial
from sweep.trial.checks import check_data
from sweep.trial.prepare import prepared
from sweep.utils.console import Console
from sweep.utils.wording import duration, short

if TYPE_CHECKING:
    from sweep.training.loop import TrainingLoop

_N_SAMPLES = 5
_QUICK_S = 5.0  # after a first epoch this short, a second one is timed, without the cost of a cold start


def dry_run(plan: WorkerPlan, base: DictConfig) -> None:
    """Print the search space, a few sampled configurations and an estimate of the time.

    Each of these configurations is built, and an epoch of the first one is timed, unless a training function of the
    user's own trains them.

    Args:
        plan: the plan of the study.
        base: the default configuration.

    Raises:
        ConfigError: a configuration cannot be sampled, composed or built.
    """
    console = Console(soft_wrap=True)
    space = plan.space
    console.print(f"study {plan.name}: {plan.n_trials} trials, nothing is stored\n")
    console.print(_space_table(space, base))
    configurations = plan.rehearse(range(min(_N_SAMPLES, plan.n_trials)))
    console.print(f"{len(configurations)} configurations it might try:")
    load, epoch_s, n_epochs = space.splits.load, 0.0, 0
    is_function = False
    for configuration in configurations:
        config = space.splits.fit(validate(space.compose(configuration)))
        console.print("  " + "  ".join(f"{key}={short(v)}" for key, v in _shown(configuration)))
        is_function = config.is_function
        if is_function:
            continue
        data = load(config)
        check_data(data, config)
        with prepared(config, data) as loop:
            if configuration is configurations[0]:
                epoch_s, n_epochs = _epoch_s(loop), loop.n_epochs
    if is_function:
        console.print("each composes; a training function is not called\n")
        return
    console.print("each composes and builds\n")
    console.print(_estimate(plan, n_epochs, epoch_s))


def _space_table(space: Space, base: DictConfig) -> Table:
    """Return a table of what is searched: each range, and the value in the default configuration."""
    table = Table("searched", "range", "now", box=box.SIMPLE_HEAD)
    for group, distribution in space.groups.items():
        table.add_row(group, range_text(distribution), str(base.choices.get(group)))
    shown = set()
    for options in space.combinations():
        defaults, conditions = space.defaults(options), space.conditions(options)
        for key, (name, distribution) in space.ranges(options).items():
            if name not in shown:
                shown.add(name)
                when = f" when {conditions[key]}" if key in conditions else ""
                table.add_row(name, f"{range_text(distribution)}{when}", short(defaults.get(name, "outside")))
    return table


class _OneEpoch(Exception):
    pass


class _Timed(UnrecordedTrial):
    """Times epochs, and ends training by raising _OneEpoch: after `n_epochs`, or after one that takes long."""

    def __init__(self, n_epochs: int) -> None:
        self._left, self._began = n_epochs, time.perf_counter()
        self.epoch_s = 0.0

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        now = time.perf_counter()
        self.epoch_s, self._began = now - self._began, now
        self._left -= 1
        if self._left <= 0 or self.epoch_s > _QUICK_S:
            raise _OneEpoch


def _epoch_s(loop: "TrainingLoop") -> float:
    """Return the seconds that an epoch takes."""
    timed = _Timed(n_epochs=2)
    with suppress(_OneEpoch):
        loop.run(timed)
    return timed.epoch_s


def _estimate(plan: WorkerPlan, n_epochs: int, epoch_s: float) -> str:
    """Return a line with the estimated time of the study, from the seconds of one epoch."""
    settings = plan.settings
    runs = plan.n_trials * settings.n_runs
    total_s = runs * n_epochs * epoch_s / settings.n_jobs
    pruned = " at most, since trials are pruned" if not settings.pruner["_target_"].endswith("NopPruner") else ""
    packed = "; less in packs, as the epoch was timed alone" if settings.pack != 1 else ""
    times = f"{plan.n_trials} trials" + (f" x {settings.seeds} seeds" if settings.seeds > 1 else "")
    times += f" x {settings.folds} folds" if settings.folds > 1 else ""
    return (
        f"an epoch takes {epoch_s:.3g} s; {times} x {n_epochs} epochs on {settings.n_jobs} "
        f"worker{'s' if settings.n_jobs > 1 else ''}: about {duration(total_s)}{pruned}{packed}"
    )


def _shown(configuration: Configuration) -> list[tuple[str, object]]:
    return [*configuration.groups.items(), *configuration.values.items()]
