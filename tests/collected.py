"""A callback of Hydra's that keeps what each job returned, for the tests of Hydra's own suites."""

import pickle
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class Collect(Callback):
    """Keeps a file for each job, by its number: a job may run in any process."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        self._folder.mkdir(exist_ok=True)
        (self._folder / str(config.hydra.job.num)).write_bytes(cloudpickle.dumps(job_return))


def collected(folder: Path) -> list[JobReturn]:
    """What the jobs returned, in the order of their numbers."""
    return [pickle.loads(path.read_bytes()) for path in sorted(folder.iterdir(), key=lambda path: int(path.name))]
