"""The result of a learning-rate range test: bounds read from its ramps, and files in a folder (docs/lr_range.md)."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from sweep.config.function_node import CALL, needs_loop
from sweep.config.overrides import key_of
from sweep.config.schema import Config, is_edited, validate
from sweep.figures.drawing import drawing_problem
from sweep.figures.ramps import draw_ramps
from sweep.tracking.description import group_choices
from sweep.tracking.provenance import rerun_command
from sweep.trial.range_test import lr_keys, range_test
from sweep.trial.range_test_record import RangeFolder, write_losses, write_result
from sweep.utils.errors import ConfigError
from sweep.utils.ownership import refuse_existing

if TYPE_CHECKING:
    from sweep.training.range_test import Interval, Ramp, Suggestion

log = logging.getLogger("sweep")

_REFUSED = {
    "resume": "continues a run; leave it out",
    "from_study": "is for `python -m sweep.run`; leave it out",
    "bounds": "is for a study, which makes this test itself; leave it out",
}


@dataclass(frozen=True)
class RangeResult:
    """The result of a range test.

    Attributes:
        config: what was trained.
        ramps: the learning rates and losses of each seed, one value for each update.
        suggestion: the bounds that the ramps suggest, with their intervals over the seeds.
        commands: `run` is a command that trains with the bounds, `study` one that searches around them. Empty if the
            overrides that composed the config are not known.
    """

    config: Config
    ramps: "Sequence[Ramp]"
    suggestion: "Suggestion"
    commands: dict[str, str]

    @property
    def name(self) -> str:
        """The chosen options, such as adam-mlp-noisy_sine."""
        return _name(self.config)

    @property
    def keys(self) -> list[str]:
        """The config keys of the learning rates that the schedule uses."""
        return lr_keys(self.config.scheduler)

    @property
    def bounds(self) -> "dict[str, Interval]":
        """The suggested value of each key, with the interval that the seeds span."""
        return {key: self.suggestion.of(key) for key in self.keys}

    @property
    def reason(self) -> str:
        """Why these bounds, in words."""
        return self.suggestion.reason(self.keys)


def check_range_config(config: Config) -> Config:
    """Return the config. Raise ConfigError for keys that have no meaning for a range test."""
    for key, problem in _REFUSED.items():
        if getattr(config, key) is not None:
            raise ConfigError(key, problem)
    if config.is_function:
        raise ConfigError(CALL, f"{needs_loop('a range test')}; leave it out")
    return config


def train_ramps(
    cfg: DictConfig, folder: RangeFolder | None, key: str, say: Callable[[str], object]
) -> "tuple[Config, list[Ramp]]":
    """Train the ramps of a config.

    Args:
        cfg: the composed config.
        folder: where the files of the test will go; None writes none.
        key: what sets the folder, for an error.
        say: called with one line if the batch size was lowered to fit the data.

    Returns:
        The checked config, and its ramps, for `read_ramps`.

    Raises:
        ConfigError: the config cannot be used, or the folder has such files already.
        TrainingFailed: the model raises an error while it trains.
    """
    if folder is not None:
        refuse_existing(key, folder.path, folder.written)
    config = check_range_config(validate(cfg))
    if is_edited(config, cfg):
        config.overrides = None  # they no longer compose this config
    return config, range_test(config, say=say)


def read_ramps(config: Config, ramps: "Sequence[Ramp]", folder: RangeFolder | None = None) -> RangeResult:
    """Suggest bounds from the ramps of a range test.

    Args:
        config: what was trained.
        ramps: one for each seed.
        folder: where losses.csv, lr_range.png and lr_range.yaml go; None writes nothing. A plot that cannot be drawn
            logs a warning.

    Raises:
        ConfigError: the ramps suggest no bounds. The losses, and the plot if possible, are written nevertheless.
    """
    from sweep.training.range_test import suggest

    begun = [ramp for ramp in ramps if ramp.losses]
    if folder is not None:
        write_losses(folder, config.trainer.seed, ramps)
    try:
        suggestion = suggest(ramps)
    except ConfigError as problem:
        if not begun or folder is None:
            raise
        drawn = _drawn(folder, config, begun, None)
        where = f"plot: {folder.plot}" if drawn else f"losses: {folder.losses}"
        raise ConfigError(problem.key, f"{problem.problem} ({where})") from problem
    result = RangeResult(config, ramps, suggestion, _commands(config, suggestion))
    if folder is not None:
        _drawn(folder, config, begun, suggestion)
        write_result(folder, _facts(result))
    return result


def _drawn(folder: RangeFolder, config: Config, ramps: "Sequence[Ramp]", suggestion: "Suggestion | None") -> bool:
    """Draw the plot. Return True if it worked; otherwise a warning is logged."""
    bounds, diverged = {}, None
    if suggestion is not None:
        bounds, diverged = {"base_lr": suggestion.base_lr, "max_lr": suggestion.max_lr}, suggestion.diverged_lr
    diverged_lr = None if diverged is None else diverged.value
    problem = drawing_problem(lambda: draw_ramps(ramps, bounds, diverged_lr, _name(config), folder.plot))
    if problem is not None:
        log.warning("warning: cannot draw the losses (%s)", problem)
    return problem is None


def _commands(config: Config, suggestion: "Suggestion") -> dict[str, str]:
    """Return the commands of `RangeResult.commands`."""
    if config.overrides is None:
        return {}
    keys = lr_keys(config.scheduler)
    test = [o for o in config.overrides if key_of(o).startswith("lr_range.")]
    plain = [o for o in config.overrides if o not in test and key_of(o) not in keys]
    bounds = [f"{key}={suggestion.of(key).value:g}" for key in keys]
    return {"run": rerun_command([*plain, *bounds]), "study": rerun_command(["-m", "bounds=auto", *plain, *test])}


def _facts(result: RangeResult) -> dict[str, object]:
    """Return the content of lr_range.yaml."""
    diverged = result.suggestion.diverged_lr
    return {
        "suggestion": {key: asdict(interval) for key, interval in result.bounds.items()},
        "diverged_lr": None if diverged is None else asdict(diverged),
        "reason": result.reason,
        "n_ramps": result.suggestion.n_ramps,
        "commands": result.commands,
    }


def _name(config: Config) -> str:
    """Return a name such as adam-mlp-noisy_sine. The schedule is left out: a range test does not use it."""
    choices = group_choices(config)
    return "-".join(choices[group] for group in ("optimizer", "model", "data"))
