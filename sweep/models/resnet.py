"""A residual network for small images."""

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import relu

from sweep.models.layers import positive_sizes, require_image

_MOST_GROUPS = 8  # of channels that are normalised together


class ResNet(nn.Module):
    """A residual network (He et al. 2016): a 3 x 3 convolution, stages of blocks, the mean over pixels, a linear layer.

    The input is (B, channels, height, width), the output (B, out_features). A block has two 3 x 3 convolutions, each
    followed by a normalisation. Every stage but the first halves the image in its first block.

    Convolutions are Kaiming-normal. A block is the identity at first: the scale of its last normalisation is zero.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_features: int,
        widths: Sequence[int] = (16, 32, 64),
        n_blocks: int = 1,
        norm: Literal["group", "batch"] = "group",
    ) -> None:
        """Make the model.

        Args:
            in_shape: (channels, height, width) of one sample.
            out_features: how many outputs a sample has.
            widths: channels of each stage.
            n_blocks: blocks in each stage.
            norm: "group" normalises each sample by itself, over groups of channels (Wu and He 2018). "batch" normalises
                over the batch and keeps running statistics, so such trials cannot be packed.

        Raises:
            ValueError: the samples are not images, or a size is below 1.
        """
        super().__init__()
        require_image(in_shape)
        if n_blocks < 1:
            raise ValueError(f"n_blocks must be >= 1, got {n_blocks}")
        if not widths:
            raise ValueError("widths must name at least one stage")
        n = [positive_sizes("widths", list(widths))[0], *widths]
        self.stem = _Convolution(in_shape[0], n[0], norm)
        self.blocks = nn.Sequential(
            *(
                _Block(n[i] if first else n[i + 1], n[i + 1], norm, stride=2 if first and i > 0 else 1)
                for i in range(len(widths))
                for first in (True, *[False] * (n_blocks - 1))
            )
        )
        self.head = nn.Linear(n[-1], out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(relu(self.stem(x))).mean((-2, -1)))


class _Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, norm: str, stride: int) -> None:
        super().__init__()
        self.first = _Convolution(n_in, n_out, norm, stride=stride)
        self.second = _Convolution(n_out, n_out, norm)
        nn.init.zeros_(self.second.norm.weight)
        same = n_in == n_out and stride == 1
        self.shortcut = nn.Identity() if same else _Convolution(n_in, n_out, norm, size=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.shortcut(x) + self.second(relu(self.first(x))))


class _Convolution(nn.Module):
    """A convolution without a bias, then a normalisation."""

    def __init__(self, n_in: int, n_out: int, norm: str, size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(n_in, n_out, size, stride, padding=size // 2, bias=False)
        nn.init.kaiming_normal_(self.convolution.weight, mode="fan_out", nonlinearity="relu")
        n_groups = math.gcd(n_out, _MOST_GROUPS)
        self.norm = nn.BatchNorm2d(n_out) if norm == "batch" else nn.GroupNorm(n_groups, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convolution(x))
