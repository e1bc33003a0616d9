"""predictions.parquet, and model.yaml, from which MLflow's model is built.

A run writes them while it tests its best weights. Those of a study's best trial are made from its best.pt at the end.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from sweep.config.schema import Config
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.tracking.stored_run import config_of
from sweep.trial.checks import has_test
from sweep.trial.predictions import PredictionBuffer, write_predictions
from sweep.trial.prepare import Data
from sweep.trial.signature import signature_of
from sweep.trial.stored_model import KEY, load_file
from sweep.utils.checked_file import write_checked
from sweep.utils.errors import DISK_FULL, ConfigError, one_line
from sweep.utils.files import to_yaml

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sweep.training.data import TrainingData
    from sweep.trial.model_facts import ModelFacts


def has_files(task: Any) -> bool:
    """Return whether models of the task get these files. The batches of other tasks are of their own kind."""
    from sweep.tasks import TensorTask

    return isinstance(task, TensorTask)


def shown_batches(data: "TrainingData") -> "Iterator[tuple[Tensor, Tensor]]":
    """Return the batches to predict: those of the test split, or if there is none, the first to validate on.

    A batch for validation is used only as the example in model.yaml.
    """
    return islice(data.val.batches(), 1) if data.test is None else data.test.batches()


def write_model_files(run: RunFolder, facts: "ModelFacts", buffer: PredictionBuffer, data: Data) -> str | None:
    """Write model.yaml and, if there is a test split, predictions.parquet.

    Args:
        run: the folder of the run.
        facts: of its model.
        buffer: has what the model predicts for `shown_batches`.
        data: of the run.

    Returns:
        None, or in one line which file cannot be written, and why.

    Raises:
        OSError: the disk is full.
    """
    file = run.signature
    try:
        found = buffer.joined()
        rows, truth, inputs = data.test_samples(found.targets, found.first_inputs)
        write_checked(file, to_yaml(signature_of(facts, found.predictions, inputs)), durable=False)
        if has_test(data):
            file = run.predictions
            write_predictions(file, facts, found, rows, truth)
    except Exception as error:  # your own task may raise anything
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        follows = "; MLflow gets no model" if file == run.signature else ""
        return f"{file.name}: cannot be written ({one_line(error)}){follows}"
    return None


def has_model_files(run: RunFolder) -> bool:
    """Return whether a run has model.yaml and, if its data have a test split, predictions.parquet."""
    has_test = (_recorded_data(run).get("profile") or {}).get("n_test") != 0
    return run.signature.exists() and (run.predictions.exists() or not has_test)


def make_model_files(run: RunFolder, load: Callable[[Config], Data]) -> str | None:
    """Make the files of a run that has ended, by its best.pt. Nothing is trained: this is one pass over the test split.

    Args:
        run: the folder of the run.
        load: loads and divides the data.

    Returns:
        As `write_model_files`.

    Raises:
        ConfigError: the model or its data cannot be loaded, or the data have changed since.
        Exception: what your own model or data raise, and OSError if the disk is full.
    """
    from sweep.training.runtime import reproducible
    from sweep.trial.build_task import build_task

    config = config_of(run, KEY)
    data = load(config)
    refuse_changed_data(run, data, "its test split cannot be predicted")
    device = _device(config.trainer.device)
    with reproducible(device), data.on_device(config, device) as on_device:
        if not has_files(build_task(config.task, data.content, data.divided, device)):
            return None
        predictor = load_file(run.best, str(device))
        buffer = PredictionBuffer(predictor.module, predictor.facts, device)
        buffer.fill(predictor.forward, shown_batches(on_device))
        return write_model_files(run, predictor.facts, buffer, data)


def refuse_changed_data(run: RunFolder, data: Data, follows: str) -> None:
    """Raise ConfigError if the data are not those that the run recorded. `follows` says what cannot be done then."""
    before = _recorded_data(run)
    if before.get("digest") not in (None, data.description["digest"]):
        raise ConfigError("data", f"have changed since '{run.path}' was trained; {follows}")


def _recorded_data(run: RunFolder) -> dict[str, Any]:
    """Return the description of the data that the run recorded; an empty dict if it has none."""
    return (journal.first(run.journal, "start") or {}).get("dataset") or {}


def _device(name: str) -> "torch.device":
    """Return the device of the trial; the CPU if it is not here, as where a cluster's jobs are submitted."""
    import torch

    from sweep.training.runtime import pick_device

    try:
        return pick_device(name)
    except ConfigError:
        return torch.device("cpu")
