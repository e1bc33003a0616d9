"""The contract of a task, and the base class of tasks whose loss needs only outputs and targets."""

from collections.abc import Callable, Collection, Container, Iterable, Mapping
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from sweep.tasks.metrics import Count, count_of
from sweep.tasks.split_values import SplitValues
from sweep.tasks.weighting import size_of_mean, unreduced, weighted_mean

TensorFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # of outputs and targets
BatchLoss: TypeAlias = Callable[..., Tensor]  # of outputs, targets and, if samples have weights, these
FunctionMetric: TypeAlias = Callable[[Tensor, Tensor], Tensor | None]  # likewise; None if it has no value


@runtime_checkable
class Metric(Protocol):
    """A metric that collects batches, as those of torchmetrics do."""

    def update(self, outputs: Any, targets: Any) -> object:
        """Add a batch: what `Task.outputs` returned, and the batch's targets."""

    def compute(self) -> Tensor:
        """Return the value over all batches so far, of shape ()."""
        ...

    def reset(self) -> object:
        """Forget all batches."""


Metrics: TypeAlias = Mapping[str, Metric | FunctionMetric]


class Task(Protocol):
    """What a batch means. A task of your own needs these members only.

    If its class takes arguments named `loss` and `metrics`, it gets what the config's `task.loss` and `task.metrics`
    describe. Trials of such a task train sequentially; a `TensorTask` can be packed.
    """

    metrics: Mapping[str, Metric]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss over the batch's samples, of shape ()."""
        ...

    def outputs(self, model: nn.Module, batch: Any) -> Any:
        """Return what the metrics are updated with."""
        ...


