"""The job that a launcher runs: a study's worker, from its begin to its end.

Workers know of each other only through the study's storage, so more of them may join at any time, from other processes
or machines.
"""

import os
from dataclasses import dataclass

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sweep.config.guard import check_hydra
from sweep.execution.executors import make_executor
from sweep.execution.plan import WorkerPlan
from sweep.execution.session import WorkerSession
from sweep.storage.quiet import quiet_optuna
from sweep.utils.command_line import secure_streams
from sweep.utils.signals import stop_on_signal


@dataclass
class Worker:
    """A task function for a launcher, which may send it to another process or machine."""

    plan: WorkerPlan

    def __call__(self, cfg: DictConfig) -> int | None:
        """Train the study's trials as one job of a launcher. Return what `work` does."""
        secure_streams()
        check_hydra(HydraConfig.get())
        with quiet_optuna():
            return self.work(HydraConfig.get().job.num)

    def work(self, index: int = 0) -> int | None:
        """Train the study's trials, as the worker of that number.

        Returns the number of the signal that stopped the worker, or None if none did.
        """
        plan = self.plan
        _take_device(index, plan.n_shares)
        _share_cores(plan.n_shares)
        name = f"{plan.launch}-{index}"
        with plan.folder.worker_lock(name), stop_on_signal() as stop:
            session = WorkerSession(plan, name, stop)
            signum = make_executor(session).run()
        if session.is_orphaned():
            os._exit(0)  # nobody waits for the answer, and loky would keep the process
        return signum


def _take_device(index: int, n_workers: int) -> None:
    """Leaves the worker one of the machine's GPUs, in turn; a worker that is alone sees them all."""
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
    """Torch's threads, so that workers side by side do not crowd each other out."""
    if n_workers == 1:
        return
    import torch

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // n_workers))
