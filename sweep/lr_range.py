"""`python -m sweep.lr_range`: find the learning rates that suit a model, by a range test (docs/lr_range.md)."""

import importlib
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich import box
from rich.table import Table

from sweep.config.composition import given_overrides
from sweep.config.schema import with_origin
from sweep.run import check_job, folder_key, report_failures
from sweep.run import main as run_main
from sweep.trial.range_test_record import RangeFolder
from sweep.utils.console import Console
from sweep.utils.errors import SweepError
from sweep.utils.terminal import say

if TYPE_CHECKING:
    from sweep.trial.lr_range import RangeResult


def lr_range(cfg: DictConfig) -> None:
    """Run one job of Hydra's: a range test of the config. Print what it suggests, and write its files.

    Raises:
        ConfigError: the config cannot be used, or the ramps suggest no bounds.
        TrainingFailed: the model raises an error while it trains.
    """
    from sweep.trial.lr_range import read_ramps, train_ramps

    job = HydraConfig.get()
    with report_failures(job, SweepError):  # a test that fails has written nothing worth keeping
        check_job(job)
        folder = RangeFolder(job.runtime.output_dir)
        cfg = with_origin(cfg, job.runtime.choices, given_overrides(job))
        config, ramps = train_ramps(cfg, folder, folder_key(job), say)
    _print(read_ramps(config, ramps, folder), folder)


def main() -> None:
    """Run Hydra's command line, with the exit status of `sweep.run`."""
    run_main("lr_range", lr_range)


def _print(result: "RangeResult", folder: RangeFolder) -> None:
    settings = result.config.lr_range
    table = Table(title=f"{result.name}: {_ramps(result)}", box=box.SIMPLE_HEAD, show_header=False)
    table.title_justify = "left"
    for key, interval in result.bounds.items():
        table.add_row(key, f"{interval.value:g}", f"{interval.low:g} to {interval.high:g}" * (settings.n_seeds > 1))
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(f"{result.reason[0].upper()}{result.reason[1:]}.\n")
    console.print(f"Train with it:     {result.commands['run']}")
    console.print(f"Search around it:  {result.commands['study']}")
    if folder.plot.exists():
        console.print(f"Plot:              {folder.plot}")


def _ramps(result: "RangeResult") -> str:
    """Return text such as "8 ramps of 200 updates"."""
    settings = result.config.lr_range
    message = f"{settings.n_seeds} ramp{'s' * (settings.n_seeds > 1)} of {settings.n_updates} updates"
    lost = settings.n_seeds - result.suggestion.n_ramps
    return message + (f"; {lost} of them suggest{'s' * (lost == 1)} nothing" if lost else "")


if __name__ == "__main__":
    # Import the module under its own name instead of __main__, so that other processes can unpickle its functions.
    importlib.import_module("sweep.lr_range").main()
