"""Checks of a model, a loss and metrics on a batch, before training."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sweep.tasks import Metric, Task, TensorTask
from sweep.tasks.weighting import check_weighting
from sweep.training.data import Batch, describe, is_pair
from sweep.training.tensors import largest_batch
from sweep.utils.errors import ConfigError, one_line


@torch.no_grad()
def check_model(model: nn.Module, batch: Batch, task: TensorTask | Task, is_weighted: bool = False) -> None:
    """Run the model on one batch, which also gives lazy layers their shapes, and compute the loss.

    Args:
        model: its weights stay as they are.
        batch: of training samples.
        task: says which shape the outputs must have, if it is a `TensorTask`.
        is_weighted: whether the samples have weights.

    Raises:
        ConfigError: the model or the loss fails, or returns something of another shape; or a `TensorTask` gets other
            batches than inputs and targets; or the samples have weights, which the loss cannot take.
    """
    model.eval()
    if not isinstance(task, TensorTask):
        if is_weighted:
            problem = f"the task {type(task).__name__} is no sweep.tasks.TensorTask, so it cannot weight samples"
            raise ConfigError("data.weight", f"{problem}; leave it out")
        _check_loss(lambda: task.loss(model, batch), describe(batch))
        return
    if not is_pair(batch):
        problem = f"gives {describe(batch)}, and the task {type(task).__name__} takes pairs of inputs and targets"
        raise ConfigError("data", f"{problem}; write a task of your own (docs/tasks.md)")
    x, y = batch
    try:
        outputs = model(x)
    except Exception as error:  # your own model may raise anything
        raise ConfigError("model", _why_not(model, batch, error)) from error
    shape, wanted = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__, task.out_shape(y)
    if shape != wanted:
        raise ConfigError("model", f"returned {shape} for a batch of {len(x)}; the data need {wanted}")
    _check_loss(lambda: task.loss_of(outputs, y), f"outputs of shape {shape} and targets of shape {tuple(y.shape)}")
    if is_weighted:
        check_weighting(task, outputs, y)


def _why_not(model: nn.Module, batch: Batch, error: Exception) -> str:
    """Return why a model cannot take a batch: torch's words, unless it gets tokens and has no embedding."""
    takes_tokens = any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in model.modules())
    if batch[0].is_floating_point() or takes_tokens:
        return f"cannot take {describe(batch)}: {one_line(error)}"
    what = f"cannot take whole numbers ({describe(batch)}) and has no embedding"
    return f"{what}; for tokens, choose model=transformer; for other data, make them floating-point numbers"


