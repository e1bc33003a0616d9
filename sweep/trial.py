"""One trial: build, train, checkpoint, record, evaluate. `run_trial` reads from top to bottom."""

import logging
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from sweep import build
from sweep.config import Config, fingerprint, interval_of, loss_name, validate
from sweep.data import Samples
from sweep.data.split import Splits, divide
from sweep.errors import DISK_FULL, ConfigError, DiskFull, Diverged
from sweep.record import journal as journals
from sweep.record.describe import run_name
from sweep.record.folder import Busy, RunFolder
from sweep.record.follow import Follower
from sweep.record.journal import Curve, Journal
from sweep.record.progress import progress
from sweep.record.provenance import resume_command
from sweep.record.recorder import Recorder, Report
from sweep.record.start import stored_config, write_start
from sweep.record.store import Store, output_dir_of, recorded_uri, store_of
from sweep.signals import stop_on_signal

if TYPE_CHECKING:
    from sweep.train.loop import Fit

log = logging.getLogger("sweep")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished trial came to.

    value: the objective, the lowest validation loss. metrics: `val/...` of that epoch and `test/...` of its weights.
    history: every recorded curve, by metric name. train_s: seconds of training in this process. tracking_uri:
    where MLflow has it, None without tracking; mirrored: whether it is all there yet.
    """

    name: str
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
    follower: Follower | Callable[[Path], Follower] | None = None,
    live: bool = False,
) -> Outcome:
    """Trains the trial that `cfg` describes, or continues the one in the folder `cfg.resume`.

    report: called after each epoch with (epoch, validation loss); it may raise to end the trial.
    folder: where the trial's files go; by default a new folder below `cfg.output_dir`/runs.
    follower: the process that mirrors to MLflow, when trials share one, or what starts it for the `output_dir` that
    the trial belongs to; by default one for this trial.
    live: whether progress is shown as a live line instead of log lines.

    Raises ConfigError before anything is recorded; Diverged, Interrupted or what `report` raises after it is recorded.
    """
    config = validate(cfg.copy())
    if config.composed != fingerprint(cfg):
        config.overrides = None  # edited since: they would make another trial
    if config.resume is None:
        run = RunFolder(folder or _new_folder(config))
    else:
        run = RunFolder(config.resume)
        config = stored_config(run)
    samples = build.samples(config.data)
    loss_name(config.trainer.loss, samples.task)  # told before torch is loaded
    splits = _divide(samples, config)
    output_dir = output_dir_of(run) or Path(config.output_dir).absolute()
    store = store_of(run, config.tracking, output_dir)
    with ExitStack() as stack:
        try:
            run.create()
            stack.enter_context(run.lock())
            if follower is None:
                follower = Follower(output_dir / "mirror.log")
                stack.callback(follower.close)
            elif callable(follower):
                follower = follower(output_dir)
        except Busy:
            raise ConfigError("resume", f"'{run.path}' is being trained by another process") from None
        except OSError as error:
            raise ConfigError("output_dir", f"cannot be written ({error}); give another one") from error
        follower.follow(run, store)  # it loads MLflow while we load torch
        fit = stack.enter_context(_fit(config, samples, splits))
        _restore(fit, run)
        with Journal(run.journal) as journal, _told_when_full(run):
            write_start(
                journal, run, config, samples, splits, output_dir, recorded_uri(store, output_dir), fit.device.type
            )
            recorder = Recorder(journal, fit.n_updates * config.trainer.epochs, config.tracking.step_points, report)
            try:
                metrics, train_s = _train(fit, config, run, journal, recorder, samples.noise, live)
            finally:
                mirrored = _finish_mirror(follower, run, store, output_dir, config.tracking.close_timeout_s)
    assert fit.best is not None
    return Outcome(
        name=run_name(config),
        value=fit.best.value,
        best_epoch=fit.best.epoch,
        n_epochs=fit.epoch,
        metrics=metrics,
        history=journals.curves(run.journal),
        train_s=train_s,
        folder=run.path,
        tracking_uri=store.uri,
        mirrored=mirrored,
    )


@contextmanager
def _fit(config: Config, samples: Samples, splits: Splits) -> Iterator["Fit"]:
    """Everything built and seeded, under the process-wide settings that training needs."""
    from sweep.train.evaluate import loss_function
    from sweep.train.loop import Fit
    from sweep.train.runtime import check_model, pick_device, reproducible, seed_generators, set_threads
    from sweep.train.schedule import Schedule
    from sweep.train.tensors import to_device

    trainer = config.trainer
    device = pick_device(trainer.device)
    with reproducible(device):
        steps_per_epoch = -(-len(splits.train.x) // trainer.batch_size)
        make_optimizer = build.optimizer(config.optimizer)
        make_scheduler = build.scheduler(config.scheduler, steps_per_epoch, trainer.epochs)
        seed_generators(trainer.seed, "init")
        model = build.model(config.model, samples).to(device)
        data = to_device(splits, device)
        batch = data.train.x[: trainer.batch_size]
        check_model(model, batch, samples.out_features)
        if not any(weight.requires_grad for weight in model.parameters()):
            raise ConfigError("model._target_", f"{config.model['_target_']} has no weights to train")
        set_threads(trainer.threads, model, batch)
        shapes = [weight.shape for weight in model.parameters()]
        schedule = Schedule(make_optimizer, make_scheduler, interval_of(config.scheduler), shapes)
        seed_generators(trainer.seed, "train")  # dropout, and whatever a user's model draws
        yield Fit(
            model=model,
            optimizer=make_optimizer(model.parameters()),
            schedule=schedule,
            loss_fn=loss_function(trainer.loss, samples.task),
            data=data,
            trainer=trainer,
        )


def _train(
    fit: "Fit", config: Config, run: RunFolder, journal: Journal, recorder: Recorder, noise: float | None, live: bool
) -> tuple[dict[str, float], float]:
    """Trains and tests; the journal knows how it ended, whatever happens. Returns the metrics and the seconds."""
    from sweep.train import checkpoint

    def save() -> None:
        journal.sync()  # a checkpoint must not know of epochs that the journal lacks
        checkpoint.save(run.checkpoint, fit.state_dict())

    start = time.perf_counter()
    try:
        with progress(config.trainer.epochs, fit.epoch, live) as recorder.show, stop_on_signal() as stop:
            best = fit.run(recorder, stop, save)
        train_s = time.perf_counter() - start
        val = {
            name: dict(zip(*curve.tolist(), strict=True))[best.epoch]
            for name, curve in journals.curves(run.journal).items()
            if name.startswith("val/")
        }
        metrics = {**val, **fit.test(noise)}
        checkpoint.save(run.best, {"model": best.weights, "epoch": best.epoch, "value": best.value})
        values = {"best/epoch": best.epoch, "best/val_loss": best.value, "time/train_s": train_s}
        values |= {name: value for name, value in metrics.items() if name.startswith("test/")}
        columns = {name: [value] for name, value in values.items()}
        journal.event("end", status="FINISHED", steps=[0], values=columns, tags={})  # step 0: bars in MLflow
    except BaseException as error:
        with suppress(OSError):  # the disk may be what failed
            status, tags = _ending(error)
            journal.event("end", status=status, steps=[], values={}, tags=tags)
        if isinstance(error, KeyboardInterrupt):
            log.warning("warning: stopped; go on with:  %s", resume_command(run.path))
        raise
    finally:
        with suppress(OSError):
            journal.sync()
    return metrics, train_s


def _ending(error: BaseException) -> tuple[str, dict[str, str]]:
    """MLflow's status for a trial that ended with `error`, and tags that say more."""
    if isinstance(error, KeyboardInterrupt):
        return "KILLED", {}
    tags = {"error": f"{type(error).__name__}: {error}"}
    if isinstance(error, Diverged):
        tags |= {"diverged": "true", "diverged.step": str(error.step), "diverged.lr": str(error.lr)}
    return "FAILED", tags


