"""The job that a launcher runs: a worker of a study, from start to end.

Workers share nothing but the study's storage and folder. So more of them may join at any time, from other processes or
machines.
"""

import os
import signal
import time
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sweep.config.guard import check_hydra
from sweep.execution.executors import make_executor
from sweep.execution.node import heeding_stops, shares_folder, uploading
from sweep.execution.origin import Origin
from sweep.execution.place import place_of, task_number
from sweep.execution.plan import WorkerPlan
from sweep.execution.session import Announce, WorkerSession
from sweep.execution.supervision import supervise
from sweep.storage.quiet import quiet_optuna
from sweep.utils import late_compiler
from sweep.utils.command_line import secure_streams
from sweep.utils.parent import outliving
from sweep.utils.signals import stop_on_signal, warning_signal

_SAVING_S, _POLL_S = 60.0, 0.2  # how long a job's other workers may take to save their trials


@dataclass
class Worker:
    """A task function for a launcher, which may pickle it and send it to another process or machine."""

    plan: WorkerPlan

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what has to be known before the plan can be unpickled, and then the plan."""
        return _unpickled, (Origin.of_this_process(), cloudpickle.dumps(self.plan))

    def __call__(self, cfg: DictConfig) -> int | None:
        """Train the study's trials as one job of a launcher. Return what `work` does.

        If the study's command has died meanwhile, and this process is a child of it, the process exits instead.
        """
        secure_streams()
        late_compiler.postpone()
        if self.plan.space.composer.application is None:
            check_hydra(HydraConfig.get())
        plan = self.plan
        index = HydraConfig.get().job.num * plan.n_tasks + (task_number() if plan.n_tasks > 1 else 0)
        with quiet_optuna(), outliving(plan.launcher_pid):
            signum = self.work(index)
            if signum == warning_signal():
                self._pass_on(index // plan.n_tasks)
            return signum

    def work(self, index: int = 0) -> int | None:
        """Train the study's trials, until the study is over or a stop is requested.

        They are trained in this process, or in one that it supervises.

        Args:
            index: the number of the worker in its launch.

        Returns:
            The number of the signal that stopped the worker; None if no signal did.
        """
        if not self.plan.is_supervised:
            return self._train(index)
        supervised = Worker(replace(self.plan, launcher_pid=os.getpid()))
        return supervise(self.plan, partial(supervised._train, index))

    def _train(self, index: int, announce: Announce = lambda trial: None) -> int | None:
        """Train in this process. See `work` and `supervise`."""
        plan = self.plan
        with ExitStack() as held:
            upload = None if shares_folder(plan) else held.enter_context(uploading(plan))
            name = plan.folder.new_worker(f"{plan.launch}-{index}")
            held.enter_context(place_of(index, plan.n_shares, plan.settings.resources).taken())
            held.enter_context(plan.folder.worker_lock(name))
            stop = held.enter_context(stop_on_signal())
            session = held.enter_context(closing(WorkerSession(plan, name, stop, announce)))
            if upload is not None:
                session.before_claim = upload.begin
                held.enter_context(heeding_stops(plan, session.storage))
            signum = make_executor(session).run()
            session.leave()
            return signum

    def _pass_on(self, job: int) -> None:
        """Pass a batch system's warning on to the launcher, now that the workers of the job have saved their trials.

        submitit's handler requeues the job and ends its processes, or it raises an error because the job may not run
        again. The study's command then starts another worker.
        """
        if not callable(signal.getsignal(warning_signal())):
            return
        plan, first = self.plan, job * self.plan.n_tasks
        own = {f"{plan.launch}-{first + task}" for task in range(plan.n_tasks)}
        deadline = time.monotonic() + _SAVING_S
        while own & {name.partition(".")[0] for name in plan.folder.live_workers()} and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        with suppress(Exception):
            signal.raise_signal(warning_signal())


def _unpickled(origin: Origin, plan: bytes) -> Worker:
    origin.take_over()  # it may be needed to import what the plan refers to
    return Worker(cloudpickle.loads(plan))