class TensorTask:
    """A task whose batch is inputs and targets, and whose loss is a function of the model's outputs and the targets.

    Subclasses say what the metrics get. Metrics are either functions of (outputs, targets), which are called with a
    whole split, or `Metric`s.

    Attributes:
        out_features: the number of outputs that a model needs for each prediction.
        metrics: by name, in the order in which they are recorded.
        collecting: those of them that are `Metric`s, by name.
        outputs_are_logs: whether the model's outputs are the logarithms of what it predicts.
        predicts_classes: whether `predicted` returns indices of classes, which a loaded model turns into their names.
    """

    predicts_classes: ClassVar[bool] = False
    outputs_are_logs: bool = False

    def __init__(self, loss: TensorFunction, metrics: Metrics, out_features: int) -> None:
        """Make the task.

        Args:
            loss: the mean loss over a batch, from outputs and targets.
            metrics: by name.
            out_features: see the class.
        """
        self._loss, self.metrics, self.out_features = loss, metrics, out_features
        self._loss_of_each: nn.Module | None = None  # made when it is needed
        self._functions = {name: self.on_split(m) for name, m in metrics.items() if not isinstance(m, Metric)}
        self.collecting = {name: metric for name, metric in metrics.items() if isinstance(metric, Metric)}
        counts = {name: count_of(metrics[name]) for name in self._functions}
        self._counts = {n: self.count_on_split(metrics[n], count) for n, count in counts.items() if count is not None}

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the loss and the metrics to a device, and the loss's tensors, such as class weights, to a dtype."""
        if isinstance(self._loss, nn.Module):
            self._loss.to(device, dtype)
        for metric in self.metrics.values():
            if isinstance(metric, nn.Module):
                metric.to(device)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """As for `Task`."""
        inputs, targets = batch
        return self.loss_of(model(inputs), targets)

    def outputs(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """As for `Task`."""
        return model(batch[0])

    def out_shape(self, targets: Tensor) -> tuple[int, ...]:
        """Return the shape that the model's outputs must have for these targets, (B, out_features) by default."""
        return (len(targets), self.out_features)

    def loss_of(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the mean loss over a batch, of shape ().

        Args:
            outputs: of the model, (B, ...).
            targets: (B, ...).
            weights: (B,), how much each sample counts; None if all count the same. See `weighted_mean`.

        Raises:
            ConfigError: there are weights, and the loss cannot weight samples.
        """
        return self._mean_loss(*self.for_loss(outputs, targets), weights)

    def loss_and_size(
        self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, int | Tensor]:
        """Return what `loss_of` does, and what this mean divides by."""
        formed = self.for_loss(outputs, targets)
        if type(self).loss_of is TensorTask.loss_of:
            loss = self._mean_loss(*formed, weights)
        else:  # of a task of your own, which may take no weights
            loss = self.loss_of(outputs, targets, *([] if weights is None else [weights]))
        return loss, size_of_mean(self._loss, formed[1], weights)

    def _mean_loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Return the mean loss of what `for_loss` returned."""
        if weights is None:
            return self._loss(outputs, targets)
        if self._loss_of_each is None:
            self._loss_of_each = unreduced(self._loss)
        return weighted_mean(self._loss_of_each, outputs, targets, weights)

    def for_loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs and targets in the form that the loss gets."""
        return outputs, targets

    @staticmethod
    def predicted(outputs: Tensor, y_mean: Tensor, y_std: Tensor) -> Tensor:
        """Return what a loaded model predicts, (B, ...): by default the outputs. It needs neither loss nor metrics.

        Args:
            outputs: of the model, (B, ...).
            y_mean: (n_targets,), what was subtracted from the targets.
            y_std: (n_targets,), what they were divided by afterwards.
        """
        del y_mean, y_std
        return outputs

    @staticmethod
    def probabilities(outputs: Tensor) -> Tensor | None:
        """Return the probabilities of the classes or labels, (B, n_classes, ...); None if there are none."""
        del outputs
        return None

    def on_target_scale(self, outputs: Tensor) -> Tensor:
        """Return the outputs, or the numbers whose logarithms they are."""
        return outputs.exp() if self.outputs_are_logs else outputs

    def measured(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs and targets in the form that metrics get."""
        return outputs, targets

    def on_split(self, function: FunctionMetric) -> FunctionMetric:
        """Return a metric as a function of the model's outputs and the split's targets."""
        return lambda outputs, targets: function(*self.measured(outputs, targets))

    def count_on_split(self, function: Any, count: Count) -> Callable[[Tensor, Tensor], int | Tensor]:
        """Return how many values a metric is the mean of, as a function of the model's outputs and the targets.

        Args:
            function: the metric.
            count: of the targets as the metric gets them, see `sweep.tasks.metrics.mean_over`.
        """
        del function
        return lambda outputs, targets: count(self.measured(outputs, targets)[1])

    def function_values(self, outputs: Tensor, targets: Tensor, *weights: Tensor) -> dict[str, Tensor]:
        """Compute the loss, and the metrics that are functions, of shape () each. A metric without a value is left out.

        `torch.vmap` can map it over the outputs of several models, if it can map each function.
        """
        loss = self.loss_of(outputs, targets, *weights)
        found = {name: function(outputs, targets) for name, function in self._functions.items()}
        return {"loss": loss} | {name: value for name, value in found.items() if value is not None}

    def collected_values(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Compute the metrics that are `Metric`s, of shape () each."""
        return {name: self._collected(name, outputs, targets) for name in self.collecting}

    def _collected(self, name: str, outputs: Tensor, targets: Tensor) -> Tensor:
        metric = self.collecting[name]
        metric.reset()
        metric.update(*self.measured(outputs, targets))
        value = metric.compute()
        metric.reset()
        return value

    def values(self, outputs: Tensor, targets: Tensor, *weights: Tensor) -> dict[str, Tensor]:
        """Compute the loss in the units of training, and all metrics, of shape () each.

        Args:
            outputs: of the model, for a whole split.
            targets: of the same samples.
            weights: of the same samples, if they have some. They weight the loss; metrics count all samples alike.
        """
        found = self.function_values(outputs, targets, *weights) | self.collected_values(outputs, targets)
        return {name: found[name] for name in self.order(found)}

    def values_by_batch(
        self, batches: Iterable[tuple[Tensor, ...]], names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Compute the loss and metrics, of shape () each, over batches, one after another. See `SplitValues`.

        Args:
            batches: outputs, targets and, if samples have some, weights of each, at least one.
            names: of the values to compute; by default the loss and all metrics.
        """
        values = SplitValues(self, names)
        for batch in batches:
            values.add(*batch)
        return values.computed()

    @property
    def means(self) -> Collection[str]:
        """The names of the metrics that are functions and marked as means, see `sweep.tasks.metrics.mean_over`."""
        return self._counts.keys()

    def count(self, name: str, outputs: Tensor, targets: Tensor) -> int | Tensor:
        """Return the number of values that one of the `means` is over, from the model's outputs and the targets."""
        return self._counts[name](outputs, targets)

    @property
    def whole(self) -> list[str]:
        """The names of the metrics that need the outputs of a whole split at once: functions that are no means."""
        return [name for name in self._functions if name not in self._counts]

    def value(self, name: str, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Compute one metric; None if it has no value."""
        if name in self._functions:
            return self._functions[name](outputs, targets)
        return self._collected(name, outputs, targets)

    @property
    def collects(self) -> bool:
        """Whether some of the metrics are `Metric`s."""
        return bool(self.collecting)

    def order(self, names: Container[str]) -> list[str]:
        """Return the names of those values in the order in which they are recorded."""
        return [name for name in ("loss", *self.metrics) if name in names]
