"""The trial that the rivals train, written by hand: the default data and MLP of `sweep`, Adam with a constant rate."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

BATCH_SIZE = 64

torch.set_num_threads(1)  # the best for so small a model, and what `sweep` chooses


def train(lr: float, epochs: int) -> Iterator[tuple[int, float, float]]:
    """Train, and yield (epoch, training loss, validation loss)."""
    x, y, x_val, y_val = _data()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    loss_fn = nn.MSELoss()
    for epoch in range(1, epochs + 1):
        total = 0.0
        for rows in torch.randperm(len(x)).split(BATCH_SIZE):
            loss = loss_fn(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        with torch.no_grad():
            val_loss = loss_fn(model(x_val), y_val).item()
        yield epoch, total / len(x), val_loss


def _data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return 4,000 points of a noisy sine, normalised: 70 % for training, 15 % for validation."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-np.pi, np.pi, 4000)
    y = np.sin(x) + rng.normal(scale=0.1, size=4000)
    train, val = slice(0, 2800), slice(2800, 3400)
    x, y = ((v - v[train].mean()) / v[train].std() for v in (x, y))
    x, y = (torch.tensor(v[:, None], dtype=torch.float32) for v in (x, y))
    return x[train], y[train], x[val], y[val]