def _check_loss(loss_of: Callable[[], Any], batch: str) -> None:
    """Raise ConfigError if the loss fails on the batch, or is not one number."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of shapes that cannot be broadcast, which is an error too
            loss = loss_of()
    except Exception as error:  # your own loss may raise anything
        raise ConfigError("task.loss", f"cannot take {batch}: {one_line(error)}") from error
    shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
    if shape != ():
        raise ConfigError("task.loss", f"returned {shape} for {batch}, not a single number; set reduction=mean")


def check_metrics(task: TensorTask, splits: Mapping[str, Tensor], of_datasets: bool = False) -> None:
    """Compute every metric once, for drawn outputs, to see whether the data allow it.

    Args:
        task: the metrics.
        splits: the targets of a split, by its name.
        of_datasets: whether the splits are torch datasets, for the message.

    Raises:
        ConfigError: a metric fails, is not finite, or warns that it has no meaning. Ranking metrics do if a class is
            missing.
    """
    for split, targets in splits.items():
        drawn = _Drawn(task, targets)
        for name in task.metrics:
            problem = _problem_of(partial(drawn.value, name))
            if problem is not None:
                if of_datasets:
                    raise refusal_of_metric(name, split, problem)
                message = f"cannot be computed on the {split} split: {problem}"
                raise ConfigError(f"task.metrics.{name}", f"{message}; leave it out, or raise split.{split}")


def refusal_of_metric(name: str, part: str, problem: str) -> ConfigError:
    """Return the error for a metric that one of the `Datasets` does not allow."""
    message = f"cannot be computed on Datasets.{part}: {problem}"
    return ConfigError(f"task.metrics.{name}", f"{message}; leave it out, or put other samples into Datasets.{part}")


class _Drawn:
    """Drawn outputs for the targets of a split, not all at once if they are large."""

    def __init__(self, task: TensorTask, targets: Tensor) -> None:
        self._task, self._targets = task, targets
        self._size = min(len(targets), largest_batch(task, targets))

    def value(self, name: str) -> Tensor | None:
        """Compute a metric; a mean over a large split of its first samples only."""
        batches = self._batches()
        if self._size == len(self._targets) or name in self._task.means:
            return self._task.value(name, *next(batches))
        return self._task.values_by_batch(batches, [name]).get(name)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for y in self._targets.split(self._size):
            yield _drawn_outputs(self._task, y, generator), y


class DrawnMetrics:
    """The `Metric`s of a task on drawn outputs: whether the targets allow them, where these are loaded batch by batch.

    Their values and warnings for a model's outputs would not show it: a model that says the same for all samples has
    some of these warnings too.
    """

    def __init__(self, task: TensorTask) -> None:
        """Copy the metrics. One that cannot be copied is left out."""
        self._task, self._generator = task, torch.Generator().manual_seed(0)
        self._metrics: dict[str, Metric] = {}
        for name, metric in task.collecting.items():
            with suppress(Exception):  # copying your own metric may raise anything
                self._metrics[name] = copy.deepcopy(metric)
        for metric in self._metrics.values():
            metric.reset()

    def add(self, targets: Tensor) -> None:
        """Draw outputs for a batch, and update the metrics. One that cannot take them is left out."""
        if not self._metrics:
            return
        measured = self._task.measured(_drawn_outputs(self._task, targets, self._generator), targets)
        for name, metric in [*self._metrics.items()]:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    metric.update(*measured)
            except Exception:  # the model's outputs will raise it again
                del self._metrics[name]

    def problems(self) -> dict[str, str]:
        """Return why a metric has no meaning on these targets, by its name."""
        found = {name: _problem_of(metric.compute) for name, metric in self._metrics.items()}
        return {name: problem for name, problem in found.items() if problem is not None}


def _drawn_outputs(task: TensorTask, targets: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(task.out_shape(targets), generator=generator).to(targets.device)


def _problem_of(compute: Callable[[], Tensor | None]) -> str | None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = compute()
        except Exception as error:  # your own metric may raise anything
            return one_line(error)
    if value is not None and (value.shape != () or not value.isfinite()):
        return f"it is {value.tolist()}, not one finite number"
    return str(caught[0].message) if caught else None


def check_last_batch(model: nn.Module, batch: Batch, n: int, batch_size: int) -> None:
    """If an epoch ends with a batch of one sample, try a copy of the model on it in training mode.

    Batch normalisation, for example, cannot normalise one sample. Draws from the global random generators.

    Args:
        model: its weights stay as they are.
        batch: of training samples. One that is not inputs and targets is not tried.
        n: the number of samples in an epoch.
        batch_size: samples in each batch but the last.

    Raises:
        ConfigError: batch normalisation refuses the batch. Any other error is left to training.
    """
    if (n % batch_size != 1 and batch_size > 1) or not is_pair(batch):
        return
    try:
        copy.deepcopy(model).train()(batch[0][:1])
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            return  # training raises it again
        sizes = [size for size in range(2, n + 1) if n % size != 1]
        nearest = sorted(sorted(sizes, key=lambda size: abs(size - batch_size))[:3])
        raise ConfigError(
            "trainer.batch_size",
            f"is {batch_size}, so that the last batch of the {n} training samples has one, which batch normalisation "
            f"cannot take; choose another, such as {', '.join(map(str, nearest))}",
        ) from error
    except Exception:  # the model cannot be copied, or fails in another way: training raises it again
        return
