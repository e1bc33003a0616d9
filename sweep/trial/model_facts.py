"""What is stored beside a model's weights, so that it can be applied to new data: plain data, without code."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from sweep.config.schema import Config
from sweep.config.task_node import task_for

if TYPE_CHECKING:
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
        preprocessing: `Splits.preprocessing`.
        classes: names of the classes; empty for regression.
        targets: names of the targets or labels; empty if they have none.
        quantiles: that the model predicts; empty for other tasks.
        y_mean: of the targets, as in `Splits`.
        y_std: of the targets, as in `Splits`.
        in_shape: the shape of one sample's input.
        dtype: of the inputs before normalisation, such as float64.
        out_features: the number of outputs.
        tokens: whether the inputs are token ids.
        n_tokens: the number of different tokens; 0 without tokens.
    """

    model: dict[str, Any]
    task: str
    kind: str
    data: str
    precision: str
    preprocessing: dict[str, Any]
    classes: tuple[str, ...]
    targets: tuple[str, ...]
    quantiles: tuple[float, ...]
    y_mean: tuple[float, ...]
    y_std: tuple[float, ...]
    in_shape: tuple[int, ...]
    dtype: str
    out_features: int
    tokens: bool
    n_tokens: int

    @classmethod
    def of(cls, config: Config, data: "Data", task: "TensorTask | Task") -> Self:
        """Return the facts of a model that is trained on `data` for `task`, as `config` says."""
        samples, splits, node = data.samples, data.splits, task_for(data.samples.task, config.task)
        return cls(
            model=config.model,
            task=node["_target_"],
            kind=samples.task,
            data=samples.name,
            precision=config.trainer.precision,
            preprocessing=splits.preprocessing,
            classes=tuple(map(str, samples.classes)),
            targets=_targets(config.data.get("target"), samples.y),
            quantiles=tuple(map(float, node.get("quantiles") or ())),
            y_mean=tuple(splits.y_mean.tolist()),
            y_std=tuple(splits.y_std.tolist()),
            in_shape=tuple(map(int, samples.in_shape)),
            dtype=str(samples.x.dtype),
            out_features=int(getattr(task, "out_features", samples.out_features)),
            tokens=samples.tokens,
            n_tokens=samples.n_tokens if samples.tokens else 0,
        )

    def stored(self) -> dict[str, Any]:
        """Return the facts as `torch.load(weights_only=True)` accepts them."""
        return asdict(self)

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Self:
        """Return the facts that `stored` returned. Raise TypeError if some are missing, as in a file of later days."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in stored.items() if name in known})


def _targets(named: Any, y: np.ndarray) -> tuple[str, ...]:
    """Return the names of the targets, one for each column of y, if the node of the data names so many."""
    names = [named] if isinstance(named, str) else named
    n_targets = y.shape[1] if y.ndim == 2 else 1
    is_named = isinstance(names, list | tuple) and len(names) == n_targets and all(isinstance(n, str) for n in names)
    return tuple(names) if is_named else ()
