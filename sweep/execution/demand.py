"""What a command needs of a launcher: how many workers, as which jobs, and until when."""

import math
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from sweep.config.overrides import setting
from sweep.execution.attempts import numbered
from sweep.execution.plan import WorkerPlan
from sweep.execution.queue import OWNER
from sweep.execution.queues import open_queue
from sweep.storage.optuna_internals import storage_of
from sweep.storage.retry import RetryPolicy

_MOST_LOST = 3  # workers in a row, without any progress of the study in between


class Demand:
    """The workers that a command wants for its study.

    Attributes:
        plan: the plan of the workers.
        most_lost: how many workers in a row may be lost without any progress of the study.
    """

    def __init__(self, study: optuna.Study, plan: WorkerPlan, is_over: Callable[[], bool]) -> None:
        """Prepare to look at the study.

        Args:
            study: the study.
            plan: the plan of the workers.
            is_over: returns True if the study is complete or has to stop.
        """
        settings, storage = plan.settings, storage_of(study)
        self.plan = plan
        self.most_lost = max(_MOST_LOST, settings.max_retries)
        self._study, self._is_over = study, is_over
        self._patiently = RetryPolicy(settings.storage)
        self._queue = self._patiently(
            lambda: open_queue(storage, settings.storage, plan.name, plan.folder, "controller", settings.max_retries)
        )

    def is_over(self) -> bool:
        """Return True if the study is complete or has to stop."""
        return self._patiently(self._is_over)

    def has_work(self) -> bool:
        """Return True if there is a trial that a new worker could claim."""
        return self._patiently(lambda: self._queue.has_work(self.plan.n_trials))

    def n_jobs(self) -> int:
        """Return how many jobs are useful now: enough for all workers, unless fewer trials are left."""
        n_trials = self.plan.n_trials
        n_left = n_trials - sum(t.state.is_finished() for t in numbered(self._trials())[:n_trials])
        return math.ceil(min(self.plan.settings.n_jobs, max(1, n_left)) / self.plan.n_tasks)

    def progress(self) -> tuple[int, int]:
        """Return how many attempts are finished, and how many epochs all of them have reported."""
        trials = self._trials()
        return sum(t.state.is_finished() for t in trials), sum(len(t.intermediate_values) for t in trials)

    def _trials(self) -> list[FrozenTrial]:
        return self._patiently(lambda: self._study.get_trials(deepcopy=False))

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
        own = f"/{self.plan.launch}-"
        return bool(self.locks()) or any(own in t.user_attrs.get(OWNER, "") for t in self._trials())

    def locks(self) -> list[Path]:
        """Return the lock files of the workers that have started, whether dead or alive."""
        return list(self.plan.folder.workers.glob(f"{self.plan.launch}-*.lock"))
