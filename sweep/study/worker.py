"""A study's worker: runs one trial after another until the study has all of its trials.

A launcher runs a `Worker` as it runs any Hydra job. Workers know of each other only through the study's storage, so
more of them may join at any time, from other processes or machines.
"""

import logging
import math
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, TrialState

from sweep import build
from sweep.config import register
from sweep.errors import TRACEBACK_HINT, BeingTrained, ConfigError, DiskFull, Diverged, Interrupted, Pruned, one_line
from sweep.prepare import RememberedData
from sweep.record import journal
from sweep.record.folder import RunFolder, StudyFolder
from sweep.record.start import Membership
from sweep.signals import StopRequest, stop_on_signal
from sweep.study.failures import too_many_failures
from sweep.study.ledger import PROBLEM, STOPPED, Ledger
from sweep.study.lock import StudyLock
from sweep.study.objective import best_of, mean_values, run_values
from sweep.study.outage import Patience
from sweep.study.samplers import draw, make_sampler
from sweep.study.settings import StudySettings
from sweep.study.space import Configuration, Space
from sweep.study.storage import open_storage
from sweep.trial import record_refused, run_trial

log = logging.getLogger("sweep")
optuna.logging.set_verbosity(optuna.logging.ERROR)  # what there is to say, the study says itself


@dataclass
class Worker:
    """Everything a worker has to know, so that a launcher may send it to another process or machine.

    settings, space: of the study. known: parameters of the first trials by number, which are not sampled. order: what
    each trial tries, where nothing is sampled at all. uid: of the study's own record. seed: of its sampler.
    stop_before: no trial starts after this time, in seconds since 1970. first: number of the first trial whose failure
    counts. n_shares: workers that share a machine's cores. controller: the process that launches them.
    """

    settings: StudySettings
    name: str
    folder: StudyFolder
    space: Space
    n_trials: int
    known: list[dict[str, Any]]
    order: list[Configuration] | None
    uid: str
    seed: int
    stop_before: float = math.inf
    first: int = 0
    n_shares: int = 1
    controller: int = field(default_factory=os.getpid)
    launch: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def __setstate__(self, state: dict[str, Any]) -> None:
        register()  # in a fresh process the config's resolvers are unknown
        self.__dict__.update(state)

    def __call__(self, cfg: DictConfig) -> int | None:
        """The job that a launcher runs. Returns the number of the signal that stopped it, if one did."""
        index = HydraConfig.get().job.num
        _take_device(index, self.n_shares)
        _share_cores(self.n_shares)
        name = f"{self.launch}-{index}"
        with self.folder.worker_lock(name), stop_on_signal() as stop:
            shift = _Shift(self, name, stop)
            signum = shift.run()
        if shift.is_orphaned():
            os._exit(0)  # nobody waits for the answer, and loky would keep the process
        return signum

    def rehearse(self, numbers: Iterable[int]) -> list[Configuration]:
        """What trials of those numbers would try in a study without any other. Raises ConfigError."""
        if self.order is not None:
            return [self.order[number] for number in numbers]
        study = optuna.create_study(directions=self.settings.direction)
        trial = optuna.trial.create_trial(state=TrialState.WAITING)
        trial._trial_id = study._storage.create_new_trial(study._study_id, trial)
        try:
            return [self.propose(study, trial, number) for number in numbers]
        except (ValueError, NotImplementedError, RuntimeError) as error:
            raise ConfigError("hydra/sweeper/sampler", f"cannot search this: {one_line(error)}") from error

    def propose(self, study: optuna.Study, trial: FrozenTrial, number: int) -> Configuration:
        """The configuration of trial `number`, by a sampler of its own, which the study is left with."""
        study.sampler = make_sampler(self.settings.sampler, self.seed, number, self.space)
        if number < len(self.known):
            return draw(study, trial, study.sampler, self.space, self.known[number])
        return draw(study, trial, study.sampler, self.space, {}, tried=self.known)

    @property
    def stop_request(self) -> Path:
        """A file that asks the workers of this launch to stop, wherever they run."""
        return self.folder.workers / f"{self.launch}.stop"


