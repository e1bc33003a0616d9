"""`python -m sweep.lr_range`: between which learning rates is it worth training? (docs/lr_range.md)"""

import importlib
import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich import box
from rich.table import Table

from sweep.config.composition import given_overrides
from sweep.config.overrides import key_of
from sweep.config.schema import Config, validate, with_origin
from sweep.figures.drawing import drawing_problem
from sweep.run import check_job, failures_told, folder_key
from sweep.run import main as run_main
from sweep.tracking.description import group_choices
from sweep.tracking.provenance import rerun_command
from sweep.trial.range_test_record import RangeFolder, draw, write_losses, write_result
from sweep.utils.console import Console
from sweep.utils.errors import ConfigError, SweepError
from sweep.utils.ownership import refuse_existing
from sweep.utils.terminal import say

if TYPE_CHECKING:
    from sweep.training.range_test import Ramp, Suggestion

log = logging.getLogger("sweep")

_NOT_OF_A_TEST = {
    "resume": "continues a run; leave it out",
    "from_study": "is for `python -m sweep.run`; leave it out",
    "bounds": "is for a study, which makes this test itself; leave it out",
}


def lr_range(cfg: DictConfig) -> None:
    """One Hydra job: a range test of the config. Raises ConfigError, or TrainingFailed for a model that fails."""
    from sweep.trial.range_test import lr_keys, range_test

    job = HydraConfig.get()
    overrides = given_overrides(job)
    with failures_told(job, SweepError):  # a model that fails leaves nothing to look at
        check_job(job)
        folder = RangeFolder(job.runtime.output_dir)
        refuse_existing(folder_key(job), folder.path, folder.written)
        for key, problem in _NOT_OF_A_TEST.items():
            if cfg[key] is not None:
                raise ConfigError(key, problem)
        config = validate(with_origin(cfg, job.runtime.choices, overrides))
        ramps = range_test(config, say=say)
    name = _name(config)
    suggestion = _written(folder, name, config, ramps)
    commands = _commands(lr_keys(config.scheduler), suggestion, overrides)
    _write_result(folder, lr_keys(config.scheduler), suggestion, commands)
    _print(folder, name, config, suggestion, commands)


def main() -> None:
    """Runs Hydra's command line, with the exit status of `sweep.run`."""
    run_main("lr_range", lr_range)


def _written(folder: RangeFolder, name: str, config: Config, ramps: "Sequence[Ramp]") -> "Suggestion":
    """The suggestion, and the losses and their picture written. Raises ConfigError for ramps that say nothing."""
    from sweep.training.range_test import suggest

    def drawn(suggestion: "Suggestion | None") -> bool:
        problem = drawing_problem(lambda: draw(folder, name, begun, suggestion))
        if problem is not None:
            log.warning("warning: cannot draw the losses (%s)", problem)
        return problem is None

    write_losses(folder, config.trainer.seed, ramps)
    begun = [ramp for ramp in ramps if ramp.losses]
    try:
        suggestion = suggest(ramps)
    except ConfigError as problem:
        if not begun:
            raise
        where = f"picture: {folder.picture}" if drawn(None) else f"losses: {folder.losses}"
        raise ConfigError(problem.key, f"{problem.problem} ({where})") from problem
    drawn(suggestion)
    return suggestion


def _commands(keys: Sequence[str], suggestion: "Suggestion", overrides: Sequence[str]) -> dict[str, str]:
    """What trains with the bounds, and the study that searches around them."""
    test = [o for o in overrides if key_of(o).startswith("lr_range.")]
    plain = [o for o in overrides if o not in test and key_of(o) not in keys]
    bounds = [f"{key}={suggestion.of(key).value:g}" for key in keys]
    return {"run": rerun_command([*plain, *bounds]), "study": rerun_command(["-m", "bounds=auto", *plain, *test])}


def _write_result(folder: RangeFolder, keys: Sequence[str], suggestion: "Suggestion", commands: dict[str, str]) -> None:
    write_result(
        folder,
        {
            "suggestion": {key: asdict(suggestion.of(key)) for key in keys},
            "diverged_lr": None if suggestion.diverged_lr is None else asdict(suggestion.diverged_lr),
            "reason": suggestion.reason(keys),
            "n_ramps": suggestion.n_ramps,
            "commands": commands,
        },
    )


def _print(folder: RangeFolder, name: str, config: Config, suggestion: "Suggestion", commands: dict[str, str]) -> None:
    from sweep.trial.range_test import lr_keys

    settings = config.lr_range
    table = Table(title=f"{name}: {_ramps(config, suggestion)}", box=box.SIMPLE_HEAD, show_header=False)
    table.title_justify = "left"
    keys = lr_keys(config.scheduler)
    for key in keys:
        interval = suggestion.of(key)
        table.add_row(key, f"{interval.value:g}", f"{interval.low:g} to {interval.high:g}" * (settings.n_seeds > 1))
    console = Console(soft_wrap=True)
    console.print(table)
    reason = suggestion.reason(keys)
    console.print(f"{reason[0].upper()}{reason[1:]}.\n")
    console.print(f"Train with it:     {commands['run']}")
    console.print(f"Search around it:  {commands['study']}")
    if folder.picture.exists():
        console.print(f"Picture:           {folder.picture}")


def _ramps(config: Config, suggestion: "Suggestion") -> str:
    settings = config.lr_range
    told = f"{settings.n_seeds} ramp{'s' * (settings.n_seeds > 1)} of {settings.n_updates} updates"
    lost = settings.n_seeds - suggestion.n_ramps
    return told + (f", of which {lost} say{'s' * (lost == 1)} nothing" if lost else "")


def _name(config: Config) -> str:
    """Such as adam-mlp-noisy_sine: the schedule plays no part."""
    choices = group_choices(config)
    return "-".join(choices[group] for group in ("optimizer", "model", "data"))


if __name__ == "__main__":
    # Under its own name, so that other processes can load what it hands to them.
    importlib.import_module("sweep.lr_range").main()
