"""`Samples`, which every data option returns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sweep.config.metrics import KINDS
from sweep.data.encoding import Encoding
from sweep.utils.errors import ConfigError, one_of

TaskName = Literal["regression", "classification", "multilabel", "segmentation", "language_model"]
PARTS = ("train", "val", "test")  # the words in `Samples.split`
_Y_NDIM = {"classification": 1, "multilabel": 2, "segmentation": 3, "language_model": 2}  # of the targets


@dataclass(frozen=True, kw_only=True)
class Samples:
    """N samples in their own units, before any split or normalisation.

    Args:
        name: of the data set.
        task: what the targets are for.
        x: (N, n_features) for tables, (N, channels, height, width) for images. float32 stays. Any other real dtype
            becomes float64, so that a large offset costs no precision before normalisation. With `tokens`, (N, length)
            token ids from 0, which stay whole numbers and are not normalised.
        y: (N,) or (N, n_targets) real numbers for regression, stored as (N, n_targets); whole numbers from 0 for the
            others: (N,) classes for classification, (N, n_labels) of 0 and 1 for multilabel, (N, height, width) classes
            for segmentation, (N, length) tokens for language_model.
        tokens: whether x are token ids; always for language_model.
        clean: for regression, y without its noise, in the same shape, if the data are made so that it is known.
        noise: standard deviation of that noise, in the units of y.
        features: names of the columns or channels; by default x0, x1 and so on.
        classes: names of the classes; by default their indices.
        source: where the data come from, such as a path.
        groups: (N,) numbers, dates or texts, such as the patient of each sample. With split=grouped, samples with equal
            values stay together. With split=ordered and split.by, samples are ordered by these values.
        weights: (N,) numbers >= 0, how much each sample counts in the loss; not all are 0.
        split: (N,) words "train", "val" or "test", for split=given.
        encoding: for a table whose columns are not all inputs yet, what they are. Its x may then hold NaN.
        augment: changes the input of a training sample at random, each time it is trained on: a tensor (*in_shape) in
            float32 and in its own units. It draws from the global generators of torch, `random` or numpy, which the
            trial seeds. The result must have the same shape. Validation and test see the samples as they are.

    Raises:
        ConfigError: the arrays do not fit together, or hold a value that is not finite in float32.
    """

    name: str
    task: TaskName
    x: NDArray
    y: NDArray
    tokens: bool = False
    clean: NDArray | None = None
    noise: float | None = None
    features: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    source: str = ""
    groups: NDArray | None = None
    weights: NDArray[np.float32] | None = None
    split: NDArray[np.str_] | None = None
    encoding: Encoding | None = None
    augment: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        one_of("data.task", self.task, KINDS)
        put = object.__setattr__  # the documented way for a frozen dataclass to normalise its fields
        put(self, "tokens", self.tokens or self.task == "language_model")
        put(
            self,
            "x",
            _indices("data", self.x, 2) if self.tokens else _real("data", self.x, may_be_nan=self.encoding is not None),
        )
        if self.task != "regression":
            put(self, "y", _indices("data.target", self.y, _Y_NDIM[self.task]))
            n_classes = self._n_classes()
            put(self, "classes", self.classes or tuple(map(str, range(n_classes))))
            if n_classes > len(self.classes):
                raise ConfigError("data.target", f"has class {n_classes - 1}, but only {len(self.classes)} names")
        else:
            put(self, "y", _columns(_real("data.target", self.y)))
            if self.clean is not None:
                put(self, "clean", _columns(_real("data", self.clean)))
                if self.clean.shape != self.y.shape:
                    problem = f"has targets of shape {self.y.shape}, but clean targets of shape {self.clean.shape}"
                    raise ConfigError("data", problem)
        if self.x.ndim < 2:
            problem = "inputs need a row for each sample and a column for each feature; for one feature give x[:, None]"
            raise ConfigError("data", problem)
        if len(self.x) != len(self.y):
            raise ConfigError("data", f"has {len(self.x)} rows of inputs but {len(self.y)} of targets")
        put(self, "features", self.features or tuple(f"x{i}" for i in range(self.x.shape[1])))
        if len(self.features) != self.x.shape[1]:
            raise ConfigError(
                "data.features", f"names {len(self.features)} columns or channels, but x has {self.x.shape[1]}"
            )
        for name in ("groups", "weights", "split"):
            if (given := getattr(self, name)) is not None:
                put(self, name, _one_each(name, given, len(self.x)))
        if self.weights is not None:
            put(self, "weights", _weights(self.weights))
        if self.split is not None and len(odd := np.flatnonzero(~np.isin(self.split, PARTS))):
            row, word = int(odd[0]), self.split[odd[0]]
            raise ConfigError("split.column", f"row {row} of Samples.split has '{word}', not train, val or test")

    def _n_classes(self) -> int:
        if self.task == "multilabel":
            if self.y.max(initial=0) > 1:
                raise ConfigError("data.target", "labels must be 0 or 1")
            return self.y.shape[1]
        return int(max(self.y.max(initial=0), self.x.max(initial=0) if self.task == "language_model" else 0)) + 1

    @property
    def n_tokens(self) -> int:
        """The number of different tokens that the inputs may have."""
        own = int(self.x.max(initial=0)) + 1
        return max(own, len(self.classes)) if self.task == "language_model" else own

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one sample's input, without the batch."""
        return self.x.shape[1:]

    @property
    def out_features(self) -> int:
        """The number of outputs that a model needs: one for each target, or for each class."""
        return self.y.shape[1] if self.task == "regression" else len(self.classes)


