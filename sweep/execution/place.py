"""The place of a worker on its node, which decides its cores and its GPU.

What a scheduler has given to this process is respected: the GPUs in CUDA_VISIBLE_DEVICES, and Slurm's cores. Only what
several workers of a node have in common is divided among them.
"""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from sweep.search.resources import Resources
from sweep.utils.environment import environment

_DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Place:
    """The place of a worker.

    Attributes:
        rank: its number among the workers that share its GPUs, from 0.
        n_workers: how many share them.
        n_threads: how many threads it should use; None leaves it to torch.
        resources: what `hydra.sweeper.resources` gives to a worker.
    """

    rank: int
    n_workers: int
    n_threads: int | None
    resources: Resources = field(default_factory=Resources)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Restrict this process to its GPU and its cores, inside the `with` block.

        A worker that shares no GPUs sees all of them. This sets CUDA_VISIBLE_DEVICES, so it must come before the
        process first uses CUDA.
        """
        with ExitStack() as restored:
            if (devices := self._devices()) is not None:
                restored.enter_context(environment({_DEVICES: ",".join(devices)}))
            if self.n_threads is not None:
                import torch

                restored.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(self.n_threads)
            yield

    def _devices(self) -> list[str] | None:
        """Return the GPUs of the worker; None for all that this process sees."""
        gpus = self.resources.gpus
        if gpus == 0:
            return []
        if (self.n_workers == 1 and gpus is None) or not (devices := visible_devices()):
            return None
        if gpus is None:
            return [devices[self.rank % len(devices)]]
        n = max(1, int(gpus))
        first = self.rank // self.resources.n_on_a_gpu * n
        return [devices[(first + i) % len(devices)] for i in range(min(n, len(devices)))]


def place_of(index: int, n_shares: int, resources: Resources | None = None) -> Place:
    """Return the place of a worker in this process.

    Args:
        index: the number of the worker in its launch.
        n_shares: how many workers of the launch share what this process may use: the machine, or the share of it that
            a scheduler gave to a task.
        resources: what `hydra.sweeper.resources` gives to a worker.
    """
    resources = resources or Resources()
    n_tasks, task = _slurm_tasks()
    n_cores = len(os.sched_getaffinity(0))
    n_own = min(n_cores, _slurm_cores(n_tasks) or n_cores)
    n_threads = None if n_shares == 1 and n_own == n_cores else max(1, n_own // n_shares)
    n_threads = resources.cpus or n_threads
    rank = index % n_shares
    if n_tasks > 1 and not _have_own_gpus():
        return Place(task * n_shares + rank, n_tasks * n_shares, n_threads, resources)
    return Place(rank, n_shares, n_threads, resources)


def task_number() -> int:
    """Return the number of this process among the tasks of its job, from 0, as submitit and Slurm number them."""
    return int(os.environ.get("SUBMITIT_LOCAL_GLOBALID") or os.environ.get("SLURM_PROCID") or 0)


def _slurm_tasks() -> tuple[int, int]:
    """Return how many tasks of this job step are on this node, and the number of this one; 1 and 0 outside Slurm."""
    counts: list[int] = []  # by node; Slurm writes 2(x3),1 for 2, 2, 2, 1
    for n, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(n)] * int(times or 1)
    node = int(os.environ.get("SLURM_NODEID") or 0)
    return (counts[node], int(os.environ.get("SLURM_LOCALID") or 0)) if node < len(counts) else (1, 0)


def _slurm_cores(n_tasks: int) -> int | None:
    """Return how many cores Slurm has given to this task; None outside Slurm. It may not be bound to them."""
    if of_task := os.environ.get("SLURM_CPUS_PER_TASK"):
        return int(of_task)
    of_node = os.environ.get("SLURM_CPUS_ON_NODE")
    return max(1, int(of_node) // n_tasks) if of_node else None


def _have_own_gpus() -> bool:
    """Return True if Slurm has given each task GPUs of its own, not all tasks of a node the same."""
    of_node = os.environ.get("SLURM_GPUS_ON_NODE")
    return "SLURM_GPUS_PER_TASK" in os.environ or bool(of_node and len(visible_devices()) < int(of_node))


def visible_devices() -> list[str]:
    """Return the GPUs that this process sees, as CUDA_VISIBLE_DEVICES lists them."""
    visible = os.environ.get(_DEVICES)
    if visible is not None:
        return [device for device in visible.split(",") if device.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
