"""Our loop, with tracking and progress on, against the shortest hand-written loop: time per epoch, in turn.

After each epoch of a real trial, the same process runs one epoch of the hand-written loop on the same data, model,
batch size, optimizer and number of threads. The hand-written loop validates too, but has no schedule, no metrics and no
record.

`python benchmarks/step_overhead.py`
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable

import torch
from common import print_setting, print_verdict
from epochs import paired_epochs
from torch import nn

from sweep import Samples, compose
from sweep.config.schema import validate
from sweep.data.split import divide
from sweep.training.tensors import to_device
from sweep.trial import build

BOUND = 1.05
CASES = {
    "mlp": ["optimizer=adam", "data=noisy_sine", "model=mlp"],
    "convnet": ["optimizer=adam", "data=digits", "model=convnet"],
}


def hand_written_epoch(overrides: list[str]) -> Callable[[], None]:
    """Return a function that runs one epoch of a plain PyTorch loop."""
    config = validate(compose(overrides))
    samples = build.samples(config.data)
    assert isinstance(samples, Samples)
    splits = divide(samples, config.split)
    data = to_device(splits, torch.device("cpu"))
    model = build.model(config.model, samples)
    optimizer = build.optimizer(config.optimizer, model)
    loss_fn: Callable[..., torch.Tensor] = nn.MSELoss() if samples.task == "regression" else nn.CrossEntropyLoss()

    def epoch() -> None:
        train_one_epoch(model, optimizer, loss_fn, data.train.x, data.train.y, config.trainer.batch_size)
        with torch.no_grad():
            loss_fn(model(data.val.x), data.val.y).item()

    return epoch


def train_one_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: Callable[..., torch.Tensor],
    x: torch.Tensor,
    y: torch.Tensor,
    batch_size: int,
) -> float:
    total = 0.0
    for rows in torch.randperm(len(x)).split(batch_size):
        loss = loss_fn(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--case", choices=CASES, action="append")
    arguments = parser.parse_args()
    os.environ["TTY_COMPATIBLE"] = "1"  # rich draws its live line though stderr is no terminal
    print_setting()
    holds = True
    for name in arguments.case or CASES:
        pairs = paired_epochs(hand_written_epoch(CASES[name]), CASES[name], arguments.epochs)
        ours, theirs, *_ = (statistics.median(side) * 1e3 for side in zip(*pairs, strict=True))
        ratio = statistics.median(pair.ours_s / pair.theirs_s for pair in pairs)
        print(f"{name}: {ours:.2f} ms an epoch, hand-written {theirs:.2f} ms (medians of {len(pairs)})")
        holds &= print_verdict(f"{name} ours / hand-written, median of pairs", ratio, BOUND)
        total = sum(pair.ours_s for pair in pairs) / sum(pair.theirs_s for pair in pairs)
        print(f"{name} ours / hand-written, whole time: {total:.3f}x")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