def _indices(key: str, values: ArrayLike, ndim: int) -> NDArray[np.int64]:
    """Return classes or tokens of `ndim` axes. Raises ConfigError for `key` if they are not integers from 0."""
    array = np.asarray(values)
    if array.ndim != ndim or array.dtype.kind not in "iub" or array.min(initial=0) < 0:
        form = "one column" if ndim == 1 else f"an array with {ndim} axes"
        raise ConfigError(key, f"classes must be {form} of whole numbers from 0, of an integer dtype")
    return array.astype(np.int64)


def _real(key: str, values: ArrayLike, may_be_nan: bool = False) -> NDArray[np.floating]:
    """Return the values in float32 or float64. Raises ConfigError for `key` if float32 cannot hold one of them."""
    try:
        array = np.asarray(values)
        array = array.astype(np.float32 if array.dtype == np.float32 else np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(key, f"holds values that are not numbers ({error})") from error
    if array.ndim == 0:
        raise ConfigError(key, "is a single number; give an array with one row for each sample")
    lowest, highest = (np.fmin, np.fmax) if may_be_nan else (np.minimum, np.maximum)  # the latter pass NaN on
    limit = np.finfo(np.float32).max  # training is in float32
    if not (lowest.reduce(array, None, initial=0) >= -limit and highest.reduce(array, None, initial=0) <= limit):
        row = int(np.argwhere(~(np.abs(array) <= limit) & ~(may_be_nan & np.isnan(array)))[0][0])
        raise ConfigError(key, f"holds a value that is not finite, in row {row}")
    return array


def _one_each(name: str, values: ArrayLike, n: int) -> NDArray:
    """Return an array with one value for each sample, (n,). Raises ConfigError if it has another shape."""
    array = np.asarray(values)
    if array.shape != (n,):
        raise ConfigError("data", f"needs {name} of shape ({n},), one for each sample, got {array.shape}")
    return array


def _weights(values: NDArray) -> NDArray[np.float32]:
    """Return the weights of the samples in float32.

    Raises ConfigError if one is negative, if all are 0, or if float32 cannot hold their sum.
    """
    array = _real("data.weight", values).astype(np.float32)
    if array.min(initial=0) < 0 or not array.any():
        raise ConfigError("data.weight", "holds a negative weight" if array.any() else "holds no weight above 0")
    if array.sum(dtype=np.float64) > np.finfo(np.float32).max:
        raise ConfigError("data.weight", "holds weights whose sum is not finite in float32; divide them by a constant")
    return array


def _columns(array: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return targets as (N, n_targets)."""
    if array.ndim > 2:
        raise ConfigError("data.target", f"must be (N,) or (N, n_targets), got {array.shape}")
    return array[:, None] if array.ndim == 1 else array
