"""Run one command on a study: check it, begin or resume it, start its workers, show and record what they do."""

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import FrameType

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweep.config.function_node import needs_loop
from sweep.config.schema import Config, validate
from sweep.execution.attempts import failed, numbered, trials_of
from sweep.execution.failures import too_many_failures
from sweep.execution.node import announce_stop
from sweep.execution.plan import WorkerPlan
from sweep.execution.queue import PROBLEM, TrialQueue, is_complete
from sweep.execution.queues import open_queue
from sweep.execution.steering import release_stopped, requeue
from sweep.execution.worker import Worker
from sweep.execution.worker_pool import WorkerPool
from sweep.search.auto_bounds import tested_starts
from sweep.search.space import Space
from sweep.storage.lock import StudyLock
from sweep.storage.optuna_internals import storage_of
from sweep.storage.retry import RetryPolicy
from sweep.storage.url import kind, recorded_url
from sweep.study.best_model import keep_best_model
from sweep.study.identity import study_name
from sweep.study.opening import StudyEntry
from sweep.study.planning import check_plan, check_settings, make_plan
from sweep.study.progress import Output, Watch, print_outcome
from sweep.study.recording import Recording
from sweep.study.restoring import Gathering, refuse_unshared
from sweep.study.results import start_facts, write_results
from sweep.study.spec import StudySpec
from sweep.study.trial_result import TrialResult, trial_result
from sweep.tracking.folders import StudyFolder
from sweep.tracking.journal import status
from sweep.tracking.run_recorder import stored_text
from sweep.tracking.store import Store, tracking_store
from sweep.tracking.upload_process import UploadProcess
from sweep.trial.checks import warnings_of_size, warnings_of_undefined
from sweep.trial.function import check_sent
from sweep.trial.prepare import BATCH_SIZE, smaller_batch_text
from sweep.utils.errors import ConfigError, Interrupted, StudyFailed
from sweep.utils.paths import absolute, refuse_links_at, refuse_links_in
from sweep.utils.signals import interrupts_kept_from_children, stopping_signals, warning_signal
from sweep.utils.terminal import say

_STARVES = (
    "hydra/sweeper/pruner: this sampler learns from complete trials alone, and the pruner leaves it few; "
    "with hydra/sweeper/pruner=none it learns from all"
)


