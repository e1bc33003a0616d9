"""predictions.parquet: what a run's model predicts for each sample of the test split."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sweep.utils.fsync import fsync

if TYPE_CHECKING:
    import pyarrow as pa

    from sweep.training.data import Forward, Split
    from sweep.trial.model_facts import ModelFacts
    from sweep.trial.predictor import Predictor

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


def predicted(predictor: "Predictor", forward: "Forward", split: "Split") -> Predicted:
    """Predict for a split whose batches are pairs, batch by batch.

    Args:
        predictor: says what the outputs mean.
        forward: computes the outputs, as in the evaluation of the split.
        split: the samples.
    """
    import torch

    from sweep.training.tensors import in_single_precision

    found, probabilities, targets, first = [], [], [], None
    with torch.no_grad():
        for x, y in split.batches():
            first = x.cpu().numpy() if first is None else first
            outputs = in_single_precision(forward(x)).cpu()
            found.append(predictor.decoded(outputs))
            if outputs.ndim == 2 and (of_batch := predictor.probabilities(outputs)) is not None:
                probabilities.append(of_batch)
            targets.append(y.cpu().numpy())
    assert first is not None
    joined = np.concatenate(probabilities) if probabilities else None
    return Predicted(np.concatenate(found), joined, np.concatenate(targets), first)


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
