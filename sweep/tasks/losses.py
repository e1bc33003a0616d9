"""Losses that torch lacks, and weights of classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sweep.utils.errors import require


class Pinball(nn.Module):
    """The pinball loss of quantiles: max(q * e, (q - 1) * e) with the error e = target - output.

    It is lowest when a share q of the targets is below the output (Koenker and Bassett 1978).
    """

    def __init__(self, quantiles: Sequence[float], reduction: str = "mean") -> None:
        """Make the loss.

        Args:
            quantiles: one for each output of a target, between 0 and 1.
            reduction: "mean", or "none" for the loss of each sample, target and quantile.
        """
        super().__init__()
        require(reduction in ("mean", "none"), "task.loss.reduction", f"must be mean or none, got {reduction}")
        self.reduction = reduction
        self.register_buffer("_quantiles", torch.tensor(quantiles), persistent=False)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over samples, targets and quantiles; or the loss of each.

        Args:
            outputs: (B, n_targets * n_quantiles), the quantiles of the first target first.
            targets: (B, n_targets).
        """
        quantiles = self.get_buffer("_quantiles")
        losses = pinball(outputs.unflatten(1, (-1, len(quantiles))), targets.unsqueeze(-1), quantiles)
        return losses if self.reduction == "none" else losses.mean()


def pinball(outputs: Tensor, targets: Tensor, quantiles: Tensor) -> Tensor:
    """Return the pinball loss of each sample, target and quantile, of shape (B, n_targets, n_quantiles).

    See `Pinball`.

    Args:
        outputs: (B, n_targets, n_quantiles).
        targets: (B, n_targets, 1).
        quantiles: (n_quantiles,).
    """
    errors = targets - outputs
    return torch.maximum(quantiles * errors, (quantiles - 1) * errors)


def balanced_weights(counts: Tensor) -> Tensor:
    """Return the weight of each class, n / (n_classes * count), as scikit-learn's class_weight="balanced".

    A class without samples gets 0.

    Args:
        counts: (n_classes,), samples of each class.
    """
    weights = counts.sum() / (len(counts) * counts.double())
    return torch.where(counts > 0, weights, 0.0).float()


def balanced_pos_weights(positives: Tensor, n: int) -> Tensor:
    """Return negatives / positives for each label; 1 for a label without positives.

    Args:
        positives: (n_labels,), samples that have the label.
        n: the number of samples.
    """
    return torch.where(positives > 0, (n - positives) / positives.double(), 1.0).float()
