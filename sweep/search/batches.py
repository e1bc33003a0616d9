"""Batch sizes that the data allow: those larger than the training split are removed from a study's space."""

from dataclasses import replace
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from sweep.config.epochs import UNLIMITED, epoch_size, n_reports
from sweep.config.schema import Config
from sweep.data import Datasets
from sweep.data.assignment import assign
from sweep.search.ranges import range_text
from sweep.trial.checks import check_batch_size
from sweep.trial.prepare import BATCH_SIZE, data_key, with_fitting_batch
from sweep.trial.remembered import RememberedData
from sweep.utils.errors import ConfigError


class TrainingSplits:
    """The sizes of training splits, cached by the parts of a config that choose the data. Pickles without the data."""

    def __init__(self, n_folds: int = 1) -> None:
        """Make the cache. `n_folds`: on how many folds a study trains each configuration."""
        self.load = RememberedData()
        self._n_folds = n_folds
        self._sizes: dict[str, int] = {}

    def size(self, config: Config) -> int:
        """Return the number of samples to train on: the smallest of all folds, unless the config names its fold.

        It is UNLIMITED for a torch dataset that does not say it, and for a training function, which loads its own data.

        Raises ConfigError for data that cannot be loaded or divided.
        """
        if config.is_function:
            return UNLIMITED
        key = data_key(config)
        if key not in self._sizes:
            if self._n_folds == 1 or config.split.folds is not None:
                self._sizes[key] = self.load(config).n_train
            else:
                self._sizes[key] = self._smallest(config)
        return self._sizes[key]

    def _smallest(self, config: Config) -> int:
        samples, n = self.load.samples(config), self._n_folds
        if isinstance(samples, Datasets):
            problem = "is for arrays, but the data are torch datasets, which are divided already; leave it out"
            raise ConfigError("hydra.sweeper.folds", problem)
        try:
            folds = [assign(samples, replace(config.split, folds=n, fold=fold)) for fold in range(n)]
        except ConfigError as error:
            key = "hydra.sweeper.folds" if error.key == "split.folds" else error.key
            raise ConfigError(key, error.problem) from error
        return min(len(rows.train) for rows in folds)

    def n_epochs(self, config: Config) -> int:
        """Return the number of the last epoch that a run reports, unless it ends early."""
        return n_reports(config.trainer, epoch_size(self.size(config), config.trainer, config.loader))

    def fit(self, config: Config) -> Config:
        """Return the config with a batch size that fits, as it would be trained.

        Raises ConfigError if the batch size was given and is too large.
        """
        n_train = self.size(config)
        fitting = with_fitting_batch(config, n_train)
        check_batch_size(fitting, n_train)
        return fitting


def depends_on(key: str) -> bool:
    """Return whether the number of training samples may depend on the key."""
    return key.startswith(("data.", "split."))


def cut(distribution: BaseDistribution, n_train: int) -> BaseDistribution | None:
    """Return the part of a range of batch sizes that a training split can fill; None if nothing is left."""
    if isinstance(distribution, CategoricalDistribution):
        fitting = [c for c in distribution.choices if not isinstance(c, int | float) or c <= n_train]
        return CategoricalDistribution(fitting) if fitting else None
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, step = distribution.low, distribution.step
    if distribution.high <= n_train:
        return distribution
    if low > n_train:
        return None
    if isinstance(distribution, IntDistribution):
        high = int(low) + (n_train - int(low)) // int(step or 1) * int(step or 1)
        return IntDistribution(int(low), high, log=distribution.log, step=int(step or 1))
    high = float(n_train) if step is None else low + (n_train - low) // step * step
    return FloatDistribution(low, high, log=distribution.log, step=step)


def cut_text(distribution: BaseDistribution, left: BaseDistribution | None, n_train: int) -> str:
    """Return a line for the user about a range of batch sizes that was cut. left: the rest; None if it is empty."""
    reason = f"there are {n_train} samples to train on"
    if left is None:
        return f"{BATCH_SIZE}: is set to {n_train} and not searched; {reason}, fewer than {range_text(distribution)}"
    return f"{BATCH_SIZE}: {range_text(left)} instead of {range_text(distribution)}; {reason}"


def largest(distribution: BaseDistribution, at_most: Any) -> Any:
    """Return the largest batch size of the range that is not above `at_most`; None if there is none."""
    left = cut(distribution, int(at_most))
    if isinstance(left, CategoricalDistribution):
        return max((c for c in left.choices if isinstance(c, int | float)), default=None)
    return None if left is None else getattr(left, "high", None)
