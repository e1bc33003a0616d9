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
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState

from sweep import build
from sweep.config import register
from sweep.errors import DiskFull, Diverged, Interrupted, Pruned, one_line
from sweep.prepare import RememberedData
from sweep.record import journal
from sweep.record.folder import RunFolder, StudyFolder
from sweep.record.start import Membership
from sweep.signals import StopRequest, stop_on_signal
from sweep.study.failures import too_many_failures
from sweep.study.ledger import PROBLEM, Ledger
from sweep.study.lock import StudyLock
from sweep.study.objective import best_of, mean_values, run_values
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

    settings, space: of the study. known: parameters of the first trials by number, which are not sampled. grid: every
    configuration of a grid search, in the order of the trials. uid: of the study's own record. seed: of its sampler.
    stop_before: no trial starts after this time, in seconds since 1970. first: number of the first trial whose failure
    counts. n_shares: workers that share a machine's cores. controller: the process that launches them.
    """

    settings: StudySettings
    name: str
    folder: StudyFolder
    space: Space
    n_trials: int
    known: list[dict[str, Any]]
    grid: list[Configuration] | None
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
        if self.grid is not None:
            return [self.grid[number] for number in numbers]
        study = optuna.create_study(directions=self.settings.direction)
        trial = optuna.trial.create_trial(state=TrialState.WAITING)
        trial._trial_id = study._storage.create_new_trial(study._study_id, trial)
        return [self.propose(study, trial, number) for number in numbers]

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
        self._load = RememberedData()
        self._is_child = os.getppid() == worker.controller

    def run(self) -> int | None:
        """Until every trial is taken or done, or something says to stop."""
        while not self._is_over():
            trial = self._ledger.claim(self._worker.n_trials)
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
        if self._stop.signum is not None or self._is_asked_to_stop():
            return True
        if time.time() >= self._worker.stop_before:
            return True
        trials = self._study.get_trials(deepcopy=False)[self._worker.first :]
        return too_many_failures(trials, self._settings.max_failure_rate) is not None

    def _is_asked_to_stop(self) -> bool:
        """By its controller, or by the death of it."""
        return self.is_orphaned() or self._worker.stop_request.exists()

    def is_orphaned(self) -> bool:
        """Whether the controller, whose child this process was, has died."""
        return self._is_child and os.getppid() != self._worker.controller

    def _run(self, trial: FrozenTrial) -> None:
        """Samples, trains and tells. Whatever a trial raises is that trial's failure; Ctrl-C is not."""
        try:
            configuration = self._configure(trial)
            values = self._train(trial, configuration)
        except (Pruned, Diverged):
            self._tell(trial, TrialState.PRUNED, None)
        except DiskFull:  # nor would the next trial find room
            self._ledger.give_back(trial)
            raise
        except Exception as error:
            log.exception("trial %d failed", trial.number)
            self._storage.set_trial_user_attr(trial._trial_id, PROBLEM, one_line(error))
            self._tell(trial, TrialState.FAIL, None)
        else:
            self._tell(trial, TrialState.COMPLETE, values)

    def _configure(self, trial: FrozenTrial) -> Configuration:
        worker, space = self._worker, self._worker.space
        if worker.grid is not None:
            configuration = worker.grid[trial.number]
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
        _raise_as_ended(run)
        if journal.status(run.journal) != "FINISHED":
            member = Membership(
                study=worker.name,
                folder=worker.folder.path,
                parent=worker.uid,
                number=trial.number,
                replicate=replicate,
            )
            report = self._reporter(trial, config, run, [values[0] for values in done])
            begun = journal.first(run.journal, "start") is not None
            config.resume = str(run.path) if begun else None
            try:
                run_trial(config, report, folder=run.path, member=member, load=self._load)
            except Exception as error:
                if not isinstance(error, Pruned) and journal.first(run.journal, "start") is None:
                    record_refused(run, config, error, member)
                raise
        return run_values(run, settings.objective, settings.direction)

    def _reporter(
        self, trial: FrozenTrial, config: DictConfig, run: RunFolder, done: Sequence[float]
    ) -> Callable[[int, Mapping[str, float]], None]:
        """Tells the study what the trial would come to if it ended now, and ends it when the pruner says so.

        A step is an epoch, counted on through the trial's replicates, of which `done` are over.
        """
        name, direction = self._settings.objective[0], self._settings.direction[0]
        offset = len(done) * config.trainer.epochs
        best: float | None = None  # of this run, its earlier attempts included

        def report(epoch: int, metrics: Mapping[str, float]) -> None:
            nonlocal best
            if self._is_asked_to_stop():
                signal.raise_signal(signal.SIGTERM)  # the trial saves its checkpoint and stops
            if not self._settings.prunes or name not in metrics:
                return
            if best is None:
                earlier = journal.curves(run.journal)[name]
                best = best_of(earlier.values[earlier.steps < epoch].tolist(), direction)
            best = best_of([best, metrics[name]], direction)
            pruned = self._says_prune(trial, offset + epoch, fmean([*done, best]))
            if pruned and offset + epoch < self._settings.seeds * config.trainer.epochs:  # else it is as good as over
                raise Pruned(epoch)

        return report

    def _says_prune(self, trial: FrozenTrial, step: int, value: float) -> bool:
        try:
            self._storage.set_trial_intermediate_value(trial._trial_id, step, value)
            return self._study.pruner.prune(self._study, self._storage.get_trial(trial._trial_id))
        except (StorageInternalError, OSError) as error:  # the trial need not suffer for it
            log.warning("trial %d: cannot report step %d (%s)", trial.number, step, one_line(error))
            return False

    def _tell(self, trial: FrozenTrial, state: TrialState, values: list[float] | None) -> None:
        self._study.tell(trial.number, values, state)


def _raise_as_ended(run: RunFolder) -> None:
    """Ends the trial as its run ended, for one whose worker died between the two."""
    end = None
    for record, _ in journal.read(run.journal):
        if record["kind"] in ("start", "end"):
            end = record if record["kind"] == "end" else None
    if end is None:
        return
    state = end["tags"].get("state")
    if state == "PRUNED":
        raise Pruned(int(end["tags"].get("pruned.epoch", 0)))
    if state == "FAIL":
        raise RuntimeError(end["tags"]["error"])


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
