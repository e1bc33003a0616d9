"""Run one trial: build, train, checkpoint, record, evaluate. `run_trial` reads from top to bottom."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf

from sweep.config.metrics import best_of
from sweep.config.outputs import folder_name
from sweep.config.schema import Config, is_edited, own_keys, validate
from sweep.tracking import journal as journals
from sweep.tracking.description import run_name
from sweep.tracking.folders import RunFolder
from sweep.tracking.ownership import require_no_run, require_unused
from sweep.tracking.provenance import resume_command, sync_command
from sweep.tracking.run_recorder import Membership, RunRecorder, locked
from sweep.tracking.store import Store, belongs_to, recorded_uri, store_of, tracking_store
from sweep.tracking.stored_run import stored_config, study_command
from sweep.tracking.upload_process import UploadProcess
from sweep.training.trial import Trial
from sweep.trial.application import ApplicationTraining
from sweep.trial.builtin import BuiltInTraining
from sweep.trial.function import FunctionTraining
from sweep.trial.prepare import Data, load_data
from sweep.trial.recorded import Pause, RecordedTrial, Report
from sweep.utils.curve import Curve
from sweep.utils.errors import DISK_FULL, ConfigError, DiskFull
from sweep.utils.paths import absolute, refuse_links_at, refuse_links_in
from sweep.utils.signals import StopRequest

log = logging.getLogger("sweep")

MakeTraining = Callable[[Config], ApplicationTraining | FunctionTraining]  # of the checked config


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a complete run.

    Attributes:
        name: the chosen options and the seed, such as adam-cyclic-mlp-noisy_sine-s0.
        monitor: the curve whose best epoch gives the best weights, by default val/loss. If a training function reports
            no such curve, its first curve, or the first metric that it returned.
        value: the best value of that curve. If a training function reports no such curve, the last value.
        is_best: False if `value` is only the last value.
        best_epoch: the epoch of the value, from 1; 0 if a training function reported nothing.
        n_epochs: the number of epochs that were trained, or the last epoch that a training function reported.
        metrics: `val/...` at the best epoch, and `test/...` of the weights of that epoch. Of a training function, what
            it returned.
        history: every recorded curve, by metric name.
        train_s: seconds of training in this process.
        folder: the run's folder.
        tracking_uri: the tracking store of MLflow; None without tracking.
        uploaded: True if the upload process finished its work on the run in time. With tracking, MLflow then has the
            complete record.
    """

    name: str
    monitor: str
    value: float
    best_epoch: int
    n_epochs: int
    metrics: dict[str, float]
    history: dict[str, Curve]
    train_s: float
    folder: Path
    tracking_uri: str | None
    uploaded: bool
    is_best: bool = True


