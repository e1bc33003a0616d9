"""A convolutional model for small images."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from sweep.models.layers import activation, positive_sizes, xavier_


class ConvNet(nn.Module):
    """3 x 3 convolutions with an activation each, halving the image between them; then one linear layer.

    Input (B, channels, height, width), output (B, out_features); Xavier-uniform weights. Raises ValueError when the
    data are no images, or too small to be halved so often.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_features: int,
        channels: Sequence[int] = (16, 32),
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(in_shape) != 3:
            raise ValueError(
                f"needs images (channels, height, width), but a sample has shape {tuple(in_shape)}; try model=mlp"
            )
        n_channels = [in_shape[0], *positive_sizes("channels", list(channels))]
        if min(in_shape[1:]) < 2 ** len(channels):
            raise ValueError(f"{len(channels)} channels halve an image of {in_shape[1]} x {in_shape[2]} too often")
        blocks = [_block(n_in, n_out, activation) for n_in, n_out in pairwise(n_channels)]
        self.features = nn.Sequential(*blocks, nn.Flatten(), nn.Dropout(dropout))
        with torch.no_grad():
            n_flat = self.features(torch.zeros(1, *in_shape)).shape[1]
        self.head = nn.Linear(n_flat, out_features)
        xavier_(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def _block(n_in: int, n_out: int, name: str) -> nn.Module:
    return nn.Sequential(nn.Conv2d(n_in, n_out, kernel_size=3, padding=1), activation(name), nn.MaxPool2d(2))
