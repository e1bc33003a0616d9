"""What every executor does with a trial besides training it: claim, configure, report, store how it ended."""

import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweep.config.metrics import REPORTED, RETURNED, is_curve
from sweep.config.schema import Config
from sweep.execution.attempts import n_failed
from sweep.execution.failures import too_many_failures
from sweep.execution.plan import WorkerPlan
from sweep.execution.queue import PROBLEM
from sweep.execution.queues import open_queue
from sweep.execution.replicates import Means
from sweep.execution.run_end import Ended
from sweep.search import build
from sweep.search.pruners import compares_ranks, compares_rungs
from sweep.search.space import Configuration
from sweep.storage.optuna_internals import trial_id
from sweep.storage.retry import RetryPolicy
from sweep.storage.storage import open_storage, reading_rungs
from sweep.tracking import journal
from sweep.tracking.chunks import note_copied
from sweep.tracking.run_copies import Copying
from sweep.utils.errors import (
    TRACEBACK_HINT,
    BeingTrained,
    Damaged,
    DamagedJournal,
    DiskFull,
    Interrupted,
    Pruned,
    TrialTimedOut,
    one_line,
)
from sweep.utils.signals import StopRequest

log = logging.getLogger("sweep")
failures = logging.getLogger("sweep.failures")
failures.addHandler(logging.NullHandler())  # else Python prints tracebacks in a program that configures no logging

_LOOK_EVERY_S = 5.0  # for a trial, while there is none
_POLL_S = 0.2  # for a request to stop

Announce = Callable[[int | None], None]  # called with the id of a trial that begins, and with None once it is trained


