"""Many digits from a good camera, and few from a poor one."""

import numpy as np
from sklearn.datasets import load_digits
from torch import nn

from sweep import Samples, load_model


def clean():
    """The first 1000 images, as they are."""
    x, y = load_digits(return_X_y=True)
    return Samples(name="clean", task="classification", x=x[:1000].reshape(-1, 1, 8, 8), y=y[:1000])


def faded():
    """797 others, of low contrast, moved and noisy: 60 to train and choose, the rest to test."""
    x, y = load_digits(return_X_y=True)
    x, y = np.roll(x[1000:].reshape(-1, 1, 8, 8), 1, axis=3) / 2, y[1000:]
    x += np.random.default_rng(0).normal(scale=2.0, size=x.shape)
    split = np.where(np.arange(len(y)) < 60, "train", "test")
    return Samples(name="faded", task="classification", x=x, y=y, split=split)


class Network(nn.Module):
    def __init__(self, in_shape, out_features, weights=None):
        super().__init__()
        first = [nn.Conv2d(in_shape[0], 32, 3, padding=1), nn.ReLU()]
        second = [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
        self.first, self.second, self.head = nn.Sequential(*first), nn.Sequential(*second), nn.Linear(256, out_features)
        if weights is not None:
            saved = load_model(weights).module.state_dict()
            self.load_state_dict({name: w for name, w in saved.items() if not name.startswith("head.")}, strict=False)

    def forward(self, x):
        return self.head(self.second(self.first(x)))
