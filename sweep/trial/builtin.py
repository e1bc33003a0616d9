"""The built-in training function, which `trainer` configures: sweep's own loop, on the data that the config names."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.config.epochs import n_reports
from sweep.config.schema import Config
from sweep.tracking.folders import RunFolder
from sweep.training.trial import Trial
from sweep.trial.checks import check_data, has_test, warnings_of_size, warnings_of_undefined
from sweep.trial.model_facts import FACTS, ModelFacts
from sweep.trial.model_files import has_files, shown_batches, write_model_files
from sweep.trial.predictions import PredictionBuffer
from sweep.trial.prepare import (
    Data,
    load_data,
    prepared,
    smaller_batch_text,
    with_fitting_batch,
)
from sweep.utils import gc_control

if TYPE_CHECKING:
    from sweep.training.loop import TrainingLoop
    from sweep.training.state import TrainState

log = logging.getLogger("sweep")


class BuiltInTraining:
    """Trains a trial, and measures its best weights on the test split.

    `config` is the given config. If its batch size is the default and larger than the training split, it is lowered to
    the size of the split.
    """

    def __init__(self, config: Config, load: Callable[[Config], Data] = load_data) -> None:
        """Load the data, and check that they fit the config.

        Args:
            config: what to train.
            load: loads and divides the data.

        Raises:
            ConfigError: the data cannot be loaded, or do not fit the config.
        """
        self._data = load(config)
        self.config = with_fitting_batch(config, self._data.n_train)
        check_data(self._data, self.config)
        self._lowered = smaller_batch_text(config, self.config)

    @property
    def n_epochs(self) -> int:
        """The number of the last epoch that is reported, unless training ends early."""
        return n_reports(self.config.trainer, self._data.epoch_size(self.config))

    def __call__(self, trial: Trial) -> dict[str, float]:
        """Train the trial, from its checkpoint if it has one, and save its best weights as best.pt.

        Returns:
            The metrics of the best weights on the test split, by name.

        Raises:
            ConfigError: the model, the optimizer or the schedule cannot be built. Nothing is recorded then.
            Damaged: the checkpoint cannot be read.
            Exception: everything that `TrainingLoop.run` raises. The record has begun then.
        """
        if trial.number is None:  # before metrics are computed once, which takes this memory
            _warn(warnings_of_size(self.config, self._data))
        with prepared(self.config, self._data) as loop:
            if (state := trial.restore()) is not None:
                loop.load_state_dict(state)
            if trial.number is None:  # in a study, the study itself warns, once
                _warn(([self._lowered] if self._lowered else []) + warnings_of_undefined(self.config, self._data))
            trial.describe(dataset=self._data.description, device=loop.device.type)
            gc_control.resume()
            try:
                loop.run(trial)
            finally:
                trial.finish(loop.reached())
            facts = ModelFacts.of(self.config, self._data, loop.task)
            buffer = self._buffer(trial, loop, facts)
            test = loop.test(self._data.content.noise, None if buffer is None else buffer.add)
            n_weights = sum(weight.numel() for weight in loop.model.parameters() if weight.requires_grad)
            record_best(trial, loop, n_weights, test, facts)
            if buffer is not None:
                if not has_test(self._data):
                    buffer.fill(loop.forward, shown_batches(loop.data))
                self._write_files(trial, buffer, facts)
        return test

    def _buffer(self, trial: Trial, loop: "TrainingLoop", facts: ModelFacts) -> PredictionBuffer | None:
        """Return what collects the predictions for the test split; None if the trial leaves none.

        A study makes the files of its best trial at its end.
        """
        if trial.number is not None or not has_files(loop.task):
            return None
        return PredictionBuffer(loop.model, facts, loop.device)

    def _write_files(self, trial: Trial, buffer: PredictionBuffer, facts: ModelFacts) -> None:
        """Write predictions.parquet and model.yaml. If that fails, warn: the results do not depend on these files.

        Raises OSError if the disk is full.
        """
        run = RunFolder(trial.folder)
        if problem := write_model_files(run, facts, buffer, self._data):
            log.warning("warning: %s", problem)
        for file in filter(Path.exists, (run.predictions, run.signature)):
            trial.log_artifact(file)


def _warn(lines: list[str]) -> None:
    for line in lines:
        log.warning("%s", line)


def record_best(
    trial: Trial, state: "TrainState", n_weights: int, test: Mapping[str, float], facts: ModelFacts
) -> None:
    """Save the best weights of a trained trial as best.pt, and record their metrics on the test split.

    Args:
        trial: the trial. Its folder gets the file.
        state: has the best weights, and the epoch and value at which they were reached.
        n_weights: the number of trainable weights.
        test: the metrics of the best weights on the test split, by name.
        facts: what `sweep.load_model` needs besides the weights.

    Raises:
        OSError: best.pt cannot be written.
    """
    from sweep.training import checkpoint

    assert state.best is not None
    file = RunFolder(trial.folder).best
    best: dict[str, Any] = {"model": state.best.weights, "epoch": state.best.epoch, "value": state.best.value}
    checkpoint.save(file, {**best, "monitor": state.trainer.monitored, FACTS: facts.stored()})
    if trial.number is None:  # in a study, it stays on the disk only
        trial.log_artifact(file)
    trial.finish({"model/n_weights": n_weights, **test})
