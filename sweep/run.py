"""`python -m sweep.run`: train a trial, or with -m a study. This is the Hydra entry point."""

import argparse
import atexit
import contextlib
import functools
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from sweep.config.composition import given_overrides, task_overrides, unavailable_refused
from sweep.config.guard import LOGGING_CLASSES, check_hydra, guard_hydra
from sweep.config.hydra_errors import config_error
from sweep.config.hydra_files import remember_files
from sweep.config.options import CONF_DIR
from sweep.config.output_folders import register
from sweep.config.overrides import sets
from sweep.config.schema import is_auto, with_origin
from sweep.tracking.folders import RunFolder
from sweep.tracking.ownership import JobFolder, require_unused
from sweep.utils import gc_control, late_compiler
from sweep.utils.command_line import check_command_line, hydra_arguments, secure_streams
from sweep.utils.errors import DISK_FULL, ConfigError, Interrupted, SweepError
from sweep.utils.ownership import note_directories, remove_empty_logs, remove_hydras_files
from sweep.utils.terminal import Shown, complain, escaped_line, say

if TYPE_CHECKING:
    from sweep.tracking.upload_process import UploadProcess

log = logging.getLogger("sweep")

remember_files()
guard_hydra()  # at import, so that it also protects a launcher's processes, which import this module with their task


def run(cfg: DictConfig) -> float:
    """Run one job of Hydra's: train the trial, and print a summary.

    Returns:
        The best value of the monitor, which sweepers optimise.
    """
    from sweep.trial.run import run_trial
    from sweep.trial.summary import print_summary

    job = HydraConfig.get()
    with report_failures(job):
        check_job(job)
        if cfg.resume is None:
            require_unused(RunFolder(job.runtime.output_dir), folder_key(job))
        outcome = run_trial(
            _asked_for(cfg, job),
            folder=job.runtime.output_dir,
            upload_process=_upload_process,
            live=sys.stderr.isatty(),
        )
    print_summary(outcome)
    return outcome.value


def _asked_for(cfg: DictConfig, job: Any) -> DictConfig:
    """Return the config to train: the composed one, or with `from_study` a study's best configuration.

    Raises ConfigError for overrides that cannot be used together.
    """
    overrides = task_overrides(job)
    if any(sets(o, "bounds") for o in overrides) and is_auto(cfg.bounds):
        raise ConfigError("bounds", "is for a study (-m); for a run, take what `python -m sweep.lr_range` suggests")
    if cfg.resume is not None:
        _refuse_changes(overrides)
    if cfg.from_study is not None:
        from sweep.config.best_config import best_config

        cfg = best_config(cfg.output_dir, cfg.from_study, given_overrides(job))
    else:
        cfg = with_origin(cfg, job.runtime.choices, given_overrides(job))
    if "max_lr" in (cfg.scheduler or {}) and any(sets(o, "optimizer.lr") for o in overrides):
        log.warning("warning: optimizer.lr has no effect: this schedule uses scheduler.max_lr")
    return cfg


def check_job(node: Any) -> None:
    """Raise ConfigError for settings in Hydra's node of the running job that are unsafe or do not work with sweep."""
    check_hydra(node)
    if node.job.chdir:
        raise ConfigError(
            "hydra.job.chdir", "would move outputs and data away from their relative paths; leave it false"
        )


def folder_key(job: Any) -> str:
    """Return the config key that sets where the job's files go."""
    return "hydra.sweep.dir" if job.mode == RunMode.MULTIRUN else "hydra.run.dir"


@contextlib.contextmanager
def report_failures(job: Any, refused: type[SweepError] = ConfigError) -> Iterator[None]:
    """Handle the error of a job: show it at once if there are several jobs, and remove the folder of a refused job.

    The error is raised again. Only files that this process wrote are removed, since the user may have named the folder.

    Args:
        job: Hydra's node of the running job.
        refused: the errors after which the folder is removed.
    """
    folder = JobFolder(job.runtime.output_dir)
    try:
        yield
    except Exception as error:
        shown_error = _as_sweep_error(error)
        if isinstance(shown_error, refused):
            folder.leave_unused()
        if shown_error is not None and job.mode == RunMode.MULTIRUN:  # Hydra continues, and reports only one failure
            log.error("failed: %s", escaped_line(str(shown_error)))
        raise


