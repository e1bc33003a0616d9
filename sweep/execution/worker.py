"""The job that a launcher runs: a worker of a study, from start to end.

Workers share nothing but the study's storage and folder. So more of them may join at any time, from other processes or
machines.
"""

import os
from dataclasses import dataclass, replace
from functools import partial

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sweep.config.guard import check_hydra
from sweep.execution.executors import make_executor
from sweep.execution.plan import WorkerPlan
from sweep.execution.session import Announce, WorkerSession
from sweep.execution.supervision import supervise
from sweep.storage.quiet import quiet_optuna
from sweep.utils import late_compiler
from sweep.utils.command_line import secure_streams
from sweep.utils.parent import outliving
from sweep.utils.signals import stop_on_signal


@dataclass
class Worker:
    """A task function for a launcher, which may pickle it and send it to another process or machine."""

    plan: WorkerPlan

    def __call__(self, cfg: DictConfig) -> int | None:
        """Train the study's trials as one job of a launcher. Return what `work` does.

        If the study's command has died meanwhile, and this process is a child of it, the process exits instead.
        """
        secure_streams()
        late_compiler.postpone()
        if self.plan.space.composer.application is None:
            check_hydra(HydraConfig.get())
        with quiet_optuna(), outliving(self.plan.launcher_pid):
            return self.work(HydraConfig.get().job.num)

    def work(self, index: int = 0) -> int | None:
        """Train the study's trials, until the study is over or a stop is requested.

        They are trained in this process, or in one that it supervises.

        Args:
            index: the number of the worker. It decides which GPU the worker gets.

        Returns:
            The number of the signal that stopped the worker; None if no signal did.
        """
        if not self.plan.is_supervised:
            return self._train(index)
        supervised = Worker(replace(self.plan, launcher_pid=os.getpid()))
        return supervise(self.plan, partial(supervised._train, index))

    def _train(self, index: int, n: int = 0, announce: Announce = lambda trial: None) -> int | None:
        """Train in this process. See `work` and `supervise`; n: the number of processes of this worker before."""
        plan = self.plan
        _take_device(index, plan.n_shares)
        _share_cores(plan.n_shares)
        name = f"{plan.launch}-{index}" + (f".{n}" if n else "")
        with plan.folder.worker_lock(name), stop_on_signal() as stop:
            return make_executor(WorkerSession(plan, name, stop, announce)).run()


def _take_device(index: int, n_workers: int) -> None:
    """Restrict the worker to one of the machine's GPUs, in turn. A single worker sees all of them.

    This sets CUDA_VISIBLE_DEVICES, so it must come before the process first uses CUDA.
    """
    if n_workers == 1:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        devices = [str(i) for i in range(torch.cuda.device_count())]
    else:
        devices = [device for device in visible.split(",") if device.strip()]
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[index % len(devices)]


def _share_cores(n_workers: int) -> None:
    """Divide the machine's cores among its workers, by setting the number of torch's threads."""
    if n_workers == 1:
        return
    import torch

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // n_workers))
