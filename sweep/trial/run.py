"""One trial: build, train, checkpoint, record, evaluate. `run_trial` reads from top to bottom."""

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from omegaconf import DictConfig, OmegaConf

from sweep.config.outputs import folder_name
from sweep.config.schema import Config, fingerprint, validate
from sweep.tracking import journal as journals
from sweep.tracking.attempt import Attempt, locked, saved_state
from sweep.tracking.description import run_name
from sweep.tracking.ending import write_end
from sweep.tracking.folders import RunFolder
from sweep.tracking.journal import Journal
from sweep.tracking.ownership import require_no_run, require_unused
from sweep.tracking.progress import Show, progress
from sweep.tracking.provenance import resume_command, sync_command
from sweep.tracking.recorder import Report
from sweep.tracking.start import Membership, stored_config, study_command, write_start
from sweep.tracking.store import Store, belongs_to, recorded_uri, store_of, tracking_store
from sweep.tracking.upload_process import UploadProcess
from sweep.trial.prepare import (
    Data,
    check_data,
    load_data,
    prepared,
    smaller_batch_in_words,
    undefined_metrics,
    with_fitting_batch,
)
from sweep.utils import gc_control
from sweep.utils.curve import Curve
from sweep.utils.errors import DISK_FULL, ConfigError, Damaged, DiskFull
from sweep.utils.paths import absolute, refuse_links_at, refuse_links_in
from sweep.utils.signals import stop_on_signal

if TYPE_CHECKING:
    from sweep.training.loop import TrainingLoop

log = logging.getLogger("sweep")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished trial came to.

    value: the best of the curve `monitor`, by default the lowest validation loss. metrics: `val/...` of that epoch and
    `test/...` of its weights. history: every recorded curve, by metric name. train_s: seconds of training in this
    process. tracking_uri: where MLflow has it, None without tracking; mirrored: whether it is all there yet.
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
    mirrored: bool


def run_trial(
    cfg: DictConfig,
    report: Report | None = None,
    *,
    folder: str | Path | None = None,
    follower: UploadProcess | Callable[[Path], UploadProcess] | None = None,
    live: bool = False,
    member: Membership | None = None,
    load: "Callable[[Config], Data] | None" = None,
) -> Outcome:
    """Trains the trial that `cfg` describes, or continues the one in the folder `cfg.resume`.

    report: called after each epoch with (epoch, metrics); it may raise to end the trial.
    folder: where the trial's files go; by default a new folder below `cfg.output_dir`/runs.
    follower: the process that mirrors to MLflow, when trials share one, or what starts it for the `output_dir` that
    the trial belongs to; by default one for this trial.
    live: whether progress is shown as a live line instead of log lines.
    member: the trial's place in a study, which shows its progress and mirrors it.
    load: what loads and divides the data, `load_data` by default.

    Raises ConfigError before anything is recorded; Diverged, Interrupted or what `report` raises after it is recorded.
    """
    return finished(train_by_epochs(cfg, report, folder=folder, follower=follower, live=live, member=member, load=load))


def finished(training: Generator[int, None, T]) -> T:
    """Train to the end, epoch by epoch, and return what the training comes to."""
    while True:
        try:
            next(training)
        except StopIteration as over:
            return over.value


def train_by_epochs(
    cfg: DictConfig,
    report: Report | None = None,
    *,
    folder: str | Path | None = None,
    follower: UploadProcess | Callable[[Path], UploadProcess] | None = None,
    live: bool = False,
    member: Membership | None = None,
    load: "Callable[[Config], Data] | None" = None,
) -> Generator[int, None, Outcome]:
    """Do what `run_trial` does, and yield the number of each finished epoch.

    While it is suspended other trials may train in this process, if `sweep.training.runtime.Turn` keeps them apart. An
    exception that is thrown into it ends the trial as one that `report` raises does.
    """
    config = validate(cfg)
    if config.composed != fingerprint(OmegaConf.to_container(cfg, resolve=False)):
        config.overrides = None  # edited since: they would make another trial
    is_new = config.resume is None and member is None  # a study continues its own
    if config.resume is None:
        run = RunFolder(folder or _new_folder(config))
        if is_new:
            require_unused(run, "folder")
    else:
        run = RunFolder(absolute(config.resume))
        refuse_links_in(run.path, "resume")
        if member is None and (command := study_command(run)) is not None:
            raise ConfigError("resume", f"'{run.path}' belongs to a study, which goes on with:  {command}")
        config = stored_config(run, config)
    own = absolute(config.output_dir)
    output_dir = belongs_to(run, own) if run.config.exists() else own
    refuse_links_at(output_dir)
    store = tracking_store(config.tracking, output_dir)
    if member is None:  # of trials the study says where they are sent
        store = store_of(run, config.tracking, output_dir)
    data = (load or load_data)(config)
    composed, config = config, with_fitting_batch(config, len(data.splits.train.x))
    check_data(data, config)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(run))
            if member is not None:
                follower = None
            elif follower is None:
                follower = UploadProcess(output_dir / "mirror.log")
                stack.callback(follower.close)
            elif callable(follower):
                follower = follower(output_dir)
        except OSError as error:
            raise ConfigError("output_dir", f"cannot be written ({error}); give another one") from error
        if is_new:
            require_no_run(run, "folder")  # another process may have begun in it; a warning may be in our own log
        if follower is not None:
            follower.follow(run, store)  # it loads MLflow while we load torch
        fit = stack.enter_context(prepared(config, data))
        _restore(fit, run, is_member=member is not None)
        if member is None and (lowered := smaller_batch_in_words(composed, config)):
            log.warning(lowered)  # writes to the folder, which was seen to be unused before
        if member is None and (names := undefined_metrics(data)):
            why = "the targets do not vary there"
            log.warning("warning: %s: left out, since %s; raise split.val or split.test", " and ".join(names), why)
        with told_when_full(run, store):
            recorded = recorded_uri(store, output_dir)
            with Attempt(
                run, config, data.description, output_dir, recorded, fit, fit.device.type, member, report
            ) as attempt:
                try:
                    with _shown(config, fit, live, member) as attempt.recorder.show:
                        test, train_s = yield from _train(fit, attempt, data.samples.noise)
                except KeyboardInterrupt:
                    if member is None:
                        log.warning("warning: stopped; go on with:  %s", resume_command(run.path, store))
                    raise
                finally:
                    mirrored = follower is not None and _finish_mirror(
                        follower, run, store, output_dir, config.tracking.close_timeout_s
                    )
    assert fit.best is not None
    history = journals.curves(run.journal)
    val = {
        name: curve.values[curve.steps == fit.best.epoch].item()
        for name, curve in history.items()
        if name.startswith("val/")
    }
    return Outcome(
        name=run_name(config),
        monitor=config.trainer.monitored,
        value=fit.best.value,
        best_epoch=fit.best.epoch,
        n_epochs=fit.epoch,
        metrics={**val, **test},
        history=history,
        train_s=train_s,
        folder=run.path,
        tracking_uri=store.uri,
        mirrored=mirrored,
    )


