"""A training function, and an application around it, that kill_study.py kills.

Each loss follows from the one before, so that a lost or doubled epoch shows. `cfg.x` is searched; with `cfg.saves`, the
state is saved after each epoch, and restored. An epoch takes `cfg.epoch_s` seconds, by default 0.1.
"""

import os
import time
from pathlib import Path
from typing import Any

import hydra

import sweep

N_EPOCHS = 12
TRACE = "trace.txt"  # in the trial's folder: the epochs in the order in which they were trained
GPUS = "gpus.txt"  # likewise: the GPUs that the last process of the trial saw
_EPOCH_S = 0.1
_FIRST_LOSS = 5.0


def next_loss(loss: float, x: float, epoch: int) -> float:
    return 0.8 * loss + 0.2 * x * (1 + 1 / epoch)


def losses(x: float, n: int) -> list[float]:
    """Return the losses of the first `n` epochs of a trial that is not interrupted."""
    found = [_FIRST_LOSS]
    for epoch in range(1, n + 1):
        found.append(next_loss(found[-1], x, epoch))
    return found[1:]


def train(cfg: Any, trial: sweep.Trial) -> dict[str, float]:
    """Train the trial. Return nothing further."""
    state = trial.restore() if cfg.saves else None
    Path(trial.folder, GPUS).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    loss, first = (_FIRST_LOSS, 1) if state is None else (float(state["loss"]), trial.epoch + 1)
    for epoch in range(first, N_EPOCHS + 1):
        time.sleep(cfg.get("epoch_s", _EPOCH_S))
        loss = next_loss(loss, cfg.x, epoch)
        with Path(trial.folder, TRACE).open("a") as file:
            file.write(f"{epoch}\n")
        trial.report(epoch, {"val/loss": loss})
        if cfg.saves:
            trial.save(epoch, {"loss": loss})
    return {}


@hydra.main(config_path=None)
def main(cfg: Any) -> None:
    train(cfg, sweep.current_trial())


if __name__ == "__main__":
    main()
