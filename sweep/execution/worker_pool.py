"""Start a study's workers with Hydra's launcher, wait for them, and start them again if the launcher loses them."""

import itertools
import time
from collections.abc import Callable

from hydra.plugins.launcher import Launcher

from sweep.execution.demand import Demand
from sweep.execution.job_pool import JobPool, stopped
from sweep.execution.plan import WorkerPlan
from sweep.execution.queue import TrialQueue
from sweep.execution.submitted import submitted_jobs
from sweep.utils import gc_control
from sweep.utils.errors import ConfigError, DiskFull, WorkersLost, one_line
from sweep.utils.terminal import say

_POLL_S = 0.2


class WorkerPool:
    """The workers of one command."""

    def __init__(
        self,
        launcher: Launcher,
        queue: TrialQueue,
        plan: WorkerPlan,
        is_over: Callable[[], bool],
        is_here: bool,
    ) -> None:
        """Prepare the pool. Nothing is launched yet.

        Args:
            launcher: Hydra's launcher, set up to run a `Worker` with this plan.
            queue: the queue of the study's trials.
            plan: the plan of the workers.
            is_over: returns True if the study is complete or has to stop.
            is_here: True if the launcher runs a single worker, in this process.
        """
        self._launcher, self._plan, self._is_here = launcher, plan, is_here
        self._demand = Demand(queue, plan, is_over)

    def work(self) -> int | None:
        """Launch workers, as often as needed, until the study is over.

        Returns:
            The number of the signal that stopped the worker in this process; None if no signal did.

        Raises:
            ConfigError: the launcher cannot start workers, or a worker found the config unusable.
            DiskFull: a worker found no room.
            WorkersLost: workers were lost too often in a row without any progress of the study.
        """
        if self._plan.settings.n_jobs > 1:  # a single worker runs in this process
            gc_control.resume()
        jobs = submitted_jobs(self._launcher)
        if jobs is not None:
            return JobPool(jobs, self._demand).work()
        return self._launch_together()

    def _launch_together(self) -> int | None:
        """Launch all workers at once, wait for all, and launch them again as long as there is work."""
        demand = self._demand
        first_job = itertools.count(0, self._plan.settings.n_jobs)
        n_lost = 0
        while True:
            before = demand.progress()
            lost: Exception | None = None
            problem = None
            try:
                returns = self._launcher.launch([demand.job()] * demand.n_jobs(), initial_job_idx=next(first_job))
                signals = [r.return_value for r in returns if r.return_value is not None]
                if signals and self._is_here:
                    return signals[0]
                problem = stopped(signals)
            except (ConfigError, DiskFull):
                raise
            except Exception as error:
                if not demand.has_begun() and not demand.is_over():  # a signal also ends workers that start
                    raise ConfigError("hydra/launcher", f"cannot start workers: {one_line(error)}") from error
                lost, problem = error, one_line(error, 120)
            self._await_workers()
            while not demand.is_over() and not demand.has_work():
                time.sleep(_POLL_S)  # workers of other commands train the last trials
            if demand.is_over():
                return None
            n_lost = n_lost + 1 if demand.progress() == before else 0
            if n_lost > demand.most_lost:
                raise WorkersLost(problem or "they find no trial to train") from lost
            if problem is not None:
                say(f"warning: workers were lost ({problem}); launching them again", err=True)

    def _await_workers(self) -> None:
        """Wait until all workers of this launch are dead. Some launchers return while workers are still running."""
        mine = self._demand.locks()
        while any(self._plan.folder.worker_lives(lock.stem) for lock in mine):
            time.sleep(_POLL_S)
