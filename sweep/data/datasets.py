"""`Datasets`, which a data option may return instead of `Samples`: torch datasets, loaded batch by batch."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from sweep.config.metrics import KINDS
from sweep.data.samples import PARTS, TaskName
from sweep.utils.errors import ConfigError, one_of


@dataclass(frozen=True)
class Datasets:
    """Three torch datasets. A *stream* is one that is iterable; any other has `__getitem__` and `__len__`.

    Nothing is normalised: what the datasets give is what the model gets. A batch may be any structure of tensors. The
    tasks of `conf/task` take pairs of inputs and targets, as tensors; a task of your own takes whatever you make.

    Args:
        train: the samples to train on.
        val: the samples that select a model.
        test: the samples that test it; None leaves out the test.
        collate_fn: makes a batch of a list of samples; by default torch's `default_collate`.
        task: what the targets are for, as in `Samples`. A task of your own does not need it.
        classes: names of the classes or labels; by default the indices up to `out_features`.
        out_features: the number of outputs that a model needs. By default one for each class, or for each column of the
            targets of the first batch.
        in_shape: the shape of one sample's input. By default that of the inputs in the first batch.
        in_dtype: the dtype of the inputs, such as float32. By default that of the first batch.
        n_tokens: the number of different tokens, for inputs that are token ids; by default the number of classes if the
            task is language_model.
        name: of the data set; by default the name of the class of `train`.
        source: where the data come from, such as a path.

    Raises:
        ConfigError: one of them is no dataset or is empty, or something is missing.
    """

    train: Any
    val: Any = None
    test: Any = None
    collate_fn: Callable[[list[Any]], Any] | None = None
    _: KW_ONLY
    task: TaskName | None = None
    classes: tuple[str, ...] = ()
    out_features: int | None = None
    in_shape: tuple[int, ...] | None = None
    in_dtype: str = ""
    n_tokens: int = 0
    name: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if self.val is None:
            raise ConfigError(
                "data", "Datasets has no val; give one, such as a part of train by torch.utils.data.random_split"
            )
        for part in PARTS:
            if getattr(self, part) is not None:
                _check(part, getattr(self, part))
        if self.collate_fn is not None and not callable(self.collate_fn):
            raise ConfigError("data", f"Datasets.collate_fn is a {type(self.collate_fn).__name__}, not a function")
        put = object.__setattr__  # as in `Samples`
        put(self, "name", self.name or type(self.train).__name__)
        put(self, "classes", tuple(map(str, self.classes)))
        if self.task is not None:
            one_of("data.task", self.task, KINDS)
        if self.task not in (None, "regression"):
            if not self.classes and self.out_features is None:
                raise ConfigError("data", f"Datasets for {self.task} needs classes=[...], or out_features=...")
            if self.classes and self.out_features not in (None, len(self.classes)):
                problem = f"names {len(self.classes)} classes, but out_features is {self.out_features}"
                raise ConfigError("data", f"Datasets {problem}; leave one of them out")
            put(self, "classes", self.classes or tuple(map(str, range(self.out_features or 0))))
            put(self, "out_features", len(self.classes))
        if self.task == "language_model":
            put(self, "n_tokens", self.n_tokens or len(self.classes))

    @property
    def tokens(self) -> bool:
        """Whether the inputs are token ids."""
        return self.n_tokens > 0

    @property
    def noise(self) -> None:
        """The noise of the targets, which only arrays can state."""
        return

    def size(self, part: str) -> int | None:
        """Return the number of samples of `train`, `val` or `test`; None if it is not known. A missing test has 0."""
        dataset = getattr(self, part)
        return 0 if dataset is None else length(dataset)


def is_stream(dataset: Any) -> bool:
    """Return whether the samples can only be had in their order."""
    torch_data = sys.modules.get("torch.utils.data")  # if it is not loaded, none of its classes can be given
    if torch_data is not None and isinstance(dataset, torch_data.IterableDataset):
        return True
    return not hasattr(dataset, "__getitem__")


def length(dataset: Any) -> int | None:
    """Return the number of samples; None if the dataset does not say."""
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def _check(part: str, dataset: Any) -> None:
    """Raise ConfigError unless it is a torch dataset with samples, as far as this can be seen without loading one."""
    kind, where = type(dataset).__name__, f"Datasets.{part}"
    if any(base.__name__ == "DataLoader" for base in type(dataset).__mro__):
        raise ConfigError("data", f"{where} is a {kind}; give its dataset, and set loader.num_workers and the like")
    is_one = hasattr(dataset, "__getitem__") or hasattr(dataset, "__iter__")
    if not is_one or isinstance(dataset, str | bytes | Mapping | type):
        shown = f"the class {dataset.__name__}" if isinstance(dataset, type) else f"a {kind}"
        raise ConfigError("data", f"{where} is {shown}, not a torch dataset")
    if hasattr(dataset, "__next__"):
        raise ConfigError(
            "data", f"{where} is a {kind}, which can be read once; give a torch.utils.data.IterableDataset"
        )
    n = length(dataset)
    if n == 0:
        raise ConfigError("data", f"{where} is empty")
    if n is None and not is_stream(dataset):
        raise ConfigError("data", f"{where} is a {kind} without __len__; a dataset with __getitem__ needs it")
