"""Training functions that log to MLflow by themselves, to the run of their trial (`tracking.share_run`)."""

from dataclasses import dataclass

from sweep.config.schema import Config
from sweep.tracking.folders import RunFolder
from sweep.tracking.shared_run import shared_runs, unshared
from sweep.tracking.store import Destination, Store
from sweep.training.trial import Trial
from sweep.trial.training import Training


def sharing(training: Training, to: Destination) -> Training:
    """Return a training that gets its trial's run in MLflow, if its config asks for that.

    If a function of the user's own does not ask for it and logs to MLflow by itself, one line says how to.
    """
    if to.store.uri is None or not training.config.is_function:
        return training
    return _SharedTraining(training, to.store)


@dataclass
class _SharedTraining:
    """A training function of the user's own, called while MLflow's environment variables name its trial's run."""

    training: Training
    store: Store

    @property
    def config(self) -> Config:
        return self.training.config

    @property
    def n_epochs(self) -> int:
        return self.training.n_epochs

    def __call__(self, trial: Trial) -> dict[str, float]:
        if not self.config.tracking.share_run:
            with unshared("hydra.sweeper." * self.config.is_application + "tracking.share_run"):
                return self.training(trial)
        trial.describe()  # the run is made of the record, which begins now
        with shared_runs(self.store).shared(RunFolder(trial.folder)):
            return self.training(trial)