def run_trial(
    cfg: DictConfig,
    report: Report | None = None,
    *,
    folder: str | Path | None = None,
    upload_process: UploadProcess | Callable[[Path], UploadProcess] | None = None,
    live: bool = False,
    member: Membership | None = None,
    load: Callable[[Config], Data] = load_data,
    pause: Pause | None = None,
    stop: StopRequest | None = None,
    made_by: MakeTraining | None = None,
) -> Outcome:
    """Train the trial that `cfg` describes, or resume the run in the folder `cfg.resume`.

    Args:
        cfg: as `sweep.compose` returns it.
        report: called after each epoch with the epoch and its metrics. What it raises ends the trial.
        folder: where the trial's files go; by default a new folder in `cfg.output_dir`/runs.
        upload_process: a process that several trials share, or a function that starts one for a given `output_dir`; by
            default this trial starts its own. Trials of a study do not use it: the study uploads them.
        live: True shows progress as a live line instead of log lines.
        member: the trial's place in a study; None outside a study.
        load: loads and divides the data.
        pause: called with the epoch after each report. Other trials may train until it returns.
        stop: a request to save and stop; by default a signal makes one.
        made_by: makes what trains the trial, if that is a function that a program gives, or another Hydra application.

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
    is_new = config.resume is None and member is None  # a study continues its own
    if config.resume is None:
        run = RunFolder(folder or _new_folder(config))
        if is_new:
            require_unused(run, "folder")
    else:
        run = RunFolder(absolute(config.resume))
        refuse_links_in(run.path, "resume")
        if member is None and (command := study_command(run)) is not None:
            raise ConfigError("resume", f"'{run.path}' belongs to a study; resume that with:  {command}")
        config = stored_config(run, config)
    own = absolute(config.output_dir)
    output_dir = belongs_to(run, own) if run.config.exists() else own
    refuse_links_at(output_dir)
    store = tracking_store(config.tracking, output_dir)
    if member is None:  # a study decides where its trials are sent
        store = store_of(run, config.tracking, output_dir)
    if made_by is not None:
        train = made_by(config)
    else:
        train = FunctionTraining(config) if config.is_function else BuiltInTraining(config, load)
    config = train.config
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(run))
            if member is not None:
                upload_process = None
            elif upload_process is None:
                upload_process = UploadProcess(output_dir)
                stack.callback(upload_process.close)
            elif callable(upload_process):
                upload_process = upload_process(output_dir)
        except OSError as error:
            raise ConfigError("output_dir", f"cannot be written ({error}); give another one") from error
        if is_new:
            require_no_run(run, "folder")  # check again under the lock: another process may have started a run there
        if upload_process is not None:
            upload_process.add_run(run, store)  # early, so that it loads MLflow while we load torch
        trial = RecordedTrial(
            run,
            config,
            output_dir=output_dir,
            store=recorded_uri(store, output_dir),
            member=member,
            report=report,
            pause=pause,
            stop=stop,
            live=live,
            n_epochs=train.n_epochs,
        )
        uploaded = False
        try:
            with advise_when_full(run, store), trial:
                metrics = _train(train, trial)
        except KeyboardInterrupt:
            if member is None and trial.has_begun:
                log.warning("warning: stopped; resume it with:  %s", resume_command(run.path, store))
            raise
        finally:
            if upload_process is not None and trial.has_begun:
                uploaded = _finish_upload(upload_process, run, store, output_dir, config.tracking.close_timeout_s)
    return _outcome(config, run, metrics, trial.train_s, store.uri, uploaded)


def _train(train: Callable[[Trial], dict[str, float]], trial: RecordedTrial) -> dict[str, float]:
    """Train, and record how the trial ended, also after an error or a signal."""
    try:
        metrics = train(trial)
        trial.end()
    except BaseException as error:
        trial.end(error)
        raise
    return metrics


def _outcome(
    config: Config, run: RunFolder, test: dict[str, float], train_s: float, uri: str | None, uploaded: bool
) -> Outcome:
    """Read the curves back from the run's journal, and return the outcome."""
    history, monitor = journals.curves(run.journal), config.trainer.monitored
    is_best = monitor in history
    if not is_best:  # of a training function alone
        monitor = next(iter([*history, *test]))
    watched = history.get(monitor, Curve(np.array([0]), np.array([test.get(monitor, math.nan)])))
    value = best_of(watched.values.tolist(), config.monitor_direction) if is_best else float(watched.values[-1])
    best_epoch = int(watched.steps[watched.values == value][0] if is_best else watched.steps[-1])
    val = {
        name: curve.values[curve.steps == best_epoch].item()
        for name, curve in history.items()
        if name.startswith("val/") and best_epoch in curve.steps
    }
    return Outcome(
        name=run_name(config),
        monitor=monitor,
        value=value,
        best_epoch=best_epoch,
        n_epochs=int(watched.steps[-1]),
        metrics={**val, **test},
        history=history,
        train_s=train_s,
        folder=run.path,
        tracking_uri=uri,
        uploaded=uploaded,
        is_best=is_best,
    )


def record_refused(run: RunFolder, cfg: DictConfig, error: Exception, member: Membership) -> None:
    """Record the failure of a study's trial that was refused before its record began.

    A run outside a study leaves no record in that case: its error is shown.

    Args:
        run: the trial's folder, which is created if needed.
        cfg: the trial's config as Hydra composed it, perhaps invalid.
        error: why the trial was refused.
        member: the trial's place in the study.
    """
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    config.own = {key: vars(config).pop(key) for key in own_keys(cfg)}
    output_dir = absolute(config.output_dir)
    store = recorded_uri(tracking_store(config.tracking, output_dir), output_dir)
    run.create()
    with closing(RunRecorder(run, member)) as recorder:
        recorder.start(config, output_dir=output_dir, store=store)
        recorder.end(error)


@contextmanager
def advise_when_full(run: RunFolder, store: Store | None = None) -> Iterator[None]:
    """Turn an OSError that means a full disk into DiskFull, which names the command to resume with."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise DiskFull(str(error), study_command(run) or resume_command(run.path, store)) from error


def _new_folder(config: Config) -> Path:
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    return absolute(config.output_dir) / "runs" / folder_name(f"{stamp}_{run_name(config)}")


def _finish_upload(
    upload_process: UploadProcess, run: RunFolder, store: Store, output_dir: Path, timeout_s: float
) -> bool:
    """Wait until the upload process has sent the run, for at most `timeout_s` seconds. Return True if it has.

    A store that is down or slow only logs a warning.
    """
    problem = upload_process.finish(
        run, timeout_s, lambda why: log.warning("warning: cannot draw the curves (%s)", why)
    )
    if problem is not None and store.uri is None:
        log.warning("warning: cannot draw the curves (%s)", problem)
    elif problem is not None:
        log.warning(
            "warning: MLflow lacks this run (%s). Nothing is lost; later:  %s",
            problem,
            sync_command(output_dir, store),
        )
    return problem is None
