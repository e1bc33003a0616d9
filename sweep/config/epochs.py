"""Lengths of epochs, in samples and in updates."""

import sys

from sweep.config.nodes import Loader, Trainer
from sweep.utils.errors import ConfigError

UNLIMITED = sys.maxsize  # the size of a training set whose number of samples is not known


def steps_per_epoch(n_train: int, batch_size: int) -> int:
    """Return the number of batches in an epoch, each of which is one update. The last batch may be smaller."""
    return -(-n_train // batch_size)


def epoch_size(n_samples: int, trainer: Trainer, loader: Loader) -> int:
    """Return the number of samples that an epoch trains on.

    If the number of samples is UNLIMITED, an epoch has `trainer.max_steps` / `trainer.epochs` updates, rounded up.

    Raises:
        ConfigError: the number of samples is UNLIMITED, and `trainer.max_steps` is not set.
    """
    if n_samples == UNLIMITED:
        if trainer.max_steps is None:
            message = "is needed, since the training dataset has no length; set it to the number of updates of the run"
            raise ConfigError("trainer.max_steps", message)
        return steps_per_epoch(trainer.max_steps, trainer.n_passes) * trainer.update_size
    return n_samples - n_samples % trainer.batch_size if loader.drop_last else n_samples


def n_steps(trainer: Trainer, n_train: int) -> int:
    """Return the number of updates in the training, unless patience or a callback ends it earlier.

    n_train: the number of samples that an epoch trains on, as in the functions below.
    """
    n_updates = trainer.n_passes * steps_per_epoch(n_train, trainer.update_size)
    return n_updates if trainer.max_steps is None else min(n_updates, trainer.max_steps)


def report_steps(trainer: Trainer, n_train: int) -> int:
    """Return how many updates the number of a report counts: those of an epoch, or `trainer.val_steps`."""
    return trainer.val_steps or steps_per_epoch(n_train, trainer.update_size)


def validation_steps(trainer: Trainer, n_train: int) -> int:
    """Return the number of updates between two validations."""
    return trainer.val_steps or trainer.val_epochs * report_steps(trainer, n_train)


def n_reports(trainer: Trainer, n_train: int) -> int:
    """Return the number of the last report."""
    return -(-n_steps(trainer, n_train) // report_steps(trainer, n_train))