def record_refused(run: RunFolder, cfg: DictConfig, error: Exception, member: Membership) -> None:
    """Records a study's trial that could not even begin; other trials just raise."""
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, Config)
    output_dir = absolute(config.output_dir)
    store = recorded_uri(tracking_store(config.tracking, output_dir), output_dir)
    run.create()
    with Journal(run.journal) as journal:
        write_start(journal, run, config, None, output_dir, store, None, member)
        write_end(journal, run, error, member)


def _train(
    fit: "TrainingLoop", attempt: Attempt, noise: float | None
) -> Generator[int, None, tuple[dict[str, float], float]]:
    """Trains and tests; the journal knows how it ended, whatever happens. Returns what `test` says, and the seconds
    that it trained, in which it was not suspended."""
    gc_control.resume()
    train_s, start = 0.0, time.perf_counter()
    try:
        with stop_on_signal() as stop:
            for epoch in fit.epochs(attempt.recorder, stop, lambda: attempt.save(fit.state_dict())):
                train_s += time.perf_counter() - start
                try:
                    yield epoch
                finally:
                    start = time.perf_counter()
        train_s += time.perf_counter() - start
        start = time.perf_counter()
        n_weights = sum(weight.numel() for weight in fit.model.parameters() if weight.requires_grad)
        test = fit.test(noise)
        attempt.complete(test, n_weights, train_s)
    except BaseException as error:
        attempt.end(error, train_s + time.perf_counter() - start)
        raise
    return test, train_s


def _shown(config: Config, fit: "TrainingLoop", live: bool, member: Membership | None) -> AbstractContextManager[Show]:
    if member is not None:  # a study shows its trials side by side
        return nullcontext(lambda epoch, metrics: None)
    return progress(config.trainer.epochs, fit.epoch, live)


def _restore(fit: "TrainingLoop", run: RunFolder, is_member: bool) -> None:
    """Raises Damaged; a study's trial is trained from its beginning instead, and comes to the same."""
    try:
        state = saved_state(run)
    except Damaged as error:
        if not is_member:
            raise
        log.warning("warning: %s; it is trained from its beginning", error)
        return
    if state is not None:
        fit.load_state_dict(state)
        log.info("resuming %s after epoch %d", run.path, fit.epoch)
    elif run.journal.exists():
        log.info("resuming %s from its beginning: it left no checkpoint", run.path)


@contextmanager
def told_when_full(run: RunFolder, store: Store | None = None) -> Iterator[None]:
    """Raises DiskFull instead of what the system says."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise DiskFull(str(error), study_command(run) or resume_command(run.path, store)) from error


def _new_folder(config: Config) -> Path:
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    return absolute(config.output_dir) / "runs" / folder_name(f"{stamp}_{run_name(config)}")


def _finish_mirror(follower: UploadProcess, run: RunFolder, store: Store, output_dir: Path, timeout_s: float) -> bool:
    """Waits for the helper; a store that is down or slow costs a warning, not the trial."""
    problem = follower.finish(run, timeout_s, lambda why: log.warning("warning: cannot draw the curves (%s)", why))
    if problem is not None and store.uri is None:
        log.warning("warning: cannot draw the curves (%s)", problem)
    elif problem is not None:
        log.warning(
            "warning: MLflow lacks this run (%s). Nothing is lost; later:  %s",
            problem,
            sync_command(output_dir, store),
        )
    return problem is None
