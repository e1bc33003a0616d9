"""The training function behind `trainer=...`: sweep's own loop, on data that it loads."""

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sweep.config.schema import Config
from sweep.tracking.folders import RunFolder
from sweep.training.trial import Trial
from sweep.trial.prepare import (
    Data,
    check_data,
    load_data,
    prepared,
    smaller_batch_text,
    undefined_metrics,
    with_fitting_batch,
)
from sweep.utils import gc_control

if TYPE_CHECKING:
    from sweep.training.state import TrainState

log = logging.getLogger("sweep")


class BuiltInTraining:
    """Trains a trial, and comes to what its best weights are worth on the test split.

    config: what it trains by, with a batch size that the data can fill.
    """

    def __init__(self, config: Config, load: Callable[[Config], Data] = load_data) -> None:
        """Load the data and see whether they go with the config. Raises ConfigError."""
        self._data = load(config)
        self.config = with_fitting_batch(config, len(self._data.splits.train.x))
        check_data(self._data, self.config)
        self._lowered = smaller_batch_text(config, self.config)

    def __call__(self, trial: Trial) -> dict[str, float]:
        """Train, save the best weights, and return their metrics on the test split, by name.

        Raises ConfigError before anything is recorded, else as `TrainingLoop.run` does.
        """
        with prepared(self.config, self._data) as loop:
            if (state := trial.restore()) is not None:
                loop.load_state_dict(state)
            self._warn(trial)
            trial.describe(dataset=self._data.description, device=loop.device.type)
            gc_control.resume()
            try:
                loop.run(trial)
            finally:
                trial.finish(loop.reached())
            test = loop.test(self._data.samples.noise)
            n_weights = sum(weight.numel() for weight in loop.model.parameters() if weight.requires_grad)
            record_best(trial, loop, n_weights, test)
        return test

    def _warn(self, trial: Trial) -> None:
        """Say what the data make impossible; a study says it once, for all of its trials."""
        if trial.number is not None:
            return
        if self._lowered:
            log.warning(self._lowered)
        if names := undefined_metrics(self._data):
            why = "the targets do not vary there"
            log.warning("warning: %s: left out, since %s; raise split.val or split.test", " and ".join(names), why)


def record_best(trial: Trial, state: "TrainState", n_weights: int, test: Mapping[str, float]) -> None:
    """Save the best weights of a trial that is trained, and record what they come to on the test split."""
    from sweep.training import checkpoint

    assert state.best is not None
    best: dict[str, Any] = {"model": state.best.weights, "epoch": state.best.epoch, "value": state.best.value}
    checkpoint.save(RunFolder(trial.folder).best, {**best, "monitor": state.trainer.monitored})
    trial.finish({"model/n_weights": n_weights, **test})
