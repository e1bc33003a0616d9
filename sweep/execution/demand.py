"""What a command needs of a launcher: how many workers, as which jobs, and until when."""

import math
from collections.abc import Callable
from pathlib import Path

from sweep.config.overrides import setting
from sweep.execution.plan import WorkerPlan
from sweep.execution.queue import TrialQueue
from sweep.storage.retry import RetryPolicy

_MOST_LOST = 3  # workers in a row, without any progress of the study in between


class Demand:
    """The workers that a command wants for its study.

    Attributes:
        plan: the plan of the workers.
        most_lost: how many workers in a row may be lost without any progress of the study.
    """

    def __init__(self, queue: TrialQueue, plan: WorkerPlan, is_over: Callable[[], bool]) -> None:
        """Prepare to look at the study.

        Args:
            queue: the queue of the study's trials.
            plan: the plan of the workers.
            is_over: returns True if the study is complete or has to stop.
        """
        self.plan = plan
        self.most_lost = max(_MOST_LOST, plan.settings.max_retries)
        self._queue, self._is_over = queue, is_over
        self._patiently = RetryPolicy(plan.settings.storage)

    def is_over(self) -> bool:
        """Return True if the study is complete or has to stop."""
        return self._patiently(self._is_over)

    def has_work(self) -> bool:
        """Return True if there is a trial that a new worker could claim."""
        return self._patiently(lambda: self._queue.has_work(self.plan.n_trials))

    def n_jobs(self) -> int:
        """Return how many jobs are useful now: enough for all workers, unless fewer trials are left."""
        n_left = self._patiently(lambda: self._queue.n_left(self.plan.n_trials))
        return math.ceil(min(self.plan.settings.n_jobs, max(1, n_left)) / self.plan.n_tasks)

    def progress(self) -> tuple[int, int]:
        """Return how many attempts are finished, and how many epochs all of them have reported."""
        return self._patiently(self._queue.progress)

    def job(self) -> list[str]:
        """Return the overrides of a job."""
        plan = self.plan
        is_application = plan.space.composer.application is not None
        return [
            *plan.space.composer.fixed,
            *plan.space.composer.options(plan.space.first_groups()),
            setting("hydra.sweep.dir", str(plan.folder.path)),
            f"hydra.sweep.subdir=workers/{plan.launch}-${{hydra.job.num}}",
            "hydra.output_subdir=null",
            *(["hydra/job_logging=none", "hydra.job.chdir=false"] if is_application else ["hydra/job_logging=worker"]),
        ]

    def has_begun(self) -> bool:
        """Return True if a worker of this command has started, also on a machine that does not share the folder."""
        return bool(self.locks()) or self._patiently(lambda: self._queue.has_begun(self.plan.launch))

    def locks(self) -> list[Path]:
        """Return the lock files of the workers that have started, whether dead or alive."""
        return list(self.plan.folder.workers.glob(f"{self.plan.launch}-*.lock"))
