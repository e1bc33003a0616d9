"""What every executor does with a trial but train it: claim, configure, report, store how it ended."""

import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, TrialState

from sweep.config.overrides import key_of
from sweep.execution.attempts import n_failed
from sweep.execution.endings import Ended, ended
from sweep.execution.failures import too_many_failures
from sweep.execution.objective import run_values
from sweep.execution.plan import WorkerPlan
from sweep.execution.queue import PROBLEM, TrialQueue
from sweep.execution.replicates import Means
from sweep.search.space import Configuration
from sweep.storage.lock import StudyLock
from sweep.storage.optuna_internals import trial_id
from sweep.storage.retry import RetryPolicy
from sweep.storage.storage import open_storage
from sweep.storage.url import storage_place
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.tracking.run_recorder import Membership
from sweep.trial import build
from sweep.trial.prepare import RememberedData
from sweep.trial.run import record_refused
from sweep.utils.checked_file import load_checked
from sweep.utils.errors import (
    TRACEBACK_HINT,
    BeingTrained,
    Damaged,
    DamagedJournal,
    DiskFull,
    Interrupted,
    Pruned,
    one_line,
)
from sweep.utils.signals import StopRequest

log = logging.getLogger("sweep")


class WorkerSession:
    """One worker's session with its study, from its first trial to its last."""

    def __init__(self, plan: WorkerPlan, name: str, stop: StopRequest) -> None:
        self.plan, self.settings, self.stop = plan, plan.settings, stop
        self.composer, self.splits = plan.space.composer, plan.space.splits
        self.storage = open_storage(self.settings.storage, plan.folder)
        self._study = optuna.load_study(
            study_name=plan.name, storage=self.storage, pruner=build.pruner(self.settings.pruner)
        )
        lock = StudyLock(self.settings.storage, plan.folder)
        self.queue = TrialQueue(self.storage, plan.name, plan.folder, lock, name, max_retries=self.settings.max_retries)
        self.patiently = RetryPolicy(self.settings.storage, is_over=self.is_asked_to_stop)
        self.load = RememberedData()
        self._means: dict[int, Means] = {}  # of the trials at work, by id
        self._has_timed_out = False
        self._is_child = os.getppid() == plan.controller

    def is_over(self) -> bool:
        """Return whether no other trial is to be claimed."""
        if self.is_asked_to_stop() or self._is_out_of_time():
            return True
        trials = self._study.get_trials(deepcopy=False)[self.plan.first :]
        return too_many_failures(trials, self.settings.max_failure_rate) is not None

    def is_asked_to_stop(self) -> bool:
        """Return whether a signal, the study's command, or the death of that command asks this worker to stop."""
        return self.stop.signum is not None or self.is_orphaned() or self.plan.stop_request.exists()

    def _is_out_of_time(self) -> bool:
        return time.time() >= self.plan.stop_before

    def _heed_requests(self) -> None:
        """If something asks for it, have the trials at work save and stop at the end of their epoch."""
        if self.stop.signum is not None:
            return
        self._has_timed_out = self._is_out_of_time() and not self.is_asked_to_stop()
        if self._has_timed_out or self.is_asked_to_stop():
            self.stop.signum = signal.SIGTERM

    def signum(self, stopped: KeyboardInterrupt | None = None) -> int | None:
        """Return the signal that stopped the worker; None if it was not stopped, or by the study's timeout."""
        if self._has_timed_out:
            return None
        if stopped is None or isinstance(stopped, Interrupted):
            return self.stop.signum if stopped is None else stopped.signum
        return signal.SIGINT

    def is_orphaned(self) -> bool:
        """Return whether the study's command, whose child this process was, has died."""
        return self._is_child and os.getppid() != self.plan.controller

    def settle(self, trial: FrozenTrial, values_of: Callable[[], list[float]]) -> None:
        """Store how the trial ended. Whatever `values_of` raises is the trial's failure, but for Ctrl-C."""
        try:
            values = values_of()
        except Ended as end:
            self._tell(trial, end.state, None, end.attrs)
        except BeingTrained:  # its owner was silent for long, and yet lives
            self.patiently(lambda: self.queue.return_to_owner(trial))
        except DamagedJournal as error:
            self.queue.release(trial)
            folder = self.plan.folder.trial(trial.number).path
            raise error.with_remedy(
                f"move '{folder}' away and give the same command again: it trains trial {trial.number} anew"
            ) from error
        except (DiskFull, Damaged):  # the user has to see to it first; nor would the next trial find room
            self.queue.release(trial)
            raise
        except Exception as error:
            log.exception("trial %d failed", trial.number)
            self._tell(trial, TrialState.FAIL, None, {PROBLEM: one_line(error).removesuffix(TRACEBACK_HINT)})
            if self.settings.debug:
                raise
        else:
            self._tell(trial, TrialState.COMPLETE, values)

    def values_of_earlier(self, trial: FrozenTrial, run: RunFolder, retry: bool = False) -> list[float] | None:
        """Return the objectives of a run that finished before its worker died; None if it is yet to train.

        Args:
            retry: whether a run that failed is to train again.

        Raises:
            Ended: the run ended its whole trial.
            RuntimeError: the trial was given up before, since its workers died too often.
        """
        if not retry and (end := ended(run)):
            raise end
        if PROBLEM in trial.user_attrs:
            raise RuntimeError(trial.user_attrs[PROBLEM])
        if journal.status(run.journal) == "FINISHED":
            return self.objectives(run)
        return None

    def has_begun(self, run: RunFolder, member: Membership, overrides: Sequence[str]) -> bool:
        """Return whether an earlier attempt at the run is to be resumed.

        Args:
            overrides: what the study composes the run from now.

        Raises:
            Damaged: it was composed from other values of the parameters than the storage has, which has lost some.
        """
        if journal.first(run.journal, "start") is None:
            return False
        place, folder = storage_place(self.settings.storage, self.plan.folder), self.plan.folder.trial(member.number)
        remedy = f"restore it from a copy, or move '{folder.path}' away: the same command trains the trial anew"
        before = {key_of(o): o for o in load_checked(run.overrides, "resume", remedy, list)}
        for override in overrides:
            key = key_of(override)
            if key in member.params and before.get(key, override) != override:
                lost = f"trial {member.number} began with {before[key]}, which it has lost"
                raise Damaged("hydra.sweeper.study_name", place, lost, remedy)
        return True

    def objectives(self, run: RunFolder) -> list[float]:
        """Return the objectives of a finished run."""
        return run_values(run, self.settings.objective, self.settings.direction)

    def claim(self) -> FrozenTrial | None:
        """Take the next trial from the queue; None if there is none left."""
        return self.patiently(lambda: self.queue.claim(self.plan.n_trials))

    def configure(self, trial: FrozenTrial) -> Configuration:
        """Return what the trial tries, and store its parameters."""
        plan, space = self.plan, self.plan.space
        if plan.order is not None:
            configuration = plan.order[trial.number]
        else:
            configuration = plan.propose(self._study, trial, trial.number)
        for name, distribution in space.distributions(configuration).items():
            if name not in trial.params:
                internal = distribution.to_internal_repr(configuration.params[name])
                self.storage.set_trial_param(trial_id(trial), name, internal, distribution)
        return configuration

    def open(self, trial: FrozenTrial) -> Means:
        """Set a failed attempt aside. Return what the trial's runs recorded before; the storage may lack some of it."""
        if n := n_failed(trial):
            self.plan.folder.set_aside(trial.number, n)
        name, direction = self._watched()
        means = Means(self.settings.seeds, direction, trial.intermediate_values)
        for place in range(self.settings.seeds):
            run = self.plan.folder.trial(trial.number, self.replicate(place))
            if run.journal.exists() and (curve := journal.curves(run.journal).get(name)) is not None:
                means.extend(place, curve.steps.tolist(), curve.values.tolist())
        self._means[trial_id(trial)] = means
        return means

    def runs(self, configuration: Configuration) -> list[dict[str, Any]]:
        """Return the values of each run of a trial, one for each seed."""
        groups, values = configuration.groups, configuration.values
        if self.settings.seeds == 1:
            return [values]
        seed = self.composer.readable(groups, values)["seed"]
        return [{**values, "seed": seed + place} for place in range(self.settings.seeds)]

    def replicate(self, place: int) -> int | None:
        """Return the number of a run among those of its trial; None if the trial has one run alone."""
        return None if self.settings.seeds == 1 else place

    def membership(self, trial: FrozenTrial, replicate: int | None, configuration: Configuration) -> Membership:
        """Return the place of a run in the study, and what the study sampled for it."""
        return Membership(
            study=self.plan.name,
            folder=self.plan.folder.path,
            parent=self.plan.uid,
            number=trial.number,
            replicate=replicate,
            params={**configuration.groups, **configuration.values},
        )

    def record_failure(self, run: RunFolder, config: DictConfig, error: Exception, member: Membership) -> None:
        """Record the failure of a run, unless the run has done so itself."""
        if journal.status(run.journal) != "FAILED":  # it has yet to begin, or was finished
            config.resume = None
            record_refused(run, config, error, member)

    def reporter(
        self, trial: FrozenTrial, means: Means, place: int, n_epochs: int
    ) -> Callable[[int, Mapping[str, float]], None]:
        """Return what to call after each epoch of a run: it reports the trial's value so far.

        It raises Pruned if the pruner says so. Without a pruner it reports the validation loss,
        which shows how far the trial has come.
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
        """Return the metric that is reported while a trial trains, and its direction."""
        if self.settings.prunes:
            return self.settings.objective[0], self.settings.direction[0]
        return "val/loss", "minimize"

    def _says_prune(self, trial: FrozenTrial, means: Means) -> bool:
        """Report the steps that the storage lacks, and ask the pruner about each.

        While the storage is out of reach the trial goes on, and they wait for the next report.
        """
        try:
            for step, value in means.unreported():
                self.storage.set_trial_intermediate_value(trial_id(trial), step, value)
                prunes = self.settings.prunes and self._study.pruner.prune(
                    self._study, self.storage.get_trial(trial_id(trial))
                )
                means.reported(step)
                if prunes:
                    return True
        except Exception as error:  # the trial need not suffer for it
            if not (self.patiently.is_outage(error) or isinstance(error, OSError)):
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
        means = self._means.pop(trial_id(trial), None)

        def tell() -> None:
            if not self.queue.is_mine(trial):  # it was silent for too long, or this has been told
                log.warning("trial %d is no longer this worker's", trial.number)
                return
            if means is not None:  # a finished trial takes no more of them
                for step, value in means.unreported():
                    self.storage.set_trial_intermediate_value(trial_id(trial), step, value)
                    means.reported(step)
            for name, value in (attrs or {}).items():
                self.storage.set_trial_user_attr(trial_id(trial), name, value)
            self._study.tell(self.storage.get_trial(trial_id(trial)).number, values, state)

        self.patiently(tell)
