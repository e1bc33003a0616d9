"""Torch datasets as a user of sweep writes them: a data option, `torch_datasets.curve`, and what it is made of."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from sweep import Datasets

N_TRAIN = 68


class Curve(Dataset):
    """Noisy points of a sine: inputs (1,), targets (1,). `noise` is drawn anew for each sample that is loaded."""

    def __init__(self, n: int = N_TRAIN, noise: float = 0.0, first: float = -1.0, fault: str = "") -> None:
        self.x = torch.linspace(first, 1, n)
        self.noise, self.fault = noise, fault

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == len(self) - 2:  # the last but one, so that it is not among those that are looked at beforehand
            _happen(self.fault)
        x = self.x[index : index + 1]
        drawn = torch.randn(1) + np.random.normal() + random.gauss(0, 1)  # noqa: NPY002  # as datasets do
        return x, torch.sin(3 * x) + self.noise * drawn.float()


class Stream(IterableDataset):
    """The same points in their order, each worker's share of them."""

    def __init__(self, points: "Curve") -> None:
        self.points = points

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for i in range(first, len(self.points), step):
            yield self.points[i]


class SizedStream(Stream):
    def __len__(self) -> int:
        return len(self.points)


class StatefulStream(Stream):
    """Goes on where it was, without reading what comes before."""

    n_read = 0
    opened_at: int | None = None

    def __iter__(self) -> Iterator[Any]:
        self.opened_at = self.n_read
        while self.n_read < len(self.points):
            self.n_read += 1
            yield self.points[self.n_read - 1]
        self.n_read = 0

    def state_dict(self) -> dict[str, int]:
        return {"n_read": self.n_read}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.n_read = state["n_read"]


class AsDict(Dataset):
    """The points as dicts, with a weight for each."""

    def __init__(self, points: Curve) -> None:
        self.points = points

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, y = self.points[index]
        return {"at": x, "height": y, "weight": torch.ones(()) * (1 + index % 3)}


class Weighted:
    """A task of its own for such dicts."""

    def __init__(self, metrics: Any) -> None:
        self.metrics = metrics

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        errors = functional.mse_loss(model(batch["at"]), batch["height"], reduction="none").flatten()
        return (errors * batch["weight"]).sum() / batch["weight"].sum()

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(batch["at"])

    def targets(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["height"]


def _happen(fault: str) -> None:
    """What a dataset may do: raise, die, or see the process that trains die."""
    kind, _, path = fault.partition(":")
    if kind == "raise":
        raise ValueError("no such point\nin two lines")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "sleep":
        time.sleep(60)
    if kind == "kill":  # at the second visit
        first, second = Path(f"{path}-1"), Path(f"{path}-2")
        if first.exists() and not second.exists():
            second.touch()
            os.kill(os.getpid() if get_worker_info() is None else os.getppid(), signal.SIGKILL)
        first.touch()


def failing(samples: list[Any]) -> Any:
    """A collate_fn that cannot do it."""
    raise RuntimeError(f"cannot stack {len(samples)} samples")


def curve(
    n: int = N_TRAIN,
    noise: float = 0.1,
    kind: str = "map",
    fault: str = "",
    test: bool = True,
    collate: bool = True,
    task: str | None = "regression",
) -> Datasets:
    """The data option."""
    points = Curve(n, noise, fault=fault)
    streams = {"stream": Stream, "sized": SizedStream, "stateful": StatefulStream}
    train = points if kind == "map" else streams[kind](points)
    val = Curve(21, first=-0.95)
    return Datasets(
        train,
        val,
        Curve(20, first=-0.9) if test else None,
        None if collate else failing,
        task=task,  # pyright: ignore[reportArgumentType]
        name="curve",
    )


def dicts() -> Datasets:
    """The data option for `Weighted`."""
    return Datasets(AsDict(Curve()), AsDict(Curve(21, first=-0.95)), AsDict(Curve(20, first=-0.9)))