class StudyRunner:
    """Runs a study. Several commands may run the same study at once; they share its trials.

    Attributes:
        spec: the study's specification, before `bounds=auto` has changed its space.
        name: the study's name.
        folder: the study's folder.
    """

    def __init__(
        self,
        spec: StudySpec,
        output: Output = Output.ALL,
        upload_process: Callable[[Path], UploadProcess] | None = None,
    ) -> None:
        """Compose the default configuration and name the study. Nothing is written.

        Args:
            spec: the study's specification.
            output: how much to print.
            upload_process: returns the upload process of an `output_dir` that several studies share; by default the
                study starts its own.

        Raises:
            ConfigError: the default configuration cannot be composed, or the name or the output folder cannot be used.
        """
        self._began = time.time()
        self.spec, self._settings, self._output, self._upload_process = spec, spec.settings, output, upload_process
        self._plan: WorkerPlan | None = None
        self._stopped_by: int | None = None
        self._patiently = RetryPolicy(spec.settings.storage, is_over=lambda: self._stopped_by is not None)
        self._lowered: dict[str, None] = {}
        space = spec.space
        self._base = space.composer.compose(space.configured_groups(), {})
        auto = ["bounds=auto"] if space.bounds_are_auto else []
        self.name = study_name(spec.settings, space, self._base.choices, [*space.composer.fixed, *auto])
        self._output_dir = absolute(self._base.output_dir)
        self.folder = StudyFolder(self._output_dir / "studies" / self.name)
        refuse_links_at(self._output_dir)
        refuse_links_in(self.folder.path, "hydra.sweeper.study_name")
        self._entry = StudyEntry(self.name, self.folder, spec.settings, space)

    @property
    def space(self) -> Space:
        """The search space. After `run` began, it has the bounds that range tests suggest."""
        return self._entry.space

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
        if self.space.bounds_are_auto:
            self._find_bounds()
        plan = self.check()
        for line in self.adjustments():
            self._say(line)
        if self._settings.starves_its_sampler:
            self._say(_STARVES)
        if self._settings.dry_run:
            from sweep.study.dry_run import dry_run

            dry_run(plan, self._base)
            return None
        study, uid = self._entry.open(plan.uid)
        n_before = len(self._patiently(lambda: study.get_trials(deepcopy=False)))  # counts failed attempts too
        before = self._patiently(lambda: trials_of(study))
        if self._may_be_elsewhere:
            refuse_unshared(before, self.folder, self._store, plan.copies)
        again = failed(before, plan.n_trials)
        self._announce(before, plan.n_trials, again)
        if again and self._settings.retry_failed:
            self._patiently(lambda: requeue(study, self.folder, self._settings.storage, again))
            before = self._patiently(lambda: trials_of(study))
        release_stopped(before, self.folder)
        stop_before = self._began + (self._settings.timeout or float("inf"))
        plan = replace(plan, uid=uid, first=n_before, stop_before=stop_before)
        if plan.copies is not None:
            plan.copies.begin()
        url, max_retries = self._settings.storage, self._settings.max_retries
        queue = self._patiently(
            lambda: open_queue(storage_of(study), url, self.name, self.folder, "controller", max_retries)
        )
        with contextlib.closing(self._recording(study, plan)) as recording:
            recording.update(before)
            live = sys.stderr.isatty() and not self._settings.debug
            pass_on = self._passing_on(study, plan)
            watch = Watch(study, self.folder, plan.n_trials, recording, self._output, live, self._patiently, pass_on)
            with self._signals(plan), watch:
                if not self._patiently(lambda: self._is_over(study, queue, plan)):
                    signum = self._work(study, queue, plan)
                    self._stopped_by = self._stopped_by or signum
            trials = self._patiently(lambda: trials_of(study))
            failure = self._patiently(lambda: self._failure(study, queue, plan))
            recording.update(trials)
            self._patiently(lambda: self._write_results(study))
            complete = is_complete(trials, plan.n_trials)
            ending = "FAILED" if failure else "FINISHED" if complete else "KILLED"
            if recording.is_kept and self._stopped_by is None and self._upload_process is None:
                self._keep_model()
            recording.end(ending, self._config.tracking.close_timeout_s)
        if self._output is Output.ALL:
            self._patiently(lambda: print_outcome(study, self.folder, plan.n_trials, self._store.uri, self._script))
        if failure is not None:
            message = failure.user_attrs.get(PROBLEM, "no reason recorded")
            raise StudyFailed(self.name, failure.number, message, self.folder.trial(failure.number).path)
        if self._stopped_by is not None:
            raise Interrupted(self._stopped_by)
        if recording.damage is not None:
            raise recording.damage
        return study

    def request_stop(self) -> None:
        """Ask a run of the study, in another thread, to save its trials and stop, as a signal does."""
        self.folder.workers.mkdir(parents=True, exist_ok=True)
        self.check().stop_request.touch()

    @property
    def _script(self) -> str | None:
        application = self.space.composer.application
        return None if application is None else application.script

    @property
    def is_recorded(self) -> bool:
        """True if the study's record says that a command has finished the study."""
        return status(self.folder.run.journal) == "FINISHED"

    def trial_results(self) -> list[TrialResult] | None:
        """Return the study's trials if it is complete, otherwise None. Begins the study if it does not exist.

        Raises:
            ConfigError: the study cannot be run, or was started as another one.
        """
        plan = self.check()
        trials = trials_of(self._entry.open(plan.uid)[0])
        return (
            [trial_result(t, self.folder) for t in trials[: plan.n_trials]]
            if is_complete(trials, plan.n_trials)
            else None
        )

    def _find_bounds(self) -> None:
        """Give the space the bounds that range tests suggest, or suggested when the study was started.

        Raises ConfigError if a test suggests nothing, or the study was started with other tests.
        """
        if validate(self._base).is_function:  # before a test trains anything
            raise ConfigError("bounds", f"{needs_loop('auto')}; leave it out")
        starts = self._entry.stored_starts()
        if starts is None:
            starts = tested_starts(self.space, self._say)
        self._entry = replace(self._entry, space=self.space.starting_from(starts), starts=starts)
        self._base = self.space.composer.compose(self.space.configured_groups(), {})

    @cached_property
    def _config(self) -> Config:
        """The default configuration. Raises ConfigError."""
        return validate(self._base)

    @cached_property
    def _store(self) -> Store:
        """Where the study is uploaded to. Raises ConfigError."""
        return tracking_store(self._config.tracking, self._output_dir)

    def check(self) -> WorkerPlan:
        """Check everything that can be checked before a worker starts, and return the plan. Later calls only return it.

        Raises:
            ConfigError: for the first problem.
        """
        if self._plan is None:
            settings = self._settings
            check_settings(settings, self._base, self._store.uri)
            launching, n_jobs = self.spec.launching, settings.n_jobs
            launching.check(settings)
            shares = (launching.n_shares(n_jobs), launching.n_tasks)
            plan = make_plan(settings, self.space, self._base, self.name, self.folder, *shares)
            for groups in self.space.each_group_alone():
                self._fit(self.space.of_options(groups))
            self._entry.refuse_foreign_files()
            check_plan(plan, self._config)
            function = self.space.composer.function
            if function is not None and (plan.is_supervised or not self.spec.launching.is_here):
                check_sent(function)
            if plan.copies is not None and not settings.dry_run:
                plan.copies.check()
            self._plan = replace(plan, store=self._store)
        return self._plan

    @property
    def default_config(self) -> Config:
        """The default configuration as it would be trained. Raises ConfigError."""
        return self.space.splits.fit(self._config)

    def _fit(self, config: Config) -> None:
        """Note a default batch size that is lowered to fit the data. Raise ConfigError if a given one is too large."""
        if lowered := smaller_batch_text(config, self.space.splits.fit(config)):
            self._lowered[lowered] = None

    def adjustments(self) -> list[str]:
        """Return one line for each thing that the data make impossible, with what is done instead, and warnings."""
        is_searched = any(name.partition("[")[0] == BATCH_SIZE for name in self.space.named_ranges())
        lowered = self.space.cuts() or ([] if is_searched else [*self._lowered])  # a default that is searched is unused
        config = self.default_config
        if config.is_function:  # it may need no data
            return lowered
        data = self.space.splits.load(config)
        return [*lowered, *warnings_of_undefined(config, data), *warnings_of_size(config, data)]

    def _say(self, line: str) -> None:
        if self._output is Output.ALL:
            say(line, flush=True)

    def _announce(self, before: Sequence[FrozenTrial], n_trials: int, again: Sequence[int]) -> None:
        where = os.path.relpath(self.folder.path)
        n_done = sum(t.state.is_finished() for t in before[:n_trials])
        if n_done:
            self._say(f"study {self.name}: resuming, {n_done} of {n_trials} trials are done; in {where}")
        else:
            self._say(f"study {self.name}: {n_trials} trials; in {where}")
        if again and self._settings.retry_failed:
            self._say(f"failed trials that are trained again: {', '.join(map(str, again))}")

    def _recording(self, study: optuna.Study, plan: WorkerPlan) -> Recording:
        config = self._config
        facts = start_facts(self.name, plan.uid, self._settings, self.space, config.experiment_name, self.spec.command)
        facts["output_dir"] = os.path.relpath(self._output_dir, self.folder.path)
        facts["storage"] = recorded_url(self._settings.storage)
        facts["n_trials"] = plan.n_trials
        return Recording(
            study,
            self.folder,
            facts,
            stored_text(config),
            self._store,
            self._output_dir,
            self._patiently,
            Gathering(plan.copies, self.folder, self._settings.n_runs),
            self._upload_process,
        )

    def _work(self, study: optuna.Study, queue: TrialQueue, plan: WorkerPlan) -> int | None:
        """Start workers, and wait for them. Return the signal that stopped the one in this process, or None."""
        self.folder.workers.mkdir(parents=True, exist_ok=True)
        self.folder.launch_mark(plan.launch).touch()
        if self._settings.debug:
            return Worker(replace(plan, n_shares=1)).work()
        launching = self.spec.launching
        launcher = launching.launcher(Worker(plan), self.folder.path)
        with plan.space.splits.load.shared() if plan.n_shares > 1 else contextlib.nullcontext():
            is_over = partial(self._is_over, study, queue, plan)
            return WorkerPool(launcher, queue, plan, is_over, launching.is_here).work()

    @contextlib.contextmanager
    def _signals(self, plan: WorkerPlan) -> Iterator[None]:
        """Handle signals: the first makes all workers save and stop, the second ends this command at once.

        - A terminal that is closed may send SIGHUP twice, and a batch system its warning. A second one is ignored.
        - A Python program that runs a study is not ended: the second signal raises a KeyboardInterrupt in it.
        - Python handles signals only in the main thread, so a study in another thread handles none.
        """
        launching = self.spec.launching

        def stop(signum: int, frame: FrameType | None = None) -> None:
            if self._stopped_by is not None and signum in (signal.SIGHUP, warning_signal()):
                return
            if self._stopped_by is not None:
                if not launching.embedded:
                    os._exit(128 + signum)
                if frame is not None:
                    raise KeyboardInterrupt
                _thread.interrupt_main(signal.Signals(signum))
            self._stopped_by = signum
            self.folder.workers.mkdir(parents=True, exist_ok=True)
            plan.stop_request.touch()

        is_main = threading.current_thread() is threading.main_thread()
        before = {signum: signal.signal(signum, stop) for signum in (stopping_signals() if is_main else ())}
        in_this_process = self._settings.debug or launching.is_here
        try:
            with interrupts_kept_from_children(stop) if is_main and not in_this_process else contextlib.nullcontext():
                yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            plan.stop_request.unlink(missing_ok=True)

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
        with StudyLock(self._settings.storage, self.folder):  # another command may write them at the same time
            write_results(study, self.folder, self.space)

    def _keep_model(self) -> None:
        """Make what the best trial leaves besides its weights. A comparison, which has many studies, leaves it out."""
        if self._config.is_function:  # which saves what it wants to keep
            return
        problem = keep_best_model(self.folder, self._config.tracking, self.space.splits.load)
        if problem is not None:
            say(f"warning: {problem}", err=True)

    def _is_over(self, study: optuna.Study, queue: TrialQueue, plan: WorkerPlan) -> bool:
        """Return True if nothing is left to train, or the study was stopped, timed out or has too many failures."""
        if self._stopped_by is None and plan.stop_request.exists():  # of another process, as `sweep.studies stop`
            self._stopped_by = signal.SIGTERM
        if self._stopped_by is not None or time.time() >= plan.stop_before:
            return True
        return queue.is_settled(plan.n_trials) or self._failure(study, queue, plan) is not None

    def _failure(self, study: optuna.Study, queue: TrialQueue, plan: WorkerPlan) -> FrozenTrial | None:
        """Return the first failed trial if the study has too many, otherwise None.

        Trials that failed in earlier commands do not count.
        """
        n = queue.n_by_state(plan.first)
        n_failed, n_finished = n.get(TrialState.FAIL, 0), sum(n[state] for state in n if state.is_finished())
        is_complete = not queue.n_left(plan.n_trials)
        if not too_many_failures(n_finished, n_failed, self._settings.max_failure_rate, is_complete):
            return None
        trials = study.get_trials(deepcopy=False)[plan.first :]
        return numbered([next(t for t in trials if t.state == TrialState.FAIL)])[0]