def _restore(fit: "Fit", run: RunFolder) -> None:
    from sweep.train import checkpoint

    if run.checkpoint.exists():
        fit.load_state_dict(checkpoint.load(run.checkpoint))
        recorded = journals.curves(run.journal).get("val/loss")
        if fit.epoch > (0 if recorded is None else len(recorded.steps)):
            raise ConfigError("resume", f"'{run.journal}' lacks epochs that the checkpoint has; start a new run")
        log.info("resuming %s after epoch %d", run.path, fit.epoch)
    elif run.journal.exists():
        log.info("resuming %s from its beginning: it left no checkpoint", run.path)


@contextmanager
def _told_when_full(run: RunFolder) -> Iterator[None]:
    """Raises DiskFull instead of what the system says."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise DiskFull(str(error), resume_command(run.path)) from error


def _divide(samples: Samples, config: Config) -> Splits:
    splits = divide(samples, config.split)
    n_train = len(splits.train.x)
    if config.trainer.batch_size > n_train:
        raise ConfigError(
            "trainer.batch_size",
            f"is {config.trainer.batch_size}, more than the {n_train} samples to train on; lower it",
        )
    return splits


def _new_folder(config: Config) -> Path:
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    return Path(config.output_dir) / "runs" / f"{stamp}_{run_name(config)}"


def _finish_mirror(follower: Follower, run: RunFolder, store: Store, output_dir: Path, timeout_s: float) -> bool:
    """Waits for the helper; a store that is down or slow costs a warning, not the trial."""
    problem = follower.finish(run, timeout_s)
    if problem is not None and store.uri is None:
        log.warning("warning: cannot draw the curves (%s)", problem)
    elif problem is not None:
        log.warning(
            "warning: MLflow lacks this run (%s). Nothing is lost; later:  python -m sweep.sync %s",
            problem,
            shlex.quote(str(output_dir)),
        )
    return problem is None
