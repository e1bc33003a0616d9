"""Run one command on a study: check it, begin or resume it, start its workers, show and record what they do."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweep.execution.attempts import failed, numbered, trials_of
from sweep.execution.failures import too_many_failures
from sweep.execution.node import announce_stop
from sweep.execution.plan import WorkerPlan
from sweep.execution.queue import PROBLEM, TrialQueue, is_complete
from sweep.execution.queues import open_queue
from sweep.execution.steering import release_stopped, requeue
from sweep.execution.worker import Worker
from sweep.execution.worker_pool import WorkerPool
from sweep.storage.lock import StudyLock
from sweep.storage.optuna_internals import storage_of
from sweep.storage.retry import RetryPolicy
from sweep.storage.url import kind, recorded_url
from sweep.study.best_model import keep_best_model
from sweep.study.prepared import PreparedStudy
from sweep.study.progress import Output, Watch, print_outcome
from sweep.study.recording import Recording
from sweep.study.restoring import Gathering, refuse_unshared
from sweep.study.results import start_facts, write_results
from sweep.study.stop import Stop
from sweep.tracking.run_recorder import stored_text
from sweep.tracking.upload_process import UploadProcess
from sweep.utils.errors import Interrupted, StudyFailed
from sweep.utils.terminal import say

_STARVES = (
    "hydra/sweeper/pruner: this sampler learns from complete trials alone, and the pruner leaves it few; "
    "with hydra/sweeper/pruner=none it learns from all"
)


class StudyRunner:
    """Runs a study. Several commands may run the same study at once; they share its trials."""

    def __init__(
        self,
        prepared: PreparedStudy,
        output: Output = Output.ALL,
        upload_process: Callable[[Path], UploadProcess] | None = None,
    ) -> None:
        """Store the arguments.

        Args:
            prepared: the study.
            output: how much to print.
            upload_process: returns the upload process of an `output_dir` that several studies share; by default the
                study starts its own.
        """
        self._prepared, self._output, self._upload_process = prepared, output, upload_process
        self._settings, self._launching = prepared.spec.settings, prepared.spec.launching
        self._folder = prepared.folder
        self._stop = Stop(prepared.folder, self._launching.embedded)
        self._patiently = RetryPolicy(self._settings.storage, is_over=lambda: self._stop.signum is not None)

    def run(self) -> optuna.Study | None:
        """Run the trials that the study still lacks, and write its results.

        Returns:
            The study; None for a dry run. After a timeout it may lack trials.

        Raises:
            ConfigError: the study cannot be run.
            StudyFailed: too many trials failed.
            Interrupted: a signal stopped the study. The same command resumes it.
            DiskFull: a worker in this process found no room.
            Unsent: the study is complete, but MLflow cannot get all of it, because a record is damaged.
        """
        with self._patiently.one_line():
            return self._run()

    def _run(self) -> optuna.Study | None:
        prepared = self._prepared
        prepared.find_bounds(self._say)
        plan = prepared.check()
        for line in prepared.adjustments():
            self._say(line)
        if self._settings.starves_its_sampler:
            self._say(_STARVES)
        if self._settings.dry_run:
            from sweep.study.dry_run import dry_run

            dry_run(plan, prepared.base)
            return None
        study, plan = prepared.open()
        n_before = len(self._patiently(lambda: study.get_trials(deepcopy=False)))  # counts failed attempts too
        before = self._patiently(lambda: trials_of(study))
        if self._may_be_elsewhere:
            refuse_unshared(before, self._folder, prepared.store, plan.copies)
        again = failed(before, plan.n_trials)
        self._announce(before, plan.n_trials, again)
        if again and self._settings.retry_failed:
            self._patiently(lambda: requeue(study, self._folder, self._settings.storage, again))
            before = self._patiently(lambda: trials_of(study))
        release_stopped(before, self._folder)
        stop_before = prepared.began + (self._settings.timeout or float("inf"))
        plan = replace(plan, first=n_before, stop_before=stop_before)
        if plan.copies is not None:
            plan.copies.begin()
        url, max_retries = self._settings.storage, self._settings.max_retries
        queue = self._patiently(
            lambda: open_queue(storage_of(study), url, prepared.name, self._folder, "controller", max_retries)
        )
        with contextlib.closing(self._recording(study, plan)) as recording:
            recording.update(before)
            live = sys.stderr.isatty() and not self._settings.debug
            pass_on = self._passing_on(study, plan)
            watch = Watch(study, self._folder, plan.n_trials, recording, self._output, live, self._patiently, pass_on)
            is_here = self._settings.debug or self._launching.is_here
            with self._stop.by_signals(plan.stop_request, is_here), watch:
                if not self._patiently(lambda: self._is_over(study, queue, plan)):
                    signum = self._work(study, queue, plan)
                    self._stop.signum = self._stop.signum or signum
            trials = self._patiently(lambda: trials_of(study))
            complete = is_complete(trials, plan.n_trials)
            failure = self._patiently(lambda: self._failure(study, queue, plan, complete))
            recording.update(trials)
            self._patiently(lambda: self._write_results(study))
            ending = "FAILED" if failure else "FINISHED" if complete else "KILLED"
            if recording.is_kept and self._stop.signum is None and self._upload_process is None:
                self._keep_model()
            recording.end(ending, prepared.config.tracking.close_timeout_s)
        if self._output is Output.ALL:
            application = plan.space.composer.application
            script, uri = application and application.script, prepared.store.uri
            self._patiently(lambda: print_outcome(study, self._folder, plan.n_trials, uri, script))
        if failure is not None:
            message = failure.user_attrs.get(PROBLEM, "no reason recorded")
            raise StudyFailed(prepared.name, failure.number, message, self._folder.trial(failure.number).path)
        if self._stop.signum is not None:
            raise Interrupted(self._stop.signum)
        if recording.damage is not None:
            raise recording.damage
        return study

    def _say(self, line: str) -> None:
        if self._output is Output.ALL:
            say(line, flush=True)

    def _announce(self, before: Sequence[FrozenTrial], n_trials: int, again: Sequence[int]) -> None:
        where = os.path.relpath(self._folder.path)
        n_done = sum(t.state.is_finished() for t in before[:n_trials])
        if n_done:
            self._say(f"study {self._prepared.name}: resuming, {n_done} of {n_trials} trials are done; in {where}")
        else:
            self._say(f"study {self._prepared.name}: {n_trials} trials; in {where}")
        if again and self._settings.retry_failed:
            self._say(f"failed trials that are trained again: {', '.join(map(str, again))}")

    def _recording(self, study: optuna.Study, plan: WorkerPlan) -> Recording:
        prepared, config = self._prepared, self._prepared.config
        command, output_dir = prepared.spec.command, prepared.output_dir
        facts = start_facts(prepared.name, plan.uid, self._settings, plan.space, config.experiment_name, command)
        facts["output_dir"] = os.path.relpath(output_dir, self._folder.path)
        facts["storage"] = recorded_url(self._settings.storage)
        facts["n_trials"] = plan.n_trials
        return Recording(
            study,
            self._folder,
            facts,
            stored_text(config),
            prepared.store,
            output_dir,
            self._patiently,
            Gathering(plan.copies, self._folder, self._settings.n_runs),
            self._upload_process,
        )

    def _work(self, study: optuna.Study, queue: TrialQueue, plan: WorkerPlan) -> int | None:
        """Start workers, and wait for them. Return the signal that stopped the one in this process, or None."""
        self._folder.workers.mkdir(parents=True, exist_ok=True)
        self._folder.launch_mark(plan.launch).touch()
        if self._settings.debug:
            return Worker(replace(plan, n_shares=1)).work()
        launcher = self._launching.launcher(Worker(plan), self._folder.path)
        is_over = partial(self._is_over, study, queue, plan)
        with plan.space.splits.load.shared() if plan.n_shares > 1 else contextlib.nullcontext():
            return WorkerPool(launcher, queue, plan, is_over, self._launching.is_here).work()

    @property
    def _may_be_elsewhere(self) -> bool:
        """Whether machines that do not share the folder may train the study. With other storages, they need it."""
        return kind(self._settings.storage) == "postgresql"

    def _passing_on(self, study: optuna.Study, plan: WorkerPlan) -> Callable[[], None]:
        """Return a function that passes a request to stop on to machines that do not share the folder, once."""
        is_left = self._may_be_elsewhere

        def pass_on() -> None:
            nonlocal is_left
            if is_left and plan.stop_request.exists():
                announce_stop(study, plan)
                is_left = False

        return pass_on

    def _write_results(self, study: optuna.Study) -> None:
        with StudyLock(self._settings.storage, self._folder):  # another command may write them at the same time
            write_results(study, self._folder, self._prepared.space)

    def _keep_model(self) -> None:
        """Make what the best trial leaves besides its weights. A comparison, which has many studies, leaves it out."""
        config = self._prepared.config
        if config.is_function:  # which saves what it wants to keep
            return
        problem = keep_best_model(self._folder, config.tracking, self._prepared.space.splits.load)
        if problem is not None:
            say(f"warning: {problem}", err=True)

    def _is_over(self, study: optuna.Study, queue: TrialQueue, plan: WorkerPlan) -> bool:
        """Return True if nothing is left to train, or the study was stopped, timed out or has too many failures."""
        if self._stop.signum is None and plan.stop_request.exists():  # of another process, as `sweep.studies stop`
            self._stop.signum = signal.SIGTERM
        if self._stop.signum is not None or time.time() >= plan.stop_before:
            return True
        return queue.is_settled(plan.n_trials) or self._failure(study, queue, plan, complete=False) is not None

    def _failure(self, study: optuna.Study, queue: TrialQueue, plan: WorkerPlan, complete: bool) -> FrozenTrial | None:
        """Return the first failed trial if the study, complete or not, has too many, otherwise None.

        Trials that failed in earlier commands do not count.
        """
        n = queue.n_by_state(plan.first)
        n_failed, n_finished = n.get(TrialState.FAIL, 0), sum(n[state] for state in n if state.is_finished())
        if not too_many_failures(n_finished, n_failed, self._settings.max_failure_rate, complete):
            return None
        trials = study.get_trials(deepcopy=False)[plan.first :]
        return numbered([next(t for t in trials if t.state == TrialState.FAIL)])[0]
