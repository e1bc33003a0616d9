"""Tasks that predict classes, labels or tokens. The model's outputs are logits."""

from typing import ClassVar

import torch
from torch import Tensor

from sweep.tasks.task import Metrics, TensorFunction, TensorTask


class Classification(TensorTask):
    """Predict one of several classes.

    Outputs are (B, n_classes), targets (B,) class indices. Metrics get them as they are.
    """

    kinds: ClassVar = ("classification",)  # of data, as in `Samples.task`
    torchmetrics_task: ClassVar = "multiclass"
    predicts_classes: ClassVar = True

    def __init__(self, loss: TensorFunction, metrics: Metrics, n_classes: int) -> None:
        """Make the task. See `TensorTask`."""
        super().__init__(loss, metrics, n_classes)

    @staticmethod
    def predicted(outputs: Tensor, y_mean: Tensor, y_std: Tensor) -> Tensor:
        """Return the indices of the most probable classes, (B, ...)."""
        del y_mean, y_std
        return outputs.argmax(dim=1)

    @staticmethod
    def probabilities(outputs: Tensor) -> Tensor | None:
        """Return the probabilities of the classes, (B, n_classes, ...)."""
        return outputs.softmax(dim=1)


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
    predicts_classes: ClassVar = False

    @staticmethod
    def predicted(outputs: Tensor, y_mean: Tensor, y_std: Tensor) -> Tensor:
        """Return the most probable next token at each position, (B, length)."""
        del y_mean, y_std
        return outputs.argmax(dim=-1)

    @staticmethod
    def probabilities(outputs: Tensor) -> Tensor | None:
        """Return the probabilities of the next token at each position, (B, length, n_tokens)."""
        return outputs.softmax(dim=-1)

    def out_shape(self, targets: Tensor) -> tuple[int, ...]:
        """Return (B, length, n_tokens)."""
        return (*targets.shape, self.out_features)

    def for_loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return each position as a sample of its own."""
        return self.measured(outputs, targets)

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

    @staticmethod
    def predicted(outputs: Tensor, y_mean: Tensor, y_std: Tensor) -> Tensor:
        """Return 1 for each label whose probability is above 0.5, else 0, (B, n_labels)."""
        del y_mean, y_std
        return (outputs > 0).long()

    @staticmethod
    def probabilities(outputs: Tensor) -> Tensor | None:
        """Return the probability of each label, (B, n_labels)."""
        return outputs.sigmoid()

    def for_loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs and targets of the same dtype."""
        return outputs, targets.to(outputs.dtype)

    def measured(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and targets."""
        return outputs.sigmoid(), targets


class Binary(TensorTask):
    """Predict the second of two classes.

    Outputs are (B, 1), targets (B,) of 0 and 1. Metrics get probabilities (B,) and the targets.
    """

    kinds: ClassVar = ("classification",)
    torchmetrics_task: ClassVar = "binary"
    predicts_classes: ClassVar = True

    def __init__(self, loss: TensorFunction, metrics: Metrics) -> None:
        """Make the task. See `TensorTask`."""
        super().__init__(loss, metrics, 1)

    @staticmethod
    def predicted(outputs: Tensor, y_mean: Tensor, y_std: Tensor) -> Tensor:
        """Return 1 where the probability of the second class is above 0.5, else 0, (B,)."""
        del y_mean, y_std
        return (outputs.squeeze(1) > 0).long()

    @staticmethod
    def probabilities(outputs: Tensor) -> Tensor | None:
        """Return the probabilities of both classes, (B, 2)."""
        return torch.cat([-outputs, outputs], dim=1).sigmoid()

    def for_loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return both as (B,), of the same dtype."""
        return outputs.squeeze(1), targets.to(outputs.dtype)

    def measured(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and targets."""
        return outputs.squeeze(1).sigmoid(), targets
