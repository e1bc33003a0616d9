"""A worker at work: runs one trial after another until the study has all of its trials."""

import logging
import os
import signal
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import optuna
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, TrialState

from sweep.execution.attempts import n_failed
from sweep.execution.failures import too_many_failures
from sweep.execution.objective import mean_values, run_values
from sweep.execution.queue import PROBLEM, STOPPED, TrialQueue
from sweep.execution.replicates import Means
from sweep.search.space import Configuration
from sweep.storage.lock import StudyLock
from sweep.storage.retry import RetryPolicy
from sweep.storage.storage import open_storage
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.tracking.start import Membership
from sweep.trial import build
from sweep.trial.prepare import RememberedData
from sweep.trial.run import finished, record_refused, train_by_epochs
from sweep.utils.errors import (
    TRACEBACK_HINT,
    BeingTrained,
    Damaged,
    DamagedJournal,
    DiskFull,
    Diverged,
    Interrupted,
    Pruned,
    one_line,
)
from sweep.utils.signals import StopRequest

if TYPE_CHECKING:
    from sweep.execution.worker import Worker
    from sweep.training.runtime import Turn

Training = Generator[int, None, list[float]]  # of one run, epoch by epoch, to its objectives

log = logging.getLogger("sweep")


class SequentialExecutor:
    """One worker at work, from its first trial to its last."""

    def __init__(self, worker: "Worker", name: str, stop: StopRequest) -> None:
        self._worker, self._settings, self._stop = worker, worker.settings, stop
        self._composer, self._splits = worker.space.composer, worker.space.splits
        self._storage = open_storage(self._settings.storage, worker.folder)
        self._study = optuna.load_study(
            study_name=worker.name, storage=self._storage, pruner=build.pruner(self._settings.pruner)
        )
        lock = StudyLock(self._settings.storage, worker.folder)
        self._ledger = TrialQueue(
            self._storage, worker.name, worker.folder, lock, name, max_retries=self._settings.max_retries
        )
        self._patiently = RetryPolicy(self._settings.storage, is_over=self._is_asked_to_stop)
        self._load = RememberedData()
        self._means: dict[int, Means] = {}  # of the trials at work, by id
        self._has_timed_out = False
        self._one_by_one = False  # whether there is no memory to train the seeds of a trial in turn
        self._is_child = os.getppid() == worker.controller

    def run(self) -> int | None:
        """Until every trial is taken or done, or something says to stop."""
        while not self._patiently(self._is_over):
            trial = self._patiently(lambda: self._ledger.claim(self._worker.n_trials))
            if trial is None:
                return None
            try:
                with self._ledger.beating([trial]):
                    self._run(trial)
            except KeyboardInterrupt as stopped:
                self._ledger.release(trial)
                return self._signum(stopped)
        return self._signum()

    def _is_over(self) -> bool:
        if self._is_asked_to_stop() or self._is_out_of_time():
            return True
        trials = self._study.get_trials(deepcopy=False)[self._worker.first :]
        return too_many_failures(trials, self._settings.max_failure_rate) is not None

    def _is_asked_to_stop(self) -> bool:
        """By a signal, by its controller, or by the death of it."""
        return self._stop.signum is not None or self.is_orphaned() or self._worker.stop_request.exists()

    def _is_out_of_time(self) -> bool:
        return time.time() >= self._worker.stop_before

    def _heed_requests(self) -> None:
        """If something asks for it, have the trials at work save and stop at the end of their epoch."""
        if self._stop.signum is not None:
            return
        self._has_timed_out = self._is_out_of_time() and not self._is_asked_to_stop()
        if self._has_timed_out or self._is_asked_to_stop():
            self._stop.signum = signal.SIGTERM

    def _signum(self, stopped: KeyboardInterrupt | None = None) -> int | None:
        """The signal that stopped the worker, if it was one and not the time."""
        if self._has_timed_out:
            return None
        if stopped is None or isinstance(stopped, Interrupted):
            return self._stop.signum if stopped is None else stopped.signum
        return signal.SIGINT

    def is_orphaned(self) -> bool:
        """Whether the controller, whose child this process was, has died."""
        return self._is_child and os.getppid() != self._worker.controller

    def _run(self, trial: FrozenTrial) -> None:
        """Samples, trains and tells."""
        self._settle(trial, lambda: self._train(trial, self._patiently(lambda: self._configure(trial))))

    def _settle(self, trial: FrozenTrial, values_of: Callable[[], list[float]]) -> None:
        """Tells what the trial comes to. Whatever `values_of` raises is the trial's failure; Ctrl-C is not."""
        try:
            values = values_of()
        except Ended as end:
            self._tell(trial, end.state, None, end.attrs)
        except BeingTrained:  # its owner was silent for long, and yet lives
            self._patiently(lambda: self._ledger.return_to_owner(trial))
        except DamagedJournal as error:
            self._ledger.release(trial)
            folder = self._worker.folder.trial(trial.number).path
            raise error.with_remedy(
                f"move '{folder}' away and give the same command again: it trains trial {trial.number} anew"
            ) from error
        except (DiskFull, Damaged):  # the user has to see to it first; nor would the next trial find room
            self._ledger.release(trial)
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
        means = self._start(trial)

        def training(place: int, values: Mapping[str, Any], anew: bool = False) -> Generator[int, None, list[float]]:
            config = self._composer.compose(configuration.groups, values)
            return self._train_one(trial, config, self._replicate(place), means, anew)

        runs = self._runs(configuration)
        if len(runs) == 1:
            return mean_values([finished(training(0, runs[0]))])
        return mean_values(self._train_in_turn(trial, [partial(training, *run) for run in enumerate(runs)]))

    def _start(self, trial: FrozenTrial) -> Means:
        """Set a failed attempt aside. Returns what the trial's runs recorded before; the study may lack some of it."""
        if n := n_failed(trial):
            self._worker.folder.set_aside(trial.number, n)
        name, direction = self._watched()
        means = Means(self._settings.seeds, direction, trial.intermediate_values)
        for place in range(self._settings.seeds):
            run = self._worker.folder.trial(trial.number, self._replicate(place))
            if run.journal.exists() and (curve := journal.curves(run.journal).get(name)) is not None:
                means.extend(place, curve.steps.tolist(), curve.values.tolist())
        self._means[trial._trial_id] = means
        return means

    def _train_in_turn(self, trial: FrozenTrial, trainings: Sequence[Callable[..., Training]]) -> list[list[float]]:
        """Train the runs of a trial an epoch in turn, so that a step is known as soon as possible; their objectives.

        Where there is no memory for all of them at once, they train one after the other.
        """
        from sweep.training.runtime import Turn, is_out_of_memory

        values: dict[int, list[float]] = {}
        left = {place: Turn(training()) for place, training in enumerate(trainings)}
        at_once = not self._one_by_one
        while left:
            place = min(left, key=lambda place: (left[place].epoch * at_once, place))
            try:
                left[place].train()
            except StopIteration as over:
                values[place] = over.value
                del left[place]
            except BaseException as problem:
                is_last = sum(turn.has_begun for turn in left.values()) == 1
                del left[place]
                if is_last or not isinstance(problem, Exception) or not is_out_of_memory(problem):
                    self._end_turns(left.values(), problem)
                    raise
                log.warning("trial %d: out of memory, its seeds train one after the other", trial.number)
                self._end_turns(left.values(), Interrupted(signal.SIGTERM))
                self._one_by_one, at_once = True, False
                left = {p: Turn(trainings[p](anew=p == place)) for p in sorted({*left, place})}
        return [values[place] for place in sorted(values)]

    def _end_turns(self, turns: Iterable["Turn[list[float]]"], problem: BaseException) -> None:
        """End the trial's other runs, because of what happened to one: they are pruned with it, or left for later."""
        for turn in turns:
            with suppress(Exception, KeyboardInterrupt):  # what ends the trial is known
                if not turn.has_begun:
                    continue
                if self._stop.signum is not None and type(problem) is not KeyboardInterrupt:
                    turn.train()  # which saves a checkpoint and stops
                turn.end(Pruned(turn.epoch) if is_pruned(problem) else Interrupted(signal.SIGTERM))

    def _runs(self, configuration: Configuration) -> list[dict[str, Any]]:
        """The values of each run of a trial, one for each seed."""
        groups, values = configuration.groups, configuration.values
        if self._settings.seeds == 1:
            return [values]
        seed = self._composer.readable(groups, values)["seed"]
        return [{**values, "seed": seed + place} for place in range(self._settings.seeds)]

    def _replicate(self, place: int) -> int | None:
        """The number of the trial's run as its record has it: None where there is one alone."""
        return None if self._settings.seeds == 1 else place

    def _train_one(
        self, trial: FrozenTrial, config: DictConfig, replicate: int | None, means: Means, anew: bool
    ) -> Training:
        """Train one run of the trial, or go on with it, or read what it came to before its worker died.

        anew: whether to go on with a run that failed.
        """
        settings, member, place = self._settings, self._member(trial, replicate), replicate or 0
        run = self._worker.folder.trial(trial.number, replicate)
        if not anew and (end := ended(run)):  # its worker died before it could tell
            raise end
        try:
            if PROBLEM in trial.user_attrs:
                raise RuntimeError(trial.user_attrs[PROBLEM])
            if journal.status(run.journal) != "FINISHED":
                report = self._reporter(trial, means, place, config.trainer.epochs)
                begun = journal.first(run.journal, "start") is not None
                config.resume = str(run.path) if begun else None
                yield from train_by_epochs(config, report, folder=run.path, member=member, load=self._load)
            means.end(place)
            return run_values(run, settings.objective, settings.direction)
        except (Pruned, Diverged) as error:
            raise ended(run) or error from error
        except (BeingTrained, DiskFull, Damaged):
            raise
        except Exception as error:
            self._record_failure(run, config, error, member)
            raise

    def _member(self, trial: FrozenTrial, replicate: int | None) -> Membership:
        worker = self._worker
        return Membership(
            study=worker.name,
            folder=worker.folder.path,
            parent=worker.uid,
            number=trial.number,
            replicate=replicate,
        )

    def _record_failure(self, run: RunFolder, config: DictConfig, error: Exception, member: Membership) -> None:
        if journal.status(run.journal) != "FAILED":  # it has yet to begin, or was finished
            config.resume = None
            record_refused(run, config, error, member)

    def _reporter(
        self, trial: FrozenTrial, means: Means, place: int, n_epochs: int
    ) -> Callable[[int, Mapping[str, float]], None]:
        """Reports what the trial would come to if it ended now, and ends it when the pruner says so.

        Where nothing is pruned, the validation loss is reported, which shows how far the trial has come.
        """
        name, _ = self._watched()

        def report(epoch: int, metrics: Mapping[str, float]) -> None:
            self._heed_requests()
            if name not in metrics:  # it is read when the trial ends
                return
            means.add(place, epoch, metrics[name])
            if self._says_prune(trial, means) and means.n_epochs < n_epochs:  # else it is as good as over
                raise Pruned(epoch)

        return report

    def _watched(self) -> tuple[str, str]:
        """The metric that the study is told of while a trial trains, and its direction."""
        if self._settings.prunes:
            return self._settings.objective[0], self._settings.direction[0]
        return "val/loss", "minimize"

    def _says_prune(self, trial: FrozenTrial, means: Means) -> bool:
        """Report the steps that the study lacks, and ask the pruner about each.

        While the storage is out of reach the trial goes on, and they wait for the next report.
        """
        try:
            for step, value in means.unreported():
                self._storage.set_trial_intermediate_value(trial._trial_id, step, value)
                prunes = self._settings.prunes and self._study.pruner.prune(
                    self._study, self._storage.get_trial(trial._trial_id)
                )
                means.reported(step)
                if prunes:
                    return True
        except Exception as error:  # the trial need not suffer for it
            if not (self._patiently.is_outage(error) or isinstance(error, OSError)):
                raise
            log.warning("trial %d: cannot report epoch %d yet (%s)", trial.number, means.n_epochs, one_line(error))
        return False

    def _tell(
        self,
        trial: FrozenTrial,
        state: TrialState,
        values: list[float] | None,
        attrs: Mapping[str, str] | None = None,
    ) -> None:
        means = self._means.pop(trial._trial_id, None)

        def tell() -> None:
            if not self._ledger.is_mine(trial):  # it was silent for too long, or this has been told
                log.warning("trial %d is no longer this worker's", trial.number)
                return
            if means is not None:  # a finished trial takes no more of them
                for step, value in means.unreported():
                    self._storage.set_trial_intermediate_value(trial._trial_id, step, value)
                    means.reported(step)
            for name, value in (attrs or {}).items():
                self._storage.set_trial_user_attr(trial._trial_id, name, value)
            self._study.tell(self._storage.get_trial(trial._trial_id).number, values, state)

        self._patiently(tell)


