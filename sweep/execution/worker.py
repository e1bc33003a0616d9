"""A study's worker: what it has to know, and how it begins.

A launcher runs a `Worker` as it runs any Hydra job. Workers know of each other only through the study's storage, so
more of them may join at any time, from other processes or machines.
"""

import math
import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, TrialState

from sweep.config.guard import check_hydra
from sweep.config.output_folders import register
from sweep.execution.sequential import SequentialExecutor
from sweep.search.samplers import draw, make_sampler
from sweep.search.settings import StudySettings
from sweep.search.space import Configuration, Space
from sweep.tracking.folders import StudyFolder
from sweep.utils.command_line import secure_streams
from sweep.utils.errors import ConfigError, one_line
from sweep.utils.signals import StopRequest, stop_on_signal

optuna.logging.set_verbosity(optuna.logging.ERROR)  # what there is to say, the study says itself


@dataclass
class Worker:
    """Everything a worker has to know, so that a launcher may send it to another process or machine.

    settings, space: of the study. known: parameters of the first trials by number, which are not sampled. order: what
    each trial tries, where nothing is sampled at all. uid: of the study's own record. seed: of its sampler.
    stop_before: the time, in seconds since 1970, at which trials stop at the end of their epoch and no other starts.
    first: number of the first trial whose failure counts. n_shares: workers that share a machine's cores. controller:
    the process that launches them.
    """

    settings: StudySettings
    name: str
    folder: StudyFolder
    space: Space
    n_trials: int
    known: list[dict[str, Any]]
    order: list[Configuration] | None
    uid: str
    seed: int
    stop_before: float = math.inf
    first: int = 0
    n_shares: int = 1
    controller: int = field(default_factory=os.getpid)
    launch: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def __setstate__(self, state: dict[str, Any]) -> None:
        register()  # in a fresh process the config's resolvers are unknown
        self.__dict__.update(state)

    def __call__(self, cfg: DictConfig) -> int | None:
        """The job that a launcher runs. Returns the number of the signal that stopped it, if one did."""
        secure_streams()
        check_hydra(HydraConfig.get())
        index = HydraConfig.get().job.num
        _take_device(index, self.n_shares)
        _share_cores(self.n_shares)
        name = f"{self.launch}-{index}"
        with self.folder.worker_lock(name), stop_on_signal() as stop:
            shift = self._shift(name, stop)
            signum = shift.run()
        if shift.is_orphaned():
            os._exit(0)  # nobody waits for the answer, and loky would keep the process
        return signum

    def _shift(self, name: str, stop: StopRequest) -> SequentialExecutor:
        if self.settings.pack == 1:
            return SequentialExecutor(self, name, stop)
        from sweep.execution.packed import PackedExecutor  # which loads torch

        return PackedExecutor(self, name, stop)

    def rehearse(self, numbers: Iterable[int]) -> list[Configuration]:
        """What trials of those numbers would try in a study without any other. Raises ConfigError."""
        if self.order is not None:
            return [self.order[number] for number in numbers]
        study = optuna.create_study(directions=self.settings.direction)
        trial = optuna.trial.create_trial(state=TrialState.WAITING)
        trial._trial_id = study._storage.create_new_trial(study._study_id, trial)
        try:
            return [self.propose(study, trial, number) for number in numbers]
        except (ValueError, NotImplementedError, RuntimeError) as error:
            raise ConfigError("hydra/sweeper/sampler", f"cannot search this: {one_line(error)}") from error

    def propose(self, study: optuna.Study, trial: FrozenTrial, number: int) -> Configuration:
        """The configuration of trial `number`, by a sampler of its own, which the study is left with."""
        study.sampler = make_sampler(self.settings.sampler, self.seed, number, self.space)
        if number < len(self.known):
            return draw(study, trial, study.sampler, self.space, self.known[number])
        return draw(study, trial, study.sampler, self.space, {}, tried=self.known)

    @property
    def stop_request(self) -> Path:
        """A file that asks the workers of this launch to stop, wherever they run."""
        return self.folder.workers / f"{self.launch}.stop"


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
