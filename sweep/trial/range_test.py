"""The learning-rate range test of a config: its model trained on a ramp from several seeds,
side by side where that works."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sweep.config.nodes import steps_per_epoch
from sweep.config.schema import Config
from sweep.trial.prepare import Data, check_data, load_data, prepared, smaller_batch_text, with_fitting_batch
from sweep.utils import gc_control
from sweep.utils.errors import Diverged, SweepError

if TYPE_CHECKING:
    from sweep.training.range_test import Ramp
    from sweep.trial.pack_scheduler import PackScheduler

Load = Callable[[Config], Data]


def range_test(
    config: Config, load: Load = load_data, width: int | None = None, say: Callable[[str], object] = lambda line: None
) -> "list[Ramp]":
    """The ramps of `lr_range.n_seeds` seeds, from `trainer.seed` on: that of the config's first.

    Every model is made for its ramp; the config's schedule plays no part. width: ramps trained in one pass, by default
    as many as pay. say: shows the line that tells of a lowered batch size. Raises ConfigError, or TrainingFailed for a
    model that fails.
    """
    data = load(config)
    composed, config = config, with_fitting_batch(config, len(data.splits.train.x))
    check_data(data, config)
    if lowered := smaller_batch_text(composed, config):
        say(lowered)
    gc_control.resume()
    trials = [_on_a_ramp(config, len(data.splits.train.x), i) for i in range(config.lr_range.n_seeds)]
    if len(trials) > 1 and width != 1:
        packed = _side_by_side(trials, width, lambda _: data)
        if packed is not None:
            return packed
    return [_alone(trial, data) for trial in trials]


def lr_keys(scheduler: Mapping[str, Any]) -> list[str]:
    """The config keys of the learning rates that a schedule goes by."""
    return [f"scheduler.{name}" for name in ("base_lr", "max_lr") if name in scheduler] or ["optimizer.lr"]


def _on_a_ramp(config: Config, n_train: int, i: int) -> Config:
    settings, seed = config.lr_range, config.trainer.seed + i
    ramp = {
        "_target_": "sweep.schedules.ramp",
        "interval": "step",
        "first_lr": settings.min_lr,
        "last_lr": settings.max_lr,
        "n_updates": settings.n_updates,
    }
    n_steps = steps_per_epoch(n_train, config.trainer.batch_size)
    n_epochs = -(-settings.n_updates // n_steps)
    trainer = replace(config.trainer, seed=seed, epochs=n_epochs, patience=None, compile=False)
    tracking = replace(config.tracking, step_points=n_epochs * n_steps)  # all of them
    return replace(config, seed=seed, trainer=trainer, scheduler=ramp, tracking=tracking)


def _ramp(config: Config) -> "Ramp":
    from sweep.training.range_test import Ramp

    settings = config.lr_range
    return Ramp(settings.n_updates, settings.memory, settings.divergence)


def _side_by_side(trials: list[Config], width: int | None, load: Load) -> "list[Ramp] | None":
    """None where they have to train one after the other, which tells what is wrong, if something is."""
    from sweep.training.packed.parameters import Unpackable
    from sweep.trial.pack_scheduler import PackScheduler

    packer = PackScheduler(width, len(trials), load)
    ramps = []
    try:
        for trial in trials:
            group, member = packer.member(trial)
            member.trial = ramp = _ramp(trial)
            ramps.append(ramp)
            group.pack.admit(member)
            if len(group.pack.members) == group.width:
                _train(packer)
        _train(packer)
    except Unpackable:
        return None
    except SweepError:
        raise
    except Exception:  # whatever the model, or vmap under it, raises
        return None
    return ramps


def _train(packer: "PackScheduler") -> None:
    """Every trial that has a place, to the end of its ramp."""
    from sweep.training.range_test import Ramp, RampOver

    while packer.groups:
        for group in packer.groups:
            ended, _ = group.train_epoch()
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