class _Shift:
    """One worker at work."""

    def __init__(self, worker: Worker, name: str, stop: StopRequest) -> None:
        self._worker, self._settings, self._stop = worker, worker.settings, stop
        self._storage = open_storage(self._settings.storage, worker.folder)
        self._study = optuna.load_study(
            study_name=worker.name, storage=self._storage, pruner=build.pruner(self._settings.pruner)
        )
        lock = StudyLock(self._settings.storage, worker.folder)
        self._ledger = Ledger(
            self._storage, worker.name, worker.folder, lock, name, max_retries=self._settings.max_retries
        )
        self._patiently = Patience(self._settings.storage, is_over=self._is_asked_to_stop)
        self._load = RememberedData()
        self._is_child = os.getppid() == worker.controller

    def run(self) -> int | None:
        """Until every trial is taken or done, or something says to stop."""
        while not self._patiently(self._is_over):
            trial = self._patiently(lambda: self._ledger.claim(self._worker.n_trials))
            if trial is None:
                return None
            try:
                with self._ledger.beating(trial):
                    self._run(trial)
            except KeyboardInterrupt as stopped:
                self._ledger.give_back(trial)
                return stopped.signum if isinstance(stopped, Interrupted) else signal.SIGINT
        return self._stop.signum

    def _is_over(self) -> bool:
        if self._is_asked_to_stop() or time.time() >= self._worker.stop_before:
            return True
        trials = self._study.get_trials(deepcopy=False)[self._worker.first :]
        return too_many_failures(trials, self._settings.max_failure_rate) is not None

    def _is_asked_to_stop(self) -> bool:
        """By a signal, by its controller, or by the death of it."""
        return self._stop.signum is not None or self.is_orphaned() or self._worker.stop_request.exists()

    def is_orphaned(self) -> bool:
        """Whether the controller, whose child this process was, has died."""
        return self._is_child and os.getppid() != self._worker.controller

    def _run(self, trial: FrozenTrial) -> None:
        """Samples, trains and tells. Whatever a trial raises is that trial's failure; Ctrl-C is not."""
        try:
            configuration = self._patiently(lambda: self._configure(trial))
            values = self._train(trial, configuration)
        except _Ended as ended:
            self._tell(trial, ended.state, None, ended.attrs)
        except BeingTrained:  # its owner was silent for long, and yet lives
            self._patiently(lambda: self._ledger.return_to_owner(trial))
        except DiskFull:  # nor would the next trial find room
            self._ledger.give_back(trial)
            raise
        except Exception as error:
            log.exception("trial %d failed", trial.number)
            self._tell(trial, TrialState.FAIL, None, {PROBLEM: one_line(error).removesuffix(TRACEBACK_HINT)})
        else:
            self._tell(trial, TrialState.COMPLETE, values)

    def _configure(self, trial: FrozenTrial) -> Configuration:
        worker, space = self._worker, self._worker.space
        if worker.order is not None:
            configuration = worker.order[trial.number]
        else:
            configuration = worker.propose(self._study, trial, trial.number)
        for name, distribution in space.distributions(configuration).items():
            if name not in trial.params:
                internal = distribution.to_internal_repr(configuration.params[name])
                self._storage.set_trial_param(trial._trial_id, name, internal, distribution)
        return configuration

    def _train(self, trial: FrozenTrial, configuration: Configuration) -> list[float]:
        """The objectives, the mean over `seeds` runs."""
        settings, space = self._settings, self._worker.space
        config = space.composer.compose(configuration.groups, configuration.values)
        if settings.seeds == 1:
            return self._train_one(trial, config, None, [])
        done: list[list[float]] = []
        for replicate in range(settings.seeds):
            values = {**configuration.values, "seed": config.seed + replicate}
            done.append(self._train_one(trial, space.composer.compose(configuration.groups, values), replicate, done))
        return mean_values(done)

    def _train_one(
        self, trial: FrozenTrial, config: DictConfig, replicate: int | None, done: list[list[float]]
    ) -> list[float]:
        """Trains one run of the trial, or goes on with it, or reads what it came to before its worker died."""
        worker, settings = self._worker, self._settings
        run = worker.folder.trial(trial.number, replicate)
        member = Membership(
            study=worker.name,
            folder=worker.folder.path,
            parent=worker.uid,
            number=trial.number,
            replicate=replicate,
        )
        if ended := _ended(run, replicate):  # its worker died before it could tell
            raise ended
        try:
            if PROBLEM in trial.user_attrs:
                raise RuntimeError(trial.user_attrs[PROBLEM])
            if journal.status(run.journal) != "FINISHED":
                report = self._reporter(trial, config, run, replicate, [values[0] for values in done])
                begun = journal.first(run.journal, "start") is not None
                config.resume = str(run.path) if begun else None
                run_trial(config, report, folder=run.path, member=member, load=self._load)
            return run_values(run, settings.objective, settings.direction)
        except (Pruned, Diverged) as error:
            raise _ended(run, replicate) or error from error
        except (BeingTrained, DiskFull):
            raise
        except Exception as error:
            if journal.status(run.journal) != "FAILED":  # it has yet to begin, or was finished
                config.resume = None
                record_refused(run, config, error, member)
            raise

    def _reporter(
        self, trial: FrozenTrial, config: DictConfig, run: RunFolder, replicate: int | None, done: Sequence[float]
    ) -> Callable[[int, Mapping[str, float]], None]:
        """Tells the study what the trial would come to if it ended now, and ends it when the pruner says so.

        A step is an epoch, counted on through the trial's replicates; `done` are the values of those before this one.
        Where nothing is pruned, the study is told of the validation loss, which shows how far the trial has come.
        """
        settings, n_epochs = self._settings, config.trainer.epochs
        name, direction = settings.objective[0], settings.direction[0]
        if not settings.prunes:
            name, direction, done = "val/loss", "minimize", []
        offset, n_steps = (replicate or 0) * n_epochs, settings.seeds * n_epochs
        best: float | None = None  # of this run, its earlier attempts included

        def report(epoch: int, metrics: Mapping[str, float]) -> None:
            nonlocal best
            if self._is_asked_to_stop() and self._stop.signum is None:
                self._stop.signum = signal.SIGTERM  # the trial saves its checkpoint and stops
            if name not in metrics:  # which is told when the trial ends
                return
            if best is None:
                earlier = journal.curves(run.journal)[name]
                best = best_of(earlier.values[earlier.steps < epoch].tolist(), direction)
            best = best_of([best, metrics[name]], direction)
            pruned = self._says_prune(trial, offset + epoch, fmean([*done, best]))
            if pruned and offset + epoch < n_steps:  # else it is as good as over
                raise Pruned(epoch)

        return report

    def _says_prune(self, trial: FrozenTrial, step: int, value: float) -> bool:
        try:
            self._storage.set_trial_intermediate_value(trial._trial_id, step, value)
            if not self._settings.prunes:
                return False
            return self._study.pruner.prune(self._study, self._storage.get_trial(trial._trial_id))
        except Exception as error:  # the trial need not suffer for it
            if not (self._patiently.is_outage(error) or isinstance(error, OSError)):
                raise
            log.warning("trial %d: cannot report step %d (%s)", trial.number, step, one_line(error))
            return False

    def _tell(
        self,
        trial: FrozenTrial,
        state: TrialState,
        values: list[float] | None,
        attrs: Mapping[str, str] | None = None,
    ) -> None:
        def tell() -> None:
            if not self._ledger.is_mine(trial):  # it was silent for too long, or this has been told
                log.warning("trial %d is no longer this worker's", trial.number)
                return
            for name, value in (attrs or {}).items():
                self._storage.set_trial_user_attr(trial._trial_id, name, value)
            self._study.tell(trial.number, values, state)

        self._patiently(tell)


