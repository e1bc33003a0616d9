"""predictions.parquet: what a run's model predicts for each sample of the test split."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sweep.utils.fsync import fsync

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from sweep.trial.predictor import Predictor

Columns = Iterator[tuple[str, Any]]


def write_predictions(
    path: Path, predictor: "Predictor", outputs: "torch.Tensor", rows: NDArray, truth: NDArray
) -> None:
    """Replace the file atomically.

    Args:
        path: the file.
        predictor: the model.
        outputs: of its module for the test split.
        rows: (n,), the number of each sample.
        truth: (n, ...), the targets in their own units.

    Raises:
        OSError: the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet

    columns = {"row": rows, **dict(_columns(predictor, outputs, truth))}
    table = pa.Table.from_arrays([_array(values) for values in columns.values()], names=[*columns])
    tmp = path.with_name(path.name + ".tmp")
    try:
        with open(tmp, "wb") as file:
            pyarrow.parquet.write_table(table, file)
            file.flush()
            fsync(file.fileno())
        os.replace(tmp, path)
    except OSError:
        tmp.unlink(missing_ok=True)  # frees its space on a full disk
        raise


def _columns(predictor: "Predictor", outputs: "torch.Tensor", truth: NDArray) -> Columns:
    """Yield names and values of the columns: the truth, then what the model predicts, then probabilities."""
    facts = predictor.facts
    found, shares = predictor.decoded(outputs), predictor.probabilities(outputs)
    if facts.kind == "regression":
        yield from _named("truth", truth, facts.targets)
        of_each = found.reshape(len(truth), truth.shape[1], -1)  # (n, n_targets, n_quantiles)
        if not facts.quantiles:
            yield from _named("prediction", of_each[:, :, 0], facts.targets)
        for i, quantile in enumerate(facts.quantiles):
            for name, values in _named("prediction", of_each[:, :, i], facts.targets):
                yield f"{name}_{quantile:g}", values
    elif facts.kind == "multilabel":
        names = facts.targets or facts.classes
        yield from _named("truth", truth, names)
        yield from _named("prediction", found, names)
        if shares is not None:
            yield from _named("probability", shares, names)
    else:
        has_names = facts.kind in ("classification", "segmentation") and len(predictor.classes) > 0
        yield "truth", predictor.classes[truth] if has_names else truth
        yield "prediction", found
        if shares is not None and shares.ndim == 2:  # those of each pixel or token would be many
            yield from _named("probability", shares, facts.classes, always=True)


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

    if values.ndim > 1:
        return pa.array(values.tolist())
    if values.dtype.kind != "U":
        numbers = np.ascontiguousarray(values)
        return pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), len(numbers), [None, pa.py_buffer(numbers)])
    texts = [text.encode() for text in values.tolist()]
    ends = np.concatenate([[0], np.cumsum([*map(len, texts)], dtype=np.int64)]).astype(np.int64)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))]
    return pa.Array.from_buffers(pa.large_string(), len(texts), buffers)
