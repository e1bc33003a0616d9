"""A convolutional model for small images."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from sweep.models.layers import activation, positive_sizes, require_image, xavier_


class ConvNet(nn.Module):
    """Blocks of a 3 x 3 convolution, an activation and a 2 x 2 max pooling, then dropout and one linear layer.

    The input is (B, channels, height, width), the output (B, out_features). Each block halves the image. The weights
    are Xavier-uniform.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_features: int,
        channels: Sequence[int] = (16, 32),
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        """Make the model.

        Args:
            in_shape: (channels, height, width) of one sample.
            out_features: how many outputs a sample has.
            channels: output channels of each block.
            activation: a name in `ACTIVATIONS`.
            dropout: the probability that a feature is dropped before the linear layer.

        Raises:
            ValueError: the samples are not images, or they are too small for so many blocks.
        """
        super().__init__()
        require_image(in_shape)
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
