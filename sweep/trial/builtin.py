"""The built-in training function, which `trainer` configures: sweep's own loop, on the data that the config names."""

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sweep.config.schema import Config
from sweep.tracking.folders import RunFolder
from sweep.training.trial import Trial
from sweep.trial.checks import check_data, undefined_metrics
from sweep.trial.model_facts import FACTS, ModelFacts
from sweep.trial.prepare import (
    Data,
    load_data,
    prepared,
    smaller_batch_text,
    with_fitting_batch,
)
from sweep.utils import gc_control
from sweep.utils.checked_file import write_checked
from sweep.utils.errors import DISK_FULL, one_line
from sweep.utils.files import to_yaml

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
        return self.config.trainer.n_epochs(self._data.epoch_size(self.config))

    def __call__(self, trial: Trial) -> dict[str, float]:
        """Train the trial, from its checkpoint if it has one, and save its best weights as best.pt.

        Returns:
            The metrics of the best weights on the test split, by name.

        Raises:
            ConfigError: the model, the optimizer or the schedule cannot be built. Nothing is recorded then.
            Damaged: the checkpoint cannot be read.
            Exception: everything that `TrainingLoop.run` raises. The record has begun then.
        """
        with prepared(self.config, self._data) as loop:
            if (state := trial.restore()) is not None:
                loop.load_state_dict(state)
            self._warn(trial)
            if trial.number is None:
                _warn_of_size(loop)
            trial.describe(dataset=self._data.description, device=loop.device.type)
            gc_control.resume()
            try:
                loop.run(trial)
            finally:
                trial.finish(loop.reached())
            test = loop.test(self._data.facts.noise)
            n_weights = sum(weight.numel() for weight in loop.model.parameters() if weight.requires_grad)
            facts = ModelFacts.of(self.config, self._data, loop.task)
            record_best(trial, loop, n_weights, test, facts)
            if trial.number is None:
                _describe(trial, loop, facts, self._data)
        return test

    def _warn(self, trial: Trial) -> None:
        """Warn of a lowered batch size and of undefined metrics. In a study, the study itself warns, once."""
        if trial.number is not None:
            return
        if self._lowered:
            log.warning(self._lowered)
        if names := undefined_metrics(self.config, self._data):
            why = "the targets do not vary there"
            log.warning("warning: %s: left out, since %s; raise split.val or split.test", " and ".join(names), why)


def _warn_of_size(loop: "TrainingLoop") -> None:
    """Warn of metrics that need more outputs at once than sweep would keep."""
    from sweep.tasks import TensorTask
    from sweep.training.tensors import MOST_OUTPUTS, TensorData, n_outputs

    if not (isinstance(loop.task, TensorTask) and isinstance(loop.data, TensorData) and loop.task.whole):
        return
    sizes = {part: n_outputs(loop.task, getattr(loop.data, part).y) for part in ("val", "test")}
    part = max(sizes, key=sizes.__getitem__)
    if sizes[part] > MOST_OUTPUTS:
        names, size = ", ".join(f"task.metrics.{name}" for name in loop.task.whole), sizes[part] * 4 / 2**30
        why = f"takes the outputs of the whole {part} split at once, {size:.1f} GiB; a class with update, compute and"
        log.warning("warning: %s: %s reset takes them batch by batch (docs/tasks.md)", names, why)


def _describe(trial: Trial, loop: "TrainingLoop", facts: ModelFacts, data: Data) -> None:
    """Write predictions.parquet, what the loop's model predicts for the test split, and model.yaml, what it takes.

    The model has its best weights. A failure logs a warning: the results do not depend on these files. Raises OSError
    if the disk is full.
    """
    from sweep.tasks import TensorTask
    from sweep.trial.predictions import predicted, write_predictions
    from sweep.trial.predictor import Predictor
    from sweep.trial.signature import signature_of

    if not isinstance(loop.task, TensorTask) or loop.data.test is None:  # other tasks have batches of their own
        return
    run = RunFolder(trial.folder)
    file = run.signature
    try:
        found = predicted(Predictor(loop.model, facts, loop.device), loop.forward, loop.data.test)
        rows, truth, inputs = data.test_samples(found.targets, found.first_inputs)
        write_checked(file, to_yaml(signature_of(facts, found.predictions, inputs)), durable=False)
        file = run.predictions
        write_predictions(file, facts, found, rows, truth)
    except Exception as error:  # your own task may raise anything
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        follows = "; MLflow gets no model" if file == run.signature else ""
        log.warning("warning: %s: cannot be written (%s)%s", file.name, one_line(error), follows)


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
    best: dict[str, Any] = {"model": state.best.weights, "epoch": state.best.epoch, "value": state.best.value}
    checkpoint.save(RunFolder(trial.folder).best, {**best, "monitor": state.trainer.monitored, FACTS: facts.stored()})
    trial.finish({"model/n_weights": n_weights, **test})
