"""The parts that conf/ names: data, a module, callbacks and loggers, and the trainer that runs them."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sweep


class Rings:
    """Points in two noisy rings, one inside the other, each a class; a quarter of the points is for validation."""

    def __init__(self, n: int, noise: float, batch_size: int) -> None:
        self.n, self.noise, self.batch_size = n, noise, batch_size

    def setup(self) -> None:
        self.y = torch.arange(self.n) % 2
        angle, radius = 2 * torch.pi * torch.rand(self.n), 1 + self.y + self.noise * torch.randn(self.n)
        self.x = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
        self.n_train = 3 * self.n // 4

    def train_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in torch.randperm(self.n_train).split(self.batch_size):
            yield self.x[batch], self.y[batch]

    def validation(self) -> tuple[Tensor, Tensor]:
        return self.x[self.n_train :], self.y[self.n_train :]


class Classifier(nn.Module):
    """A network and its optimizer."""

    def __init__(self, width: int, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))
        self.optimizer = optimizer(self.net.parameters())

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.net(x), y)


class Callback:
    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float], model: nn.Module) -> None: ...


class Checkpoint(Callback):
    """Keeps the weights of the best epoch."""

    def __init__(self, monitor: str, path: str) -> None:
        self.monitor, self.path, self.best = monitor, path, float("inf")

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float], model: nn.Module) -> None:
        if metrics[self.monitor] < self.best:
            self.best = metrics[self.monitor]
            torch.save(model.state_dict(), self.path)


class Report(Callback):
    """Reports to the study, which may prune the trial here. Outside a study it does nothing."""

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float], model: nn.Module) -> None:
        sweep.current_trial().report(epoch, metrics)


class CsvLogger:
    """A line for each epoch."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def log(self, epoch: int, metrics: Mapping[str, float]) -> None:
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(["epoch", *metrics])
            writer.writerow([epoch, *metrics.values()])


class Trainer:
    def __init__(self, callbacks: Sequence[Callback], loggers: Sequence[Any], max_epochs: int) -> None:
        self.callbacks, self.loggers, self.max_epochs = callbacks, loggers, max_epochs

    def fit(self, model: Classifier, data: Rings) -> dict[str, float]:
        """Return the best value of each metric."""
        best: dict[str, float] = {}
        for epoch in range(1, self.max_epochs + 1):
            metrics = self._epoch(model, data)
            best = {name: min(value, best.get(name, value)) for name, value in metrics.items()}
            for logger in self.loggers:
                logger.log(epoch, metrics)
            for callback in self.callbacks:
                callback.on_epoch_end(epoch, metrics, model)
        return best

    def _epoch(self, model: Classifier, data: Rings) -> dict[str, float]:
        losses = []
        for x, y in data.train_batches():
            loss = model.step(x, y)
            model.optimizer.zero_grad()
            loss.backward()
            model.optimizer.step()
            losses.append(loss.item())
        with torch.no_grad():
            return {"val/loss": model.step(*data.validation()).item(), "train/loss": sum(losses) / len(losses)}
