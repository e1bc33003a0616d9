"""A trained model that takes data in their own units: `Predictor`, which `sweep.load_model` returns."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from sweep.config.targets import allowed_targets, check_targets
from sweep.data.preprocessing import apply
from sweep.training.runtime import in_precision, pick_device, reproducible
from sweep.training.tensors import EVAL_BATCH, in_single_precision
from sweep.trial import build
from sweep.trial.binding import located
from sweep.trial.model_facts import ModelFacts
from sweep.utils.errors import ConfigError, one_line

if TYPE_CHECKING:
    import pandas as pd

    NewData: TypeAlias = "pd.DataFrame | ArrayLike"

log = logging.getLogger("sweep")


class Predictor:
    """A trained model with its preprocessing.

    Attributes:
        module: maps preprocessed inputs, (N, *in_shape), to outputs in the units of training. It is in evaluation mode.
        facts: everything besides the weights, such as `in_shape`, `preprocessing` and the config node `model`.
        task: the class of the task, or a function of your own that makes it.
    """

    def __init__(self, module: nn.Module, facts: ModelFacts, device: torch.device) -> None:
        """Make the predictor of a module that has its trained weights and is on the device.

        Raises ConfigError if the task cannot be loaded.
        """
        self.module, self.facts = module.eval(), facts
        self._device = device
        check_targets("task", {"_target_": facts.task})
        self.task: Any = located("task", facts.task, allowed_targets())
        self._precision = "float32" if facts.precision == "fp16" and device.type == "cpu" else facts.precision
        self._y_mean, self._y_std = torch.tensor(facts.y_mean), torch.tensor(facts.y_std)
        self._classes = facts.class_names

    @property
    def classes(self) -> NDArray:
        """The classes in the order of the columns of `predict_proba`: numbers if all names are, else texts."""
        return self._classes

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the columns that a table needs, or of the channels of images; none for torch datasets."""
        if self.facts.preprocessing is None:
            return ()
        columns = self.facts.preprocessing["columns"]
        names = self.facts.preprocessing["inputs"] if columns is None else [one["name"] for one in columns]
        return tuple(dict.fromkeys(names))

    def predict(self, data: "NewData") -> NDArray:
        """Predict, in the targets' own units.

        Args:
            data: in their own units, as the model was trained on: a DataFrame with its columns, in any order; or an
                array (N, n_columns), (N, channels, height, width), or (N, length) of tokens.

        Returns:
            - regression: (N,) numbers, or (N, n_targets).
            - quantile: (N, n_quantiles), or (N, n_targets, n_quantiles).
            - classification, binary: (N,) of `classes`; segmentation: (N, height, width) of `classes`.
            - multilabel: (N, n_labels) of 0 and 1.
            - language_model: (N, length), the most probable next token at each position.
            - a task of your own without a method `predicted`: the outputs of the module.

        Raises:
            ConfigError: a column is missing, a cell cannot be used, or the model cannot take the data.
        """
        return self.decoded(self.outputs(data))

    def predict_proba(self, data: "NewData") -> NDArray:
        """Predict the probabilities of the classes, labels or tokens.

        Args:
            data: as for `predict`.

        Returns:
            - classification, binary: (N, n_classes); segmentation: (N, n_classes, height, width).
            - multilabel: (N, n_labels), each label's probability.
            - language_model: (N, length, n_tokens).

        Raises:
            ConfigError: as for `predict`, or the task has no probabilities.
        """
        found = self.probabilities(self.outputs(data))
        if found is None:
            raise ConfigError("predict_proba", f"{self.facts.task} has no probabilities; use predict")
        return found

    def inputs(self, data: "NewData") -> NDArray:
        """Return the module's inputs, (N, *in_shape): float32, int64 for tokens, or as torch datasets gave them.

        Raises ConfigError if the data cannot be used.
        """
        facts = self.facts
        if facts.in_shape is None:
            raise ConfigError("data", "the model takes batches of its own kind; call `module` on such a batch")
        if facts.tokens:
            return _tokens(np.asarray(data), facts.n_tokens)
        is_table = hasattr(data, "columns") and bool(facts.preprocessing and facts.preprocessing["columns"])
        given: Any = data if is_table else np.asarray(data)
        if not is_table and given.ndim != 1 + len(facts.in_shape):
            shape = ", ".join(["N", *map(str, facts.in_shape)])
            raise ConfigError("data", f"must have the shape ({shape}), got {given.shape}")
        if facts.preprocessing is not None:
            return apply(facts.preprocessing, given, lambda line: log.warning("warning: %s", line))
        try:
            return given.astype(facts.dtype)
        except (TypeError, ValueError) as error:
            raise ConfigError("data", f"must hold numbers ({one_line(error)})") from error

    @torch.no_grad()
    def outputs(self, data: "NewData") -> Tensor:
        """Return the module's outputs for new data, (N, ...), on the CPU. Raises ConfigError."""
        x = torch.from_numpy(self.inputs(data))
        try:
            return torch.cat([self.forward(part.to(self._device)).cpu() for part in x.split(EVAL_BATCH)])
        except Exception as error:  # your own model may raise anything
            problem = f"the model cannot take inputs of shape {tuple(x.shape)}: {one_line(error)}"
            raise ConfigError("data", problem) from error

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch of the module's inputs, on its device, to outputs in float32 or float64, as training does."""
        return in_single_precision(in_precision(self._precision, self.module, x))

    def decoded(self, outputs: Tensor) -> NDArray:
        """Return the predictions that the module's outputs mean, as `predict` does."""
        outputs = self.facts.on_target_scale(outputs)
        if not hasattr(self.task, "predicted"):
            return outputs.numpy()
        found = self.task.predicted(outputs, self._y_mean, self._y_std).numpy()
        return self._classes[found] if getattr(self.task, "predicts_classes", False) else found

    def probabilities(self, outputs: Tensor) -> NDArray | None:
        """Return the probabilities that the module's outputs mean, as `predict_proba` does; None if there are none."""
        found = self.task.probabilities(outputs) if hasattr(self.task, "probabilities") else None
        return None if found is None else found.numpy()


def restored(state: Mapping[str, Any], facts: ModelFacts, device: str) -> Predictor:
    """Build the model, and load its weights.

    Args:
        state: of best.pt, with `model`, its weights.
        facts: of the same model.
        device: as `trainer.device`.

    Raises:
        ConfigError: the device cannot be used, the model's target is not allowed, or its weights do not fit.
    """
    place = pick_device(device)
    check_targets("model", facts.model)
    with reproducible(place):  # initial weights are drawn, which must not change the caller's generators
        module = build.model(facts.model, facts)
    try:
        module.load_state_dict(state["model"])
    except RuntimeError as error:
        problem = f"the stored weights do not fit {facts.model['_target_']} ({one_line(error, 120)}); use its old code"
        raise ConfigError("model", problem) from error
    return Predictor(module.to(place), facts, place)


def _tokens(data: NDArray, n_tokens: int) -> NDArray[np.int64]:
    """Return token ids. Raise ConfigError if they are not whole numbers that the model knows."""
    if data.ndim != 2 or data.dtype.kind not in "iub":
        raise ConfigError("data", f"must be (N, length) whole numbers, got {data.dtype} of shape {data.shape}")
    if len(odd := data[(data < 0) | (data >= n_tokens)]):
        raise ConfigError("data", f"holds the token {odd[0]}, but the model knows those from 0 to {n_tokens - 1}")
    return data.astype(np.int64)
