"""Images of a disc and a square on noise, with the class of each pixel; and a small network for them."""

import numpy as np
from torch import nn

from sweep import Samples


def images(n=240, size=16, seed=0):
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    x, y = rng.normal(scale=0.6, size=(n, 1, size, size)), np.zeros((n, size, size), dtype=int)
    for image, classes in zip(x, y, strict=True):
        (r, c), (top, left) = rng.integers(4, size - 4, 2), rng.integers(0, size - 6, 2)
        classes[(rows - r) ** 2 + (columns - c) ** 2 < 16] = 1
        classes[top : top + 6, left : left + 6] = 2
        image[0] += 1.0 * (classes == 1) - 1.0 * (classes == 2)
    return Samples(name="shapes", task="segmentation", x=x, y=y, classes=("background", "disc", "square"))


class Segmenter(nn.Sequential):
    def __init__(self, in_shape, out_features, width=16):
        wide = [nn.Conv2d(width, width, 3, padding=2**i, dilation=2**i) for i in range(3)]
        hidden = [layer for conv in wide for layer in (conv, nn.GroupNorm(4, width), nn.ReLU())]
        first = nn.Conv2d(in_shape[0], width, 3, padding=1)
        super().__init__(first, nn.ReLU(), *hidden, nn.Conv2d(width, out_features, 1))
