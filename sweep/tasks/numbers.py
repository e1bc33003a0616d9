"""Tasks that predict numbers."""

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Any, ClassVar

from torch import Tensor

from sweep.tasks.metrics import Count
from sweep.tasks.task import FunctionMetric, Metrics, TensorFunction, TensorTask
from sweep.utils.errors import require


class Regression(TensorTask):
    """Predict numbers. Outputs and targets are (B, n_targets), normalised if the data are.

    A metric gets both in the targets' own units. A function that takes `scale` gets them normalised instead, and the
    targets' standard deviations as `scale`, so that differences keep their precision.

    If the loss has an attribute `log_input` that is true, as `torch.nn.PoissonNLLLoss` has, the outputs are logarithms.
    Metrics and predictions are of the numbers themselves then.
    """

    kinds: ClassVar = ("regression",)  # of data, as in `Samples.task`

    def __init__(self, loss: TensorFunction, metrics: Metrics, y_mean: Tensor, y_std: Tensor) -> None:
        """Make the task.

        Args:
            loss: the mean loss over a batch.
            metrics: by name.
            y_mean: (n_targets,), what was subtracted from the targets.
            y_std: (n_targets,), what they were divided by afterwards.
        """
        self._mean, self._std = y_mean.double(), y_std.double()  # in its own units, a square may overflow float32
        self.outputs_are_logs = bool(getattr(loss, "log_input", False))
        super().__init__(loss, metrics, len(y_mean))

    @staticmethod
    def predicted(outputs: Tensor, y_mean: Tensor, y_std: Tensor) -> Tensor:
        """Return the numbers in the targets' own units, (B, n_targets), or (B,) for one target, in float64."""
        numbers = outputs * y_std.double() + y_mean.double()
        return numbers.squeeze(1) if len(y_mean) == 1 else numbers

    def on_split(self, function: FunctionMetric) -> FunctionMetric:
        """As for `TensorTask`."""
        if _takes_scale(function):
            scaled: Any = partial(function, **{"scale": self._std})
            return scaled if not self.outputs_are_logs else lambda outputs, y: scaled(self.on_target_scale(outputs), y)
        return super().on_split(function)

    def count_on_split(self, function: Any, count: Count) -> Callable[[Tensor, Tensor], int | Tensor]:
        """As for `TensorTask`."""
        if _takes_scale(function):
            return lambda _, targets: count(targets)
        return super().count_on_split(function, count)

    def measured(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs and targets in the targets' own units, in float64."""
        return self.on_target_scale(outputs) * self._std + self._mean, targets * self._std + self._mean


def _takes_scale(function: FunctionMetric) -> bool:
    return "scale" in signature(function).parameters


class Quantile(TensorTask):
    """Predict quantiles of numbers. Outputs are (B, n_targets * n_quantiles), the first target's quantiles first.

    A metric gets them as (N, n_targets, n_quantiles), and the targets as (N, n_targets, 1), in the targets' own units.
    """

    kinds: ClassVar = ("regression",)

    def __init__(
        self,
        loss: TensorFunction,
        metrics: Metrics,
        y_mean: Tensor,
        y_std: Tensor,
        quantiles: Sequence[float],
    ) -> None:
        """Make the task. The other arguments are as for `Regression`.

        Raises ConfigError unless the quantiles rise and are between 0 and 1.
        """
        rise = all(0 < q < 1 for q in quantiles) and sorted(set(quantiles)) == [*quantiles]
        require(rise and len(quantiles) > 0, "task.quantiles", f"must rise, each between 0 and 1, got {[*quantiles]}")
        self._mean, self._std = y_mean.double(), y_std.double()
        super().__init__(loss, metrics, len(y_mean) * len(quantiles))

    @staticmethod
    def predicted(outputs: Tensor, y_mean: Tensor, y_std: Tensor) -> Tensor:
        """Return the quantiles in the targets' own units, in float64.

        They are (B, n_targets, n_quantiles), or (B, n_quantiles) for one target.
        """
        mean, std = y_mean.double().unsqueeze(-1), y_std.double().unsqueeze(-1)
        numbers = outputs.unflatten(1, (len(y_mean), -1)) * std + mean
        return numbers.squeeze(1) if len(y_mean) == 1 else numbers

    def measured(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return what metrics get; see the class."""
        mean, std = self._mean.unsqueeze(-1), self._std.unsqueeze(-1)
        return outputs.unflatten(1, (len(mean), -1)) * std + mean, targets.unsqueeze(-1) * std + mean
