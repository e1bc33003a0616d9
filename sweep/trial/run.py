"""Run one trial outside a study. `run_trial` reads from top to bottom."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from omegaconf import DictConfig

from sweep.config.outputs import folder_name
from sweep.config.schema import Config, is_edited, validate
from sweep.tracking.description import run_name
from sweep.tracking.folders import RunFolder
from sweep.tracking.ownership import require_no_run, require_unused
from sweep.tracking.provenance import resume_command, sync_command
from sweep.tracking.run_recorder import locked
from sweep.tracking.store import Destination, destination_of
from sweep.tracking.stored_run import stored_config, study_command
from sweep.tracking.upload_process import UploadProcess
from sweep.trial.outcome import Outcome, outcome_of
from sweep.trial.recorded import RecordedTrial, Report
from sweep.trial.sharing import sharing
from sweep.trial.training import make_training, train
from sweep.utils.errors import ConfigError
from sweep.utils.paths import absolute, refuse_links_in

log = logging.getLogger("sweep")


def run_trial(
    cfg: DictConfig,
    report: Report | None = None,
    *,
    folder: str | Path | None = None,
    upload_process: UploadProcess | Callable[[Path], UploadProcess] | None = None,
    live: bool = False,
) -> Outcome:
    """Train the trial that `cfg` describes, or resume the run in the folder `cfg.resume`.

    Args:
        cfg: as `sweep.compose` returns it.
        report: called after each epoch with the epoch and its metrics. What it raises ends the trial.
        folder: where the trial's files go; by default a new folder in `cfg.output_dir`/runs.
        upload_process: a process that several trials share, or a function that starts one for a given `output_dir`; by
            default this trial starts its own.
        live: True shows progress as a live line instead of log lines.

    Raises:
        ConfigError: the config cannot be used, or the folder is taken. Nothing is recorded.
        Damaged: a file of the run to resume cannot be read.
        DiskFull: there is no room. What was recorded before stays complete.
        Diverged: the loss became infinite or not a number. The record says so.
        TrainingFailed: the model raises an error while it trains. The record says so.
        FunctionFailed: the training function raises an error. The record says so, if it has begun.
        Interrupted: a signal stopped the trial after its state was saved.
        Exception: what `report` raises. It is recorded too.
    """
    config = validate(cfg)
    if is_edited(config, cfg):
        config.overrides = None  # they no longer compose this config
    is_new = config.resume is None
    run, config = _new_run(config, folder) if is_new else _run_to_resume(config)
    to = destination_of(run, config)
    training = sharing(make_training(config), to)
    config, uploaded = training.config, False
    with _uploading(to, upload_process, is_new) as uploads:
        trial = RecordedTrial(
            run,
            config,
            output_dir=to.output_dir,
            store=to.recorded,
            report=report,
            live=live,
            n_epochs=training.n_epochs,
        )
        try:
            returned = train(training, trial, to.store)
        except KeyboardInterrupt:
            if trial.has_begun:
                log.warning("warning: stopped; resume it with:  %s", resume_command(run.path, to.store))
            raise
        finally:
            if trial.has_begun:
                uploaded = _finish_upload(uploads, to, config.tracking.close_timeout_s)
    return outcome_of(config, run, returned, trial.train_s, to.store.uri, uploaded)


def _new_run(config: Config, folder: str | Path | None) -> tuple[RunFolder, Config]:
    """Return the folder of a new run, and its config. Raise ConfigError if the folder is taken."""
    if folder is None:
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
        folder = absolute(config.output_dir) / "runs" / folder_name(f"{stamp}_{run_name(config)}")
    run = RunFolder(folder)
    require_unused(run, "folder")
    return run, config


def _run_to_resume(config: Config) -> tuple[RunFolder, Config]:
    """Return the folder of the run that `resume` names, and its config. Raise ConfigError if it cannot be resumed."""
    assert config.resume is not None
    run = RunFolder(absolute(config.resume))
    refuse_links_in(run.path, "resume")
    if (command := study_command(run)) is not None:
        raise ConfigError("resume", f"'{run.path}' belongs to a study; resume that with:  {command}")
    return run, stored_config(run, config)


@contextmanager
def _uploading(
    to: Destination, upload_process: UploadProcess | Callable[[Path], UploadProcess] | None, is_new: bool
) -> Iterator[UploadProcess]:
    """Hold the run's lock and a process that uploads the run.

    Args:
        to: where the run is recorded.
        upload_process: as `run_trial` gets it. A process that is started here is closed at the end.
        is_new: whether no run may have begun in the folder.

    Raises:
        ConfigError: the folder cannot be written, or another process has begun a run there.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(to.run))
            if upload_process is None:
                upload_process = UploadProcess(to.output_dir)
                stack.callback(upload_process.close)
            elif callable(upload_process):
                upload_process = upload_process(to.output_dir)
        except OSError as error:
            raise ConfigError("output_dir", f"cannot be written ({error}); give another one") from error
        if is_new:
            require_no_run(to.run, "folder")  # again under the lock: another process may have started a run there
        upload_process.add_run(to.run, to.store)  # early, so that it loads MLflow while we load torch
        yield upload_process


def _finish_upload(upload_process: UploadProcess, to: Destination, timeout_s: float) -> bool:
    """Wait until the upload process has sent the run, for at most `timeout_s` seconds. Return True if it has.

    A store that is down or slow only logs a warning.
    """
    problem = upload_process.finish(
        to.run, timeout_s, lambda why: log.warning("warning: cannot draw the curves (%s)", why)
    )
    if problem is not None and to.store.uri is None:
        log.warning("warning: cannot draw the curves (%s)", problem)
    elif problem is not None:
        log.warning(
            "warning: MLflow lacks this run (%s). Nothing is lost; later:  %s",
            problem,
            sync_command(to.output_dir, to.store),
        )
    return problem is None
