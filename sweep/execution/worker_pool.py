"""Start a study's workers with Hydra's launcher, wait for them, and start them again if the launcher loses them."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import optuna
from hydra.plugins.launcher import Launcher

from sweep.config.overrides import setting
from sweep.execution.plan import WorkerPlan
from sweep.execution.queue import TrialQueue
from sweep.storage.lock import StudyLock
from sweep.storage.optuna_internals import storage_of
from sweep.storage.retry import RetryPolicy
from sweep.utils import gc_control
from sweep.utils.errors import ConfigError, DiskFull, one_line
from sweep.utils.terminal import say

_POLL_S = 0.2
_MOST_LOST_LAUNCHES = 3  # in a row, without a trial that finished in between


class WorkerPool:
    """The workers of one command."""

    def __init__(
        self,
        launcher: Launcher,
        study: optuna.Study,
        plan: WorkerPlan,
        is_over: Callable[[], bool],
    ) -> None:
        """Prepare the pool. Nothing is launched yet.

        Args:
            launcher: Hydra's launcher, set up to run a `Worker` with this plan.
            study: the study.
            plan: the plan of the workers.
            is_over: returns True if the study is complete or has to stop.
        """
        self._launcher = launcher
        self._study, self._plan, self._is_over = study, plan, is_over
        settings = plan.settings
        lock = StudyLock(settings.storage, plan.folder)
        self._queue = TrialQueue(storage_of(study), plan.name, plan.folder, lock, "controller", settings.max_retries)
        self._patiently = RetryPolicy(settings.storage)

    def work(self) -> int | None:
        """Launch workers, as often as needed, until the study is over.

        Returns:
            The number of the signal that stopped a worker; None if no signal did.

        Raises:
            ConfigError: the launcher cannot start workers, or a worker found the config unusable.
            DiskFull: a worker found no room.
            Exception: workers were lost too often in a row without a trial that finished.
        """
        first_job = itertools.count(0, self._plan.settings.n_jobs)
        n_lost = 0
        if self._plan.settings.n_jobs > 1:  # a single worker runs in this process
            gc_control.resume()
        while True:
            n_before = self._n_finished()
            lost: Exception | None = None
            try:
                returns = self._launcher.launch(self._jobs(), initial_job_idx=next(first_job))
                signals = [r.return_value for r in returns if r.return_value is not None]
                if signals:
                    return signals[0]
            except (ConfigError, DiskFull):
                raise
            except Exception as error:
                if not self._locks() and not self._patiently(self._is_over):  # a signal also ends workers that start
                    raise ConfigError("hydra/launcher", f"cannot start workers: {one_line(error)}") from error
                lost = error
            self._await_workers()
            while not self._patiently(self._is_over) and not self._patiently(self._has_work):
                time.sleep(_POLL_S)  # workers of other commands train the last trials
            if self._patiently(self._is_over):
                return None
            n_lost = n_lost + 1 if self._n_finished() == n_before else 0
            if n_lost > max(_MOST_LOST_LAUNCHES, self._plan.settings.max_retries):
                raise lost or RuntimeError("the launcher's workers end without running a trial")
            if lost is not None:
                say(f"warning: workers were lost ({one_line(lost, 120)}); launching them again", err=True)

    def _jobs(self) -> list[list[str]]:
        """Return the overrides of each job to launch: as many jobs as workers are useful."""
        plan = self._plan
        is_application = plan.space.composer.application is not None
        job = [
            *plan.space.composer.fixed,
            *plan.space.composer.options(plan.space.first_groups()),
            setting("hydra.sweep.dir", str(plan.folder.path)),
            f"hydra.sweep.subdir=workers/{plan.launch}-${{hydra.job.num}}",
            "hydra.output_subdir=null",
            *(["hydra/job_logging=none", "hydra.job.chdir=false"] if is_application else ["hydra/job_logging=worker"]),
        ]
        return [job] * min(plan.settings.n_jobs, max(1, plan.n_trials - self._n_finished()))

    def _await_workers(self) -> None:
        """Wait until all workers of this launch are dead. Some launchers return while workers are still running."""
        mine = self._locks()
        while any(self._plan.folder.worker_lives(lock.stem) for lock in mine):
            time.sleep(_POLL_S)

    def _locks(self) -> list[Path]:
        """Return the lock files of the workers that have started, whether dead or alive."""
        return list(self._plan.folder.workers.glob(f"{self._plan.launch}-*.lock"))

    def _has_work(self) -> bool:
        return self._queue.has_work(self._plan.n_trials)

    def _n_finished(self) -> int:
        trials = self._patiently(lambda: self._study.get_trials(deepcopy=False))
        return sum(t.state.is_finished() for t in trials)
