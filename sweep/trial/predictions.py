"""predictions.parquet: what a model predicts for each sample of the test split."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sweep.utils.fsync import fsync

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import Tensor, nn

    from sweep.training.data import Forward
    from sweep.trial.model_facts import ModelFacts

Columns = Iterator[tuple[str, Any]]


class Predicted(NamedTuple):
    """What a model predicts for a split.

    Attributes:
        predictions: (n, ...), as `Predictor.predict` returns them.
        probabilities: (n, n_classes) or (n, n_labels); None for tasks that have none, or one for each pixel or token.
        targets: (n, ...), as the task gets them.
        first_inputs: those of the first batch, as the model gets them: all of them might not fit in memory.
    """

    predictions: NDArray
    probabilities: NDArray | None
    targets: NDArray
    first_inputs: NDArray


class PredictionBuffer:
    """Collects what a model predicts for a split, batch by batch, while the split is evaluated.

    Only predictions are kept, not the outputs: those of a language model are larger by the number of its tokens.
    """

    def __init__(self, module: "nn.Module", facts: "ModelFacts", device: "torch.device") -> None:
        """Start without batches. `module`, `facts` and `device` are as for `Predictor`."""
        self._of = module, facts, device
        self._predictor: Any = None
        self._found: list[NDArray] = []
        self._probabilities: list[NDArray] = []
        self._targets: list[NDArray] = []
        self._first: NDArray | None = None
        self._error: Exception | None = None

    def add(self, x: "Tensor", outputs: "Tensor", y: "Tensor") -> None:
        """Add a batch, as `Split.values` shows it. An error waits for `joined`, since metrics do not depend on it."""
        if self._error is not None:
            return
        try:
            self._add(x, outputs, y)
        except Exception as error:  # your own task may raise anything
            self._error = error
            self._found, self._probabilities, self._targets = [], [], []

    def fill(self, forward: "Forward", batches: "Iterable[tuple[Tensor, Tensor]]") -> None:
        """Compute the outputs of batches, and add them. Errors wait for `joined`, those of loading too."""
        import torch

        try:
            with torch.no_grad():
                for x, y in batches:
                    self.add(x, forward(x), y)
        except Exception as error:  # your own model and data may raise anything
            self._error = error

    def _add(self, x: "Tensor", outputs: "Tensor", y: "Tensor") -> None:
        from sweep.training.tensors import in_single_precision

        outputs = in_single_precision(outputs.cpu())
        if self._predictor is None:
            from sweep.trial.predictor import Predictor

            self._predictor, self._first = Predictor(*self._of), x.cpu().numpy()
        self._found.append(self._predictor.decoded(outputs))
        if outputs.ndim == 2 and (of_batch := self._predictor.probabilities(outputs)) is not None:
            self._probabilities.append(of_batch)
        self._targets.append(y.cpu().numpy())

    def joined(self) -> Predicted:
        """Return what was collected. Call it once: the batches are given up to save memory.

        Raises Exception if a batch could not be predicted.
        """
        if self._error is not None:
            raise self._error
        assert self._first is not None
        probabilities = _joined(self._probabilities) if self._probabilities else None
        return Predicted(_joined(self._found), probabilities, _joined(self._targets), self._first)


def _joined(parts: list[NDArray]) -> NDArray:
    """Concatenate the parts, and clear their list."""
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    parts.clear()
    return whole


def write_predictions(path: Path, facts: "ModelFacts", found: Predicted, rows: NDArray, truth: NDArray) -> None:
    """Replace the file atomically.

    Args:
        path: the file.
        facts: of the model.
        found: what it predicts for the test split.
        rows: (n,), the number of each sample.
        truth: (n, ...), the targets in their own units.

    Raises:
        OSError: the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet

    columns = {"row": rows, **dict(_columns(facts, found, truth))}
    table = pa.Table.from_arrays([_array(values) for values in columns.values()], names=[*columns])
    tmp = path.with_name(path.name + ".tmp")
    try:
        with open(tmp, "wb") as file:
            pyarrow.parquet.write_table(table, file)
            file.flush()
            fsync(file.fileno())
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)  # frees its space on a full disk


def _columns(facts: "ModelFacts", found: Predicted, truth: NDArray) -> Columns:
    """Yield names and values of the columns: the truth, then what the model predicts, then probabilities."""
    predictions, probabilities = found.predictions, found.probabilities
    truth = truth.astype(np.int64) if truth.dtype == bool else truth
    if facts.kind == "regression":
        yield from _named("truth", truth, facts.targets)
        of_each = predictions.reshape(len(truth), truth.shape[1], -1)  # (n, n_targets, n_quantiles)
        if not facts.quantiles:
            yield from _named("prediction", of_each[:, :, 0], facts.targets)
        for i, quantile in enumerate(facts.quantiles):
            for name, values in _named("prediction", of_each[:, :, i], facts.targets):
                yield f"{name}_{quantile:g}", values
    elif facts.kind == "multilabel":
        names = facts.targets or facts.classes
        yield from _named("truth", truth, names)
        yield from _named("prediction", predictions, names)
        if probabilities is not None:
            yield from _named("probability", probabilities, names)
    else:
        has_names = facts.kind in ("classification", "segmentation") and len(facts.classes) > 0
        yield "truth", _names_of(truth, facts.class_names) if has_names else truth
        yield "prediction", predictions
        if probabilities is not None:
            yield from _named("probability", probabilities, facts.classes, always=True)


def _names_of(truth: NDArray, classes: NDArray) -> NDArray:
    """Return the classes' names, and None for a number that is no class, such as one that the loss ignores."""
    is_class = (truth >= 0) & (truth < len(classes))
    if is_class.all():
        return classes[truth]
    names = classes[truth.clip(0, len(classes) - 1)].astype(object)
    names[~is_class] = None
    return names


def _named(what: str, values: NDArray, names: Sequence[str], always: bool = False) -> Columns:
    """Yield the columns of an array, (n, n_columns).

    A single column has no name but `what`, unless `always`. Columns without names are numbered from 0.
    """
    if values.shape[1] == 1 and not always:
        yield what, values[:, 0]
        return
    named = list(names) if len(set(names)) == values.shape[1] else [str(i) for i in range(values.shape[1])]
    for name, column in zip(named, values.T, strict=True):
        yield f"{what}_{name}", column


def _array(values: NDArray) -> "pa.Array":
    """Return a column. An array of several axes, such as the classes of pixels, becomes lists of lists.

    Numbers and texts are given as buffers: pyarrow would import pandas to look at anything else, which takes 0.4 s.
    """
    import pyarrow as pa

    if values.ndim > 1 or values.dtype == object:
        return pa.array(values.tolist())
    if values.dtype.kind != "U":
        numbers = np.ascontiguousarray(values)
        return pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), len(numbers), [None, pa.py_buffer(numbers)])
    texts = [text.encode() for text in values.tolist()]
    ends = np.concatenate([[0], np.cumsum([*map(len, texts)], dtype=np.int64)]).astype(np.int64)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))]
    return pa.Array.from_buffers(pa.large_string(), len(texts), buffers)
