"""The plan of a study, which holds everything that a worker needs."""

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
from sweep.tracking.run_copies import RunCopies
from sweep.tracking.store import Store
from sweep.utils.errors import ConfigError, one_line

_NO_STORE = Store(None, None)


@dataclass
class WorkerPlan:
    """Everything that a worker needs. A launcher may pickle it and send it to another process or machine.

    Attributes:
        settings: the study's settings, `hydra.sweeper`.
        name: the study's name.
        folder: the study's folder.
        space: the study's search space.
        n_trials: the number of trials of the study.
        known: the params of the initial trials, by number. They are not sampled.
        order: the configuration of each trial, if nothing is sampled; otherwise None.
        uid: the id of the study's own record, to which the records of its trials refer.
        seed: the seed of the sampler.
        stop_before: a time in seconds since 1970. From then on no trial starts, and trials stop after their epoch.
        first: the number of the first trial whose failure counts.
        n_shares: the number of workers that share the cores and GPUs of a machine; 1 if a scheduler divides them.
        n_tasks: the number of workers that one job of the launcher starts.
        launcher_pid: the id of the process that launches the workers.
        launch: a random name of this launch, which the names of its workers contain.
        store: where the study is uploaded to.
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
    n_tasks: int = 1
    launcher_pid: int = field(default_factory=os.getpid)
    launch: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    store: Store = _NO_STORE

    def __setstate__(self, state: dict[str, Any]) -> None:
        register()  # a new process has not registered the config's resolvers yet
        self.__dict__.update(state)

    def rehearse(self, numbers: Iterable[int]) -> list[Configuration]:
        """Return what the trials with these numbers would try if the study had no others.

        Raises:
            ConfigError: the sampler cannot search this space.
        """
        if self.order is not None:
            return [self.order[number] for number in numbers]
        study = optuna.create_study(directions=self.settings.direction)
        trial = optuna.trial.create_trial(state=TrialState.WAITING)
        add_trial(study, trial)
        try:
            return [self.propose(study, trial, number) for number in numbers]
        except ConfigError:
            raise
        except Exception as error:  # of any kind, since the sampler may be the user's own
            raise ConfigError("hydra/sweeper/sampler", f"cannot search this: {one_line(error)}") from error

    def propose(self, study: optuna.Study, trial: FrozenTrial, number: int) -> Configuration:
        """Return the configuration of a trial. Sets `study.sampler` to a new sampler, seeded by the trial's number.

        Args:
            study: the results so far, from which the sampler learns.
            trial: Optuna's trial.
            number: the trial's number in the study.
        """
        study.sampler = make_sampler(self.settings.sampler, self.seed, number, self.space)
        if number < len(self.known):
            return draw(study, trial, study.sampler, self.space, self.known[number])
        return draw(study, trial, study.sampler, self.space, {}, tried=self.known)

    @property
    def copies(self) -> RunCopies | None:
        """The copies of the study's runs; None if `hydra.sweeper.artifacts` is not set."""
        url = self.settings.artifacts
        return None if url is None else RunCopies(url, self.name, self.uid)

    @property
    def is_supervised(self) -> bool:
        """Whether trials are trained in a process that can be killed: a function of the user's own may never return."""
        settings = self.settings
        return settings.trial_timeout is not None and self.space.composer.is_function and not settings.debug

    @property
    def stop_request(self) -> Path:
        """A file whose existence asks the workers of this launch to stop, on any machine."""
        return self.folder.launch_stop_request(self.launch)
