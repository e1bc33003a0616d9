"""The learning-rate range test: train a config's model on a ramp of learning rates, from several seeds.

The ramps train side by side in a pack if the model allows it, and otherwise one after another.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sweep.config.epochs import UNLIMITED, steps_per_epoch
from sweep.config.schema import Config
from sweep.trial.checks import check_data
from sweep.trial.prepare import Data, load_data, prepared, smaller_batch_text, with_fitting_batch
from sweep.utils import gc_control
from sweep.utils.errors import Diverged, SweepError

if TYPE_CHECKING:
    from sweep.training.range_test import Ramp
    from sweep.trial.pack_scheduler import PackScheduler

Load = Callable[[Config], Data]


def range_test(
    config: Config, load: Load = load_data, width: int | None = None, say: Callable[[str], object] = lambda line: None
) -> "list[Ramp]":
    """Train one ramp for each of `lr_range.n_seeds` seeds: `trainer.seed`, `trainer.seed` + 1 and so on.

    Each ramp trains a new model. The config's own schedule is not used.

    Args:
        config: what to train.
        load: loads and divides the data.
        width: the number of ramps in one pass; by default it is measured.
        say: called with one line if the batch size was lowered to fit the data.

    Returns:
        The ramps, in the order of their seeds. A ramp that diverged is marked so.

    Raises:
        ConfigError: the config does not fit the data, or something in it cannot be built.
        TrainingFailed: the model raises an error while it trains.
    """
    data = load(config)
    composed, config = config, with_fitting_batch(config, data.n_train)
    check_data(data, config)
    if lowered := smaller_batch_text(composed, config):
        say(lowered)
    gc_control.resume()
    trials = [_on_a_ramp(config, data, i) for i in range(config.lr_range.n_seeds)]
    if len(trials) > 1 and width != 1:
        packed = _side_by_side(trials, width, lambda _: data)
        if packed is not None:
            return packed
    return [_alone(trial, data) for trial in trials]


def lr_keys(scheduler: Mapping[str, Any]) -> list[str]:
    """Return the config keys of the learning rates that the schedule uses."""
    return [f"scheduler.{name}" for name in ("base_lr", "max_lr") if name in scheduler] or ["optimizer.lr"]


def _on_a_ramp(config: Config, data: Data, i: int) -> Config:
    """Return the config of ramp `i`: its own seed, the ramp as the schedule, and as many epochs as it needs."""
    settings, seed = config.lr_range, config.trainer.seed + i
    ramp = {
        "_target_": "sweep.schedules.ramp",
        "interval": "step",
        "first_lr": settings.min_lr,
        "last_lr": settings.max_lr,
        "n_updates": settings.n_updates,
    }
    n_steps = steps_per_epoch(data.epoch_size(config), config.trainer.update_size)
    n_epochs = -(-settings.n_updates // n_steps)
    plain = {"patience": None, "compile": False, "val_interval": 1, "ema": None, "callbacks": [], "monitor": None}
    plain["max_steps"] = n_epochs * n_steps if data.n_train == UNLIMITED else None  # a stream's epochs are shares of it
    trainer = replace(config.trainer, seed=seed, epochs=n_epochs, **plain)
    tracking = replace(config.tracking, step_points=n_epochs * n_steps)  # a point for every update
    return replace(config, seed=seed, trainer=trainer, scheduler=ramp, tracking=tracking)


def _ramp(config: Config) -> "Ramp":
    from sweep.training.range_test import Ramp

    settings = config.lr_range
    return Ramp(settings.n_updates, settings.memory, settings.divergence)


def _side_by_side(trials: list[Config], width: int | None, load: Load) -> "list[Ramp] | None":
    """Train the ramps in packs. Return None if that fails: training them one by one shows the actual error."""
    from sweep.training.packed.parameters import Unpackable
    from sweep.trial.pack_scheduler import PackScheduler

    scheduler = PackScheduler(width, len(trials), load)
    ramps = []
    try:
        for trial in trials:
            group, member = scheduler.member(trial)
            member.trial = ramp = _ramp(trial)
            ramps.append(ramp)
            group.pack.admit(member)
            if len(group.pack.members) == group.width:
                _train(scheduler)
        _train(scheduler)
    except Unpackable:
        return None
    except SweepError:
        raise
    except Exception:  # from the model, or from vmap, which may raise anything
        return None
    return ramps


def _train(scheduler: "PackScheduler") -> None:
    """Train every trial that is in a pack, to the end of its ramp."""
    from sweep.training.packed.pack import report
    from sweep.training.range_test import Ramp, RampOver

    while scheduler.groups:
        for group in scheduler.groups:
            ended, _ = group.advance()
            report(group.pack.members, ended)
            for member, error in ended.items():
                group.pack.release(member)
                if isinstance(error, Diverged):
                    assert isinstance(member.trial, Ramp)
                    member.trial.diverged = True
                elif error is not None and not isinstance(error, RampOver):
                    raise error


def _alone(trial: Config, data: Data) -> "Ramp":
    from sweep.training.range_test import RampOver

    ramp = _ramp(trial)
    with prepared(trial, data) as fit:
        try:
            fit.run(ramp)
        except RampOver:
            pass
        except Diverged:
            ramp.diverged = True
    return ramp