class _Ended(Exception):
    """The trial has come to its end, and its run's journal knows how. attrs: what the study is to know of it."""

    def __init__(self, state: TrialState, attrs: Mapping[str, str]) -> None:
        super().__init__(state, attrs)
        self.state, self.attrs = state, attrs


def _ended(run: RunFolder, replicate: int | None) -> _Ended | None:
    """How the run has ended the whole trial; None where it did not."""
    end = None
    for record, _ in journal.read(run.journal):
        if record["kind"] in ("start", "end"):
            end = record if record["kind"] == "end" else None
    tags = {} if end is None else end["tags"]
    if tags.get("state") == "FAIL" or "diverged" in tags:
        problem = tags["error"].partition(": ")[2].removesuffix(TRACEBACK_HINT)  # behind the exception's name
        return _Ended(TrialState[tags["state"]], {PROBLEM: problem})
    if tags.get("state") == "PRUNED":
        where = "" if replicate is None else f" of seed {replicate}"
        return _Ended(TrialState.PRUNED, {STOPPED: f"pruned at epoch {tags['pruned.epoch']}{where}"})
    return None


def _take_device(index: int, n_workers: int) -> None:
    """Leaves the worker one of the machine's GPUs, in turn; a worker that is alone sees them all."""
    if n_workers == 1:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        devices = [str(i) for i in range(torch.cuda.device_count())]
    else:
        devices = [device for device in visible.split(",") if device.strip()]
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[index % len(devices)]


def _share_cores(n_workers: int) -> None:
    """Torch's threads, so that workers side by side do not crowd each other out."""
    if n_workers == 1:
        return
    import torch

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // n_workers))
