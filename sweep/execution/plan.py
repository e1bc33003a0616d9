"""Everything a worker has to know of its study."""

import math
import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweep.config.output_folders import register
from sweep.search.samplers import draw, make_sampler
from sweep.search.settings import StudySettings
from sweep.search.space import Configuration, Space
from sweep.storage.optuna_internals import add_trial
from sweep.tracking.folders import StudyFolder
from sweep.utils.errors import ConfigError, one_line


@dataclass
class WorkerPlan:
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

    def rehearse(self, numbers: Iterable[int]) -> list[Configuration]:
        """What trials of those numbers would try in a study without any other. Raises ConfigError."""
        if self.order is not None:
            return [self.order[number] for number in numbers]
        study = optuna.create_study(directions=self.settings.direction)
        trial = optuna.trial.create_trial(state=TrialState.WAITING)
        add_trial(study, trial)
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