def main(config_name: str = "config", task: Callable[[DictConfig], object] = run) -> None:
    """Run Hydra's command line. Each error becomes one line on standard error.

    The process exits with status 1 after a failed training, 2 for a bad config, and 128 + n if signal n stopped it.

    Args:
        config_name: the primary config, conf/<config_name>.yaml.
        task: runs one job.
    """
    secure_streams()
    gc_control.pause()
    late_compiler.postpone()
    show_tracebacks = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise errors, so that they become one line here
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # training replaces this handler, to save a checkpoint first
    logging.raiseExceptions = False  # a full disk or a closed pipe must not add a traceback of the logging
    register()
    command = hydra.main(config_path=str(CONF_DIR), config_name=config_name, execution_whitelist=LOGGING_CLASSES[:1])(
        task
    )
    try:
        check_command_line(sys.argv[1:])
        given = hydra_arguments(sys.argv[1:])
        note_directories()
        hidden = sys.stderr if show_tracebacks else _WithoutHydrasLine(sys.stderr)
        with contextlib.redirect_stderr(hidden), unavailable_refused(), _shown(given):
            _refuse_rerun(sys.argv[1:])
            command()
    except Exception as error:
        shown_error = _as_sweep_error(error)
        if shown_error is None:
            raise
        if isinstance(shown_error, ConfigError):
            # Hydra's files stay if the folder has anything else, such as the run of a job that began.
            remove_empty_logs()
            remove_hydras_files()
        if show_tracebacks:
            say(traceback.format_exc(), err=True)
        complain(f"error: {shown_error}")
        sys.exit(shown_error.exit_status)
    except Interrupted as stop:
        sys.exit(128 + stop.signum)
    except KeyboardInterrupt:  # the second Ctrl-C in training
        sys.exit(130)
    finally:
        gc_control.set_aside()  # otherwise the interpreter's last collection would take 0.6 s


def _shown(given: argparse.Namespace) -> contextlib.AbstractContextManager[object]:
    """Escape what Hydra prints for --cfg, --info and --help: a config may have text from somebody else."""
    if not (given.cfg or given.info or given.help or given.hydra_help):
        return contextlib.nullcontext()
    shown: Any = Shown(sys.stdout)
    return contextlib.redirect_stdout(shown)


class _WithoutHydrasLine:
    """Standard error without the line that Hydra prints before a failed job's error, so that one line is left."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if text.startswith("Error executing job with overrides:") else self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _as_sweep_error(error: Exception) -> SweepError | None:
    """Return the error to show to the user; None for a bug in sweep, which needs a traceback."""
    if isinstance(error, SweepError):
        return error
    if isinstance(error, OSError) and (error.filename is not None or error.errno in DISK_FULL):  # Hydra's files
        return ConfigError("output_dir", f"cannot be written ({error}); give another one")
    return config_error(error, sys.argv[1:])


def _refuse_rerun(arguments: Sequence[str]) -> None:
    """Raise ConfigError for --experimental-rerun.

    It would apply every override in the files of a run's folder, also those of Hydra's keys and those with resolvers.
    """
    if any(argument.startswith("--experimental-rerun") for argument in arguments):
        raise ConfigError("--experimental-rerun", "is not supported; continue a run with resume=<its folder>")


@functools.cache
def _upload_process(output_dir: Path) -> "UploadProcess":
    """Return the upload process of an `output_dir`, which all trials of this process share."""
    from sweep.tracking.upload_process import UploadProcess

    upload_process = UploadProcess(output_dir)
    atexit.register(upload_process.close)
    return upload_process


def _refuse_changes(overrides: list[str]) -> None:
    """Raise ConfigError for overrides that would change a run that is resumed."""
    changes = [o for o in overrides if not sets(o, "resume", "tracking.uri", "output_dir")]
    if changes:
        raise ConfigError(
            "resume", f"continues a run as it was configured; leave out '{changes[0]}', or start a new run"
        )


if __name__ == "__main__":
    # Import the module under its own name instead of __main__, so that other processes can unpickle its functions.
    importlib.import_module("sweep.run").main()
