"""A worker at work: runs one trial after another until the study has all of its trials."""

import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import optuna
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, TrialState

from sweep import build
from sweep.errors import TRACEBACK_HINT, BeingTrained, DiskFull, Diverged, Interrupted, Pruned, one_line
from sweep.prepare import RememberedData
from sweep.record import journal
from sweep.record.folder import RunFolder
from sweep.record.start import Membership
from sweep.signals import StopRequest
from sweep.study.failures import too_many_failures
from sweep.study.ledger import PROBLEM, STOPPED, Ledger
from sweep.study.lock import StudyLock
from sweep.study.objective import best_of, mean_values, run_values
from sweep.study.outage import Patience
from sweep.study.space import Configuration
from sweep.study.storage import open_storage
from sweep.trial import record_refused, run_trial

if TYPE_CHECKING:
    from sweep.study.worker import Worker

log = logging.getLogger("sweep")


class Shift:
    """One worker at work, from its first trial to its last."""

    def __init__(self, worker: "Worker", name: str, stop: StopRequest) -> None:
        self._worker, self._settings, self._stop = worker, worker.settings, stop
        self._composer = worker.space.composer
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
                with self._ledger.beating([trial]):
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
        done: list[list[float]] = []
        for replicate, values in self._replicates(configuration):
            config = self._composer.compose(configuration.groups, values)
            done.append(self._train_one(trial, config, replicate, done))
        return mean_values(done)

    def _replicates(self, configuration: Configuration) -> list[tuple[int | None, dict[str, Any]]]:
        """The values of each run of a trial, with the number of the replicate where there are several."""
        groups, values = configuration.groups, configuration.values
        if self._settings.seeds == 1:
            return [(None, values)]
        seed = self._composer.readable(groups, values)["seed"]
        return [(replicate, {**values, "seed": seed + replicate}) for replicate in range(self._settings.seeds)]

    def _train_one(
        self, trial: FrozenTrial, config: DictConfig, replicate: int | None, done: list[list[float]]
    ) -> list[float]:
        """Trains one run of the trial, or goes on with it, or reads what it came to before its worker died."""
        settings, member = self._settings, self._member(trial, replicate)
        run = self._worker.folder.trial(trial.number, replicate)
        if end := ended(run, replicate):  # its worker died before it could tell
            raise end
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
            raise ended(run, replicate) or error from error
        except (BeingTrained, DiskFull):
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
        self, trial: FrozenTrial, config: DictConfig, run: RunFolder, replicate: int | None, done: Sequence[float]
    ) -> Callable[[int, Mapping[str, float]], None]:
        """Tells the study what the trial would come to if it ended now, and ends it when the pruner says so.

        A step is an epoch, counted on through the trial's replicates; `done` are the values of those before this one.
        Where nothing is pruned, the study is told of the validation loss, which shows how far the trial has come.
        """
        settings, n_epochs = self._settings, config.trainer.epochs
        name, direction = self._watched()
        done = done if settings.prunes else []
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

    def _watched(self) -> tuple[str, str]:
        """The metric that the study is told of while a trial trains, and its direction."""
        if self._settings.prunes:
            return self._settings.objective[0], self._settings.direction[0]
        return "val/loss", "minimize"

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


class Ended(Exception):
    """The trial has come to its end, and its run's journal knows how. attrs: what the study is to know of it."""

    def __init__(self, state: TrialState, attrs: Mapping[str, str]) -> None:
        super().__init__(state, attrs)
        self.state, self.attrs = state, attrs


def ended(run: RunFolder, replicate: int | None) -> Ended | None:
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
        where = "" if replicate is None else f" of seed {replicate}"
        return Ended(TrialState.PRUNED, {STOPPED: f"pruned at epoch {tags['pruned.epoch']}{where}"})
    return None