class Ended(Exception):
    """The trial has come to its end, and its run's journal knows how. attrs: what the study is to know of it."""

    def __init__(self, state: TrialState, attrs: Mapping[str, str]) -> None:
        super().__init__(state, attrs)
        self.state, self.attrs = state, attrs


def is_pruned(problem: BaseException) -> bool:
    """Whether what ended a run ends its trial early and well, so that the trial's other runs are over too."""
    return isinstance(problem, Pruned | Diverged) or (isinstance(problem, Ended) and problem.state == TrialState.PRUNED)


def ended(run: RunFolder) -> Ended | None:
    """How the run has ended the whole trial; None where it did not."""
    end = None
    for record, _ in journal.read(run.journal):
        if record["kind"] in ("start", "end"):
            end = record if record["kind"] == "end" else None
    tags = {} if end is None else end["tags"]
    if tags.get("state") == "FAIL" or "diverged" in tags:
        problem = tags["error"].partition(": ")[2].removesuffix(TRACEBACK_HINT)  # behind the exception's name
        return Ended(TrialState[tags["state"]], {PROBLEM: problem})
    if tags.get("state") == "PRUNED":
        return Ended(TrialState.PRUNED, {STOPPED: f"pruned at epoch {tags['pruned.epoch']}"})
    return None