class WorkerSession:
    """One worker's work on its study, from its first trial to its last.

    Call storage operations through `patiently`, which retries them while the storage cannot be reached.
    """

    def __init__(self, plan: WorkerPlan, name: str, stop: StopRequest, announce: Announce = lambda trial: None) -> None:
        self.plan, self.settings, self.stop = plan, plan.settings, stop
        self._announce = announce
        self.before_claim: Callable[[], None] = lambda: None
        self.composer, self.splits = plan.space.composer, plan.space.splits
        self.patiently = RetryPolicy(self.settings.storage, is_over=self.is_asked_to_stop)
        self._is_child = os.getppid() == plan.launcher_pid
        self.storage = self.patiently(lambda: open_storage(self.settings.storage, plan.folder))
        pruner = build.pruner(self.settings.pruner)
        self._study = self.patiently(
            lambda: optuna.load_study(study_name=plan.name, storage=self.storage, pruner=pruner)
        )
        url, max_retries = self.settings.storage, self.settings.max_retries
        self.queue = self.patiently(lambda: open_queue(self.storage, url, plan.name, plan.folder, name, max_retries))
        self.load = plan.space.splits.load
        self.copying = None if plan.copies is None else Copying(plan.copies)
        self._means: dict[int, Means] = {}  # of the trials that are training, by Optuna's id
        self._stops: dict[int, StopRequest] = {}  # of the same trials, and of those that were released
        self._late_at: dict[int, float] = {}  # when they will have taken too long
        self._has_timed_out = False
        self._trial_timeout = None if self.settings.debug else self.settings.trial_timeout  # one may be in a debugger

    def is_over(self) -> bool:
        """Return True if no more trials should be claimed: on a stop request, a timeout or too many failures."""
        if self.is_asked_to_stop() or self._is_out_of_time():
            return True
        n = self.queue.n_by_state(self.plan.first)
        n_finished = sum(count for state, count in n.items() if state.is_finished())
        return too_many_failures(n_finished, n.get(TrialState.FAIL, 0), self.settings.max_failure_rate)

    def is_asked_to_stop(self) -> bool:
        """Return True after a signal, a stop request of the study's command, or the death of that command."""
        return self.stop.signum is not None or self.is_orphaned() or self.plan.stop_request.exists()

    def _is_out_of_time(self) -> bool:
        return time.time() >= self.plan.stop_before

    def heed_requests(self, trials: Iterable[FrozenTrial]) -> None:
        """Make training trials save and stop at the end of their epoch if that was requested.

        All of them stop after a stop request or the timeout; a single one if somebody asked for a stop of it alone.
        """
        if self.stop.signum is None:
            self._has_timed_out = self._is_out_of_time() and not self.is_asked_to_stop()
            if self._has_timed_out or self.is_asked_to_stop():
                self.stop.signum = signal.SIGTERM
        stopped = self.plan.folder.stopped_trials()
        for trial in trials:
            if trial.number in stopped:
                self.stop_of(trial).signum = signal.SIGTERM

    def stop_of(self, trial: FrozenTrial) -> StopRequest:
        """Return the request to stop that trial, which is also set if the worker has to stop."""
        return self._stops.get(trial_id(trial), self.stop)

    def signum(self, stopped: KeyboardInterrupt | None = None) -> int | None:
        """Return the number of the signal that stopped the worker; None if none did, or if the study timed out."""
        if self._has_timed_out:
            return None
        if stopped is None or isinstance(stopped, Interrupted):
            return self.stop.signum if stopped is None else stopped.signum
        return signal.SIGINT

    def is_orphaned(self) -> bool:
        """Return True if this process is a child of the study's command and the command has died."""
        return self._is_child and os.getppid() != self.plan.launcher_pid

    def settle(self, trial: FrozenTrial, values_of: Callable[[], list[float]]) -> None:
        """Call `values_of`, which trains the trial and returns its objectives, and store how the trial ended.

        Args:
            trial: the claimed trial.
            values_of: what it raises makes the trial fail, except as below. An `Ended` says how the trial ended.

        Raises:
            Damaged: a record of the trial is damaged. The trial is released.
            DiskFull: there is no room. The trial is released.
            KeyboardInterrupt: a signal stopped the trial. The caller has to release it.
            Exception: any other error too, if the study is in debug mode. It is stored as the trial's failure first.
        """
        try:
            try:
                values = values_of()
            finally:
                self._announce(None)
        except Ended as end:
            self._tell(trial, end.state, None, end.attrs)
        except BeingTrained:  # its owner lives after all, although its heartbeats had stopped
            self.patiently(lambda: self.queue.return_to_owner(trial))
        except DamagedJournal as error:
            self.release(trial)
            folder = self.plan.folder.trial(trial.number).path
            raise error.with_remedy(
                f"move '{folder}' away and run the same command again: it trains trial {trial.number} anew"
            ) from error
        except (DiskFull, Damaged):  # the user has to solve this first; the next trial would meet it too
            self.release(trial)
            raise
        except Exception as error:
            if self.composer.application is None:  # its log, and what it prints, are the application's own
                failures.exception("trial %d failed", trial.number)
            self._tell(trial, TrialState.FAIL, None, {PROBLEM: one_line(error).removesuffix(TRACEBACK_HINT)})
            if self.settings.debug:
                raise
        else:
            self._tell(trial, TrialState.COMPLETE, values)

    def claim(self) -> FrozenTrial | None:
        """Claim the next trial from the queue; None if there is none left."""
        self.before_claim()
        return self.patiently(lambda: self.queue.claim(self.plan.n_trials))

    def release(self, trial: FrozenTrial) -> None:
        """Give a claimed trial back to the queue, so that any worker can resume it."""
        self.patiently(lambda: self.queue.release(trial))

    def await_work(self) -> bool:
        """Wait for a trial to claim while workers elsewhere train some: they may die. Return False if none can come."""
        n_trials, look_at = self.plan.n_trials, 0.0
        while not self.is_asked_to_stop() and not self._is_out_of_time():
            if time.monotonic() >= look_at:
                if self.patiently(self.is_over):
                    return False
                if self.patiently(lambda: self.queue.has_work(n_trials)):
                    return True
                if not self.patiently(lambda: self.queue.is_shared(n_trials)):
                    return False
                look_at = time.monotonic() + _LOOK_EVERY_S
            time.sleep(_POLL_S)
        return False

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
        """Move the files of a failed attempt aside, and read what the trial's runs have recorded so far.

        From now on, `stop_of` returns the trial's own request to stop.

        The journals are read, not the storage: the storage may lack the last epochs.
        """
        if n := n_failed(trial):
            self.plan.folder.set_aside(trial.number, n)
        self._restore(trial)
        name, direction = self._watched()
        means = Means(self.settings.n_runs, direction, trial.intermediate_values)
        self._stops[trial_id(trial)] = StopRequest(above=self.stop)
        self._late_at[trial_id(trial)] = time.monotonic() + (self._trial_timeout or math.inf)
        self._announce(trial_id(trial))
        for place in range(self.settings.n_runs):
            run = self.plan.folder.trial(trial.number, self.replicate(place))
            if run.journal.exists() and (curve := journal.curves(run.journal).get(name)) is not None:
                means.extend(place, curve.steps.tolist(), curve.values.tolist())
        self._means[trial_id(trial)] = means
        return means

    def _restore(self, trial: FrozenTrial) -> None:
        """Bring what a worker with another folder has left of the trial, if there are copies."""
        owner, folder = self.queue.previous_owner(trial), self.plan.folder
        replicates = [self.replicate(place) for place in range(self.settings.n_runs)]
        if self.copying is not None and owner and folder.worker_lives(owner.rpartition("/")[2]) is None:
            asked = self.is_asked_to_stop
            if not self.copying.restore(folder, trial.number, n_failed(trial), replicates, asked):
                raise Interrupted(self.stop.signum or signal.SIGTERM)
        for run in (folder.trial(trial.number, replicate) for replicate in replicates):
            run.copy_mark.unlink(missing_ok=True)  # from now on it is trained here
            if self.copying is None and run.copied.exists():
                note_copied(run)  # there will be no further copies

    def leave(self) -> None:
        """Note that this worker ends in order. If the storage cannot be reached, others see its silence."""
        with suppress(Exception):
            self.queue.leave()

    def close(self) -> None:
        """Wait for the copies that are being made."""
        if self.copying is not None:
            self.copying.close()

    def runs(self, configuration: Configuration) -> list[dict[str, Any]]:
        """Return the values of each run of a trial: one run for each seed, or for each fold of each seed."""
        groups, values, n_folds = configuration.groups, configuration.values, self.settings.folds
        if self.settings.n_runs == 1:
            return [values]
        first = self.composer.readable(groups, values)["seed"]
        seeds = [{**values, "seed": first + i} for i in range(self.settings.seeds)]
        if n_folds == 1:
            return seeds
        return [{**own, "split.folds": n_folds, "split.fold": fold} for own in seeds for fold in range(n_folds)]

    def replicate(self, place: int) -> int | None:
        """Return the number of a run among the runs of its trial; None if the trial has only one."""
        return None if self.settings.n_runs == 1 else place

    def reporter(
        self, trial: FrozenTrial, means: Means, place: int, n_epochs: int
    ) -> Callable[[int, Mapping[str, float]], None]:
        """Return a function to call after each epoch of a run, with the epoch and its metrics.

        It reports the trial's value so far to the storage: the objective, or if trials cannot be pruned the validation
        loss, or the first objective of a training function that is a curve, so that the study can show progress.
        Before the last epoch, it raises Pruned if the pruner stops the trial, and TrialTimedOut if the trial has taken
        too long.

        Args:
            trial: the trial.
            means: the values of all runs of the trial.
            place: the number of the run in its trial, from 0.
            n_epochs: the number of epochs of the run.
        """
        name, _ = self._watched()

        def report(epoch: int, metrics: Mapping[str, float]) -> None:
            if self._trial_timeout and epoch < n_epochs and time.monotonic() > self._late_at[trial_id(trial)]:
                raise TrialTimedOut(self._trial_timeout)
            if name not in metrics:  # not a curve; it is read when the trial ends
                return
            means.add(place, epoch, metrics[name])
            if self._says_prune(trial, means) and means.n_epochs < n_epochs:  # after the last epoch, let it complete
                raise Pruned(epoch)

        return report

    def n_epochs(self, config: Config) -> int:
        """Return the number of the last epoch that a run of that config reports, unless it ends early."""
        trainer = config.trainer
        if config.is_function:
            return self.settings.max_epochs or sys.maxsize
        if trainer.max_steps is None and trainer.val_interval == 1:
            return trainer.n_passes
        return self.splits.n_epochs(config)

    def _watched(self) -> tuple[str, str]:
        """Return the metric that is reported while a trial trains, and its direction."""
        if self.settings.objective == [RETURNED]:  # what it reports is a preview of that
            return REPORTED, self.settings.direction[0]
        if self.settings.prunes:
            return self.settings.objective[0], self.settings.direction[0]
        if self.composer.is_function:  # of the metrics that it reports, only the objectives are known
            curves = [n for n, name in enumerate(self.settings.objective) if is_curve(name)] or [0]
            return self.settings.objective[curves[0]], self.settings.direction[curves[0]]
        return "val/loss", "minimize"

    def _says_prune(self, trial: FrozenTrial, means: Means) -> bool:
        """Report the steps that the storage lacks, and ask the pruner about each. Return True if it prunes the trial.

        If the storage cannot be reached, the trial continues, and the next report catches up.
        """
        try:
            for step, value in means.unreported():
                self.storage.set_trial_intermediate_value(trial_id(trial), step, value)
                prunes = self.settings.prunes and self._prunes(trial)
                means.reported(step)
                if prunes:
                    return True
        except Exception as error:  # an outage of the storage must not fail the trial
            if not (self.patiently.is_outage(error) or isinstance(error, OSError)):
                raise
            log.warning("trial %d: cannot report epoch %d yet (%s)", trial.number, means.n_epochs, one_line(error))
        return False

    def _prunes(self, trial: FrozenTrial) -> bool:
        """Return whether the pruner prunes the trial at the step that was reported last."""
        pruner, now = self._study.pruner, self.storage.get_trial(trial_id(trial))
        if not compares_rungs(pruner):
            return pruner.prune(self._study, now)
        with reading_rungs(self.storage, now, only_ranks=compares_ranks(pruner)):
            return pruner.prune(self._study, now)

    def _tell(
        self,
        trial: FrozenTrial,
        state: TrialState,
        values: list[float] | None,
        attrs: Mapping[str, str] | None = None,
    ) -> None:
        """Store how a trial ended, unless another worker has reclaimed it.

        An outage of the storage repeats the inner function. So it first checks whether an earlier try succeeded.
        """
        means = self._means.pop(trial_id(trial), None)
        self._stops.pop(trial_id(trial), None)
        self._late_at.pop(trial_id(trial), None)
        self.plan.folder.stop_request(trial.number).unlink(missing_ok=True)  # it came too late

        def tell() -> None:
            if not self.queue.is_mine(trial):  # reclaimed by another worker, or stored by a try whose reply was lost
                log.warning("trial %d is no longer this worker's", trial.number)
                return
            if means is not None:  # Optuna accepts no reports for a finished trial
                for step, value in means.unreported():
                    self.storage.set_trial_intermediate_value(trial_id(trial), step, value)
                    means.reported(step)
            for name, value in (attrs or {}).items():
                self.storage.set_trial_user_attr(trial_id(trial), name, value)
            self._study.tell(self.storage.get_trial(trial_id(trial)).number, values, state)

        self.patiently(tell)
