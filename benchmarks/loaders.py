"""Our loop on torch datasets against a hand-written loop with the same DataLoader: time per epoch, in turn.

After each epoch of a real trial, with tracking and progress on, the same process runs one epoch of the hand-written
loop on the same datasets, model, batch size, optimizer, number of threads and loader settings. The hand-written loop
validates too, but has no schedule, no metrics and no record, and its augmentation is not drawn from a seed.

`python benchmarks/loaders.py`
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from common import print_setting, print_verdict
from epochs import paired_epochs
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from sweep import Datasets, compose
from sweep.config.schema import Config, validate
from sweep.training.loaders import inspected
from sweep.trial import build

BOUND = 1.05


class Images(Dataset):
    """Images of noise, shifted and flipped at random."""

    def __init__(self, n: int, augments: bool) -> None:
        drawn = torch.Generator().manual_seed(n)
        self.pixels = torch.randint(256, (n, 3, 20, 20), dtype=torch.uint8, generator=drawn)
        self.classes = torch.randint(10, (n,), generator=drawn).tolist()
        self.augments = augments

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.pixels[index]
        top, left = torch.randint(5, (2,)).tolist() if self.augments else (2, 2)
        image = image[:, top : top + 16, left : left + 16].float() / 255
        if self.augments and torch.rand(()) < 0.5:
            image = image.flip(-1)
        return image, self.classes[index]


class Rows(Dataset):
    """Rows of a table, as cheap as samples can be."""

    def __init__(self, n: int) -> None:
        self.x = torch.randn(n, 16, generator=torch.Generator().manual_seed(n))
        self.y = self.x[:, :1].sin()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


def images() -> Datasets:
    parts = Images(960, augments=True), Images(192, augments=False), Images(192, augments=False)
    return Datasets(*parts, task="classification", out_features=10)


def rows() -> Datasets:
    return Datasets(Rows(2800), Rows(600), Rows(600), task="regression")


_OWN_DATA = ["~data.n", "~data.noise", "~data.domain", "~data.seed", "optimizer=adam"]
_ROWS = [*_OWN_DATA, "data._target_=loaders.rows"]
_IMAGES = [*_OWN_DATA, "data._target_=loaders.images", "model=convnet", "model.channels=[8]"]
CASES: dict[str, tuple[Callable[[], Datasets], list[str]]] = {
    "rows, no workers": (rows, _ROWS),
    "images, no workers": (images, _IMAGES),
    "images, 2 workers": (images, [*_IMAGES, "loader.num_workers=2"]),
    "images, 2 kept workers": (images, [*_IMAGES, "loader.num_workers=2", "loader.persistent_workers=true"]),
}


def hand_written_epoch(config: Config, datasets: Datasets) -> Callable[[], None]:
    """Return a function that runs one epoch of a plain PyTorch loop."""
    settings: dict[str, Any] = vars(config.loader) | {"batch_size": config.trainer.batch_size}
    train = StatefulDataLoader(datasets.train, shuffle=True, **settings)
    val = StatefulDataLoader(datasets.val, **settings)
    model = build.model(config.model, inspected(datasets)[0])
    optimizer = build.optimizer(config.optimizer, model)
    loss_fn: Callable[..., Tensor] = nn.MSELoss() if datasets.task == "regression" else nn.CrossEntropyLoss()

    def epoch() -> None:
        total = 0.0
        model.train()
        for x, y in train:
            loss = loss_fn(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        model.eval()
        with torch.no_grad():
            for x, y in val:
                total += loss_fn(model(x), y).item() * len(x)

    return epoch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--case", choices=CASES, action="append")
    arguments = parser.parse_args()
    os.environ["SWEEP_TARGETS"] = "loaders.*"  # this module, whose data sets the trial loads by name
    os.environ["TTY_COMPATIBLE"] = "1"  # rich draws its live line though stderr is no terminal
    print_setting()
    holds = True
    for name in arguments.case or CASES:
        make, overrides = CASES[name]
        datasets = make()
        theirs = hand_written_epoch(validate(compose(overrides)), datasets)
        pairs = paired_epochs(theirs, overrides, arguments.epochs)
        ours, theirs, *_ = (statistics.median(side) * 1e3 for side in zip(*pairs, strict=True))
        ratio = statistics.median(pair.ours_s / pair.theirs_s for pair in pairs)
        of_cpu = statistics.median(pair.ours_cpu_s / pair.theirs_cpu_s for pair in pairs)
        print(f"{name}: {ours:.1f} ms an epoch, hand-written {theirs:.1f} ms (medians of {len(pairs)})")
        print(f"{name}: {of_cpu:.3f}x the CPU time of this process; beside other work, this varies less")
        holds &= print_verdict(f"{name} ours / hand-written, median of pairs", ratio, BOUND)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
