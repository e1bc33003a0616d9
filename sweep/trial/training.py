"""Choose what trains a trial, train it, and record how it ended."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from sweep.config.schema import Config
from sweep.tracking.folders import RunFolder
from sweep.tracking.provenance import resume_command
from sweep.tracking.store import Store
from sweep.tracking.stored_run import study_command
from sweep.training.trial import Trial
from sweep.trial.builtin import BuiltInTraining
from sweep.trial.function import FunctionTraining
from sweep.trial.launch import LaunchedTraining
from sweep.trial.prepare import Data, load_data
from sweep.trial.recorded import RecordedTrial
from sweep.utils.errors import DISK_FULL, DiskFull, one_line

log = logging.getLogger("sweep")


class Training(Protocol):
    """A training function with its config. It sees nothing of the run but its trial."""

    @property
    def config(self) -> Config:
        """The config to record."""
        ...

    @property
    def n_epochs(self) -> int:
        """The number of the last epoch that is reported, unless training ends early; 0 if it is not known."""
        ...

    def __call__(self, trial: Trial) -> dict[str, float]:
        """Train the trial, from its checkpoint if it has one. Return single values, such as test metrics, by name."""
        ...


def make_training(
    config: Config, load: Callable[[Config], Data] = load_data, function: Callable[..., Any] | None = None
) -> Training:
    """Return what trains a trial of that config.

    Args:
        config: says whether a function of the user's own trains.
        load: loads and divides the data of sweep's own loop.
        function: the function of the user's own, if a program gives it as an object.

    Raises:
        ConfigError: the function cannot be loaded, or the data cannot be loaded or do not fit the config.
    """
    if not config.is_function:
        return BuiltInTraining(config, load)
    return FunctionTraining(config, function) if config.trainer.launch is None else LaunchedTraining(config)


def train(training: Training, trial: RecordedTrial, store: Store | None = None) -> dict[str, float]:
    """Train a trial, and record how it ended, also after an error or a signal.

    Args:
        training: trains it.
        trial: the trial. Its record is closed at the end.
        store: the tracking store of a run outside a study, for the command that resumes it.

    Returns:
        What the training returns.

    Raises:
        DiskFull: there is no room. What was recorded before stays complete.
        BaseException: what the training raises.
    """
    with trial, end_recorded(trial, store):
        return training(trial)


@contextmanager
def end_recorded(trial: RecordedTrial, store: Store | None = None) -> Iterator[None]:
    """Record how a trial ended: complete at the end of the `with` block, or early by what is raised inside.

    Raises:
        DiskFull: instead of an OSError that means a full disk.
        Interrupted: instead of an error that a request to stop may have caused.
    """
    with advise_when_full(RunFolder(trial.folder), store):
        try:
            yield
            trial.end()
        except BaseException as error:
            cause = trial.cause_of(error)
            trial.end(cause)
            if cause is error:
                raise
            log.warning("stopped by a signal, and then: %s", one_line(error))
            raise cause from error


@contextmanager
def advise_when_full(run: RunFolder, store: Store | None = None) -> Iterator[None]:
    """Turn an OSError that means a full disk into DiskFull, which names the command to resume with."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise DiskFull(str(error), study_command(run) or resume_command(run.path, store)) from error
