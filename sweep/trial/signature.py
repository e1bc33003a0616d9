"""model.yaml: what a trained model takes and returns, as plain data. MLflow's signature and input example are made of
it by the upload process, which does not load torch."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sweep.data.preprocessing import table_of

if TYPE_CHECKING:
    from sweep.trial.model_facts import ModelFacts

_N_EXAMPLES = 2


def signature_of(facts: "ModelFacts", predictions: NDArray, x: NDArray) -> dict[str, Any]:
    """Return the inputs, the outputs and an example, for YAML.

    `inputs` is a list of columns, each with `name`, `type` (double or any) and `required`; or the `dtype` and the
    `shape` of an array. `example` has the values of two test samples, by column, or as nested lists.

    Args:
        facts: of the model.
        predictions: for the test split, as `Predictor.predict` returns them.
        x: the first inputs of the same samples, in their own units.
    """
    found = predictions[:_N_EXAMPLES]
    result: dict[str, Any] = {"data": facts.data, "task": facts.task}
    rows = x[:_N_EXAMPLES]
    if facts.preprocessing is None or facts.preprocessing["columns"] is None:
        free = [-1] * rows.ndim if facts.tokens else [-1, *rows.shape[1:]]
        result |= {"inputs": {"dtype": facts.dtype, "shape": free}, "example": rows.tolist()}
    else:
        result |= {"inputs": _columns(facts.preprocessing, x)}
        result |= {"example": table_of(facts.preprocessing, rows)}
    return result | {"outputs": {"dtype": _dtype(found), "shape": [-1, *found.shape[1:]]}}


def _columns(preprocessing: dict[str, Any], x: NDArray) -> list[dict[str, Any]]:
    """Return the columns that the model needs, each once.

    MLflow refuses whole numbers in a column of doubles, so a column that held only these takes any type. So does one of
    categories or dates.
    """
    columns: dict[str, dict[str, Any]] = {}
    for one in preprocessing["columns"]:
        is_double = one["kind"] == "number" and not _is_whole(x[:, preprocessing["inputs"].index(one["name"])])
        columns[one["name"]] = {
            "name": one["name"],
            "type": "double" if is_double else "any",
            "required": one["fill"] is None,
        }
    return list(columns.values())


def _is_whole(cells: NDArray) -> bool:
    return bool((cells % 1 == 0).all())


def _dtype(found: NDArray) -> str:
    return "str" if found.dtype.kind == "U" else str(np.dtype(found.dtype))
