"""Tasks that predict classes, labels or tokens. The model's outputs are logits."""

from typing import ClassVar

from torch import Tensor

from sweep.tasks.task import Metrics, TensorFunction, TensorTask


class Classification(TensorTask):
    """Predict one of several classes.

    Outputs are (B, n_classes), targets (B,) class indices. Metrics get them as they are.
    """

    kinds: ClassVar = ("classification",)  # of data, as in `Samples.task`
    torchmetrics_task: ClassVar = "multiclass"

    def __init__(self, loss: TensorFunction, metrics: Metrics, n_classes: int) -> None:
        """Make the task. See `TensorTask`."""
        super().__init__(loss, metrics, n_classes)


class Segmentation(Classification):
    """Predict a class for each pixel.

    Outputs are (B, n_classes, height, width), targets (B, height, width). Metrics get them as they are.
    """

    kinds: ClassVar = ("segmentation",)

    def out_shape(self, targets: Tensor) -> tuple[int, ...]:
        """Return (B, n_classes, height, width)."""
        return (len(targets), self.out_features, *targets.shape[1:])


class LanguageModel(Classification):
    """Predict a token at each position.

    Outputs are (B, length, n_tokens), targets (B, length). The loss and the metrics get each position as a sample of
    its own: (B * length, n_tokens) and (B * length,).
    """

    kinds: ClassVar = ("language_model",)

    def out_shape(self, targets: Tensor) -> tuple[int, ...]:
        """Return (B, length, n_tokens)."""
        return (*targets.shape, self.out_features)

    def loss_of(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As for `TensorTask`."""
        return super().loss_of(*self.measured(outputs, targets))

    def measured(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return each position as a sample of its own."""
        return outputs.flatten(0, 1), targets.flatten()


class Multilabel(TensorTask):
    """Predict any number of labels.

    Outputs are (B, n_labels), targets (B, n_labels) of 0 and 1. Metrics get probabilities and whole numbers.
    """

    kinds: ClassVar = ("multilabel",)
    torchmetrics_task: ClassVar = "multilabel"

    def __init__(self, loss: TensorFunction, metrics: Metrics, n_labels: int) -> None:
        """Make the task. See `TensorTask`."""
        super().__init__(loss, metrics, n_labels)

    def loss_of(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As for `TensorTask`."""
        return super().loss_of(outputs, targets.to(outputs.dtype))

    def measured(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and targets."""
        return outputs.sigmoid(), targets


class Binary(TensorTask):
    """Predict the second of two classes.

    Outputs are (B, 1), targets (B,) of 0 and 1. Metrics get probabilities (B,) and the targets.
    """

    kinds: ClassVar = ("classification",)
    torchmetrics_task: ClassVar = "binary"

    def __init__(self, loss: TensorFunction, metrics: Metrics) -> None:
        """Make the task. See `TensorTask`."""
        super().__init__(loss, metrics, 1)

    def loss_of(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As for `TensorTask`."""
        return super().loss_of(outputs.squeeze(1), targets.to(outputs.dtype))

    def measured(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and targets."""
        return outputs.squeeze(1).sigmoid(), targets
