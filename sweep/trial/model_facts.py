"""What is stored beside a model's weights, so that it can be applied to new data: plain data, without code."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from sweep.config.schema import Config
from sweep.config.task_node import task_for
from sweep.data import Datasets

if TYPE_CHECKING:
    from torch import Tensor

    from sweep.tasks import Task, TensorTask
    from sweep.trial.prepare import Data

FACTS = "facts"  # the key in best.pt


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Everything besides the weights. It has what `build.model` needs in place of `Samples`.

    Attributes:
        model: the config node of the model.
        task: the target of the task, such as sweep.tasks.Regression.
        kind: of the data, as in `Samples.task`.
        data: the name of the data set.
        precision: `trainer.precision`.
        preprocessing: `Splits.preprocessing`; None for torch datasets, which prepare their samples themselves.
        classes: names of the classes; empty for regression.
        targets: names of the targets or labels; empty if they have none.
        quantiles: that the model predicts; empty for other tasks.
        y_mean: of the targets, as in `Splits`.
        y_std: of the targets, as in `Splits`.
        in_shape: the shape of one sample's input; None if batches are no pairs of inputs and targets.
        dtype: of the inputs before normalisation, such as float64.
        out_features: the number of outputs; None if it is not known.
        tokens: whether the inputs are token ids.
        n_tokens: the number of different tokens; 0 without tokens.
        log_outputs: whether the outputs are logarithms of what the task predicts. Earlier versions did not ask.
    """

    model: dict[str, Any]
    task: str
    kind: str
    data: str
    precision: str
    preprocessing: dict[str, Any] | None
    classes: tuple[str, ...]
    targets: tuple[str, ...]
    quantiles: tuple[float, ...]
    y_mean: tuple[float, ...]
    y_std: tuple[float, ...]
    in_shape: tuple[int, ...] | None
    dtype: str
    out_features: int | None
    tokens: bool
    n_tokens: int
    log_outputs: bool = False

    @classmethod
    def of(cls, config: Config, data: "Data", task: "TensorTask | Task") -> Self:
        """Return the facts of a model that is trained on `data` for `task`, as `config` says."""
        content = data.content
        node = task_for(content.task, config.task)
        n_outputs = getattr(task, "out_features", content.out_features)
        of_data = _of_datasets(content) if isinstance(content, Datasets) else _of_arrays(config, data)
        return cls(
            model=config.model,
            task=node["_target_"],
            kind=content.task or "",
            data=content.name,
            precision=config.trainer.precision,
            classes=tuple(map(str, content.classes)),
            quantiles=tuple(map(float, node.get("quantiles") or ())),
            in_shape=None if content.in_shape is None else tuple(map(int, content.in_shape)),
            out_features=None if n_outputs is None else int(n_outputs),
            tokens=content.tokens,
            n_tokens=content.n_tokens if content.tokens else 0,
            log_outputs=getattr(task, "outputs_are_logs", False),
            **of_data,
        )

    def on_target_scale(self, outputs: "Tensor") -> "Tensor":
        """Return the outputs as the task's `predicted` takes them: themselves, or the numbers whose logs they are."""
        return outputs.double().exp() if self.log_outputs else outputs

    @property
    def class_names(self) -> NDArray:
        """The names of the classes, (n_classes,): whole numbers if all names are, else texts."""
        names = self.classes
        if names and all(name.isascii() and name.isdecimal() and str(int(name)) == name for name in names):
            return np.array([*map(int, names)])
        return np.array(names, dtype=np.str_)

    def stored(self) -> dict[str, Any]:
        """Return the facts as `torch.load(weights_only=True)` accepts them."""
        return asdict(self)

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Self:
        """Return the facts that `stored` returned. Raise TypeError if some are missing, as in an old file."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in stored.items() if name in known})


def _of_arrays(config: Config, data: "Data") -> dict[str, Any]:
    samples, splits = data.samples, data.splits
    return {
        "preprocessing": splits.preprocessing,
        "targets": _targets(config.data.get("target"), samples.y),
        "y_mean": tuple(splits.y_mean.tolist()),
        "y_std": tuple(splits.y_std.tolist()),
        "dtype": str(samples.x.dtype),
    }


def _of_datasets(datasets: Datasets) -> dict[str, Any]:
    """Return facts that say that nothing is normalised."""
    n_targets = datasets.out_features or 1
    return {
        "preprocessing": None,
        "targets": (),
        "y_mean": (0.0,) * n_targets,
        "y_std": (1.0,) * n_targets,
        "dtype": datasets.in_dtype,
    }


def _targets(named: Any, y: np.ndarray) -> tuple[str, ...]:
    """Return the names of the targets, one for each column of y, if the node of the data names so many."""
    names = [named] if isinstance(named, str) else named
    n_targets = y.shape[1] if y.ndim == 2 else 1
    is_named = isinstance(names, list | tuple) and len(names) == n_targets and all(isinstance(n, str) for n in names)
    return tuple(names) if is_named else ()
