"""Training functions of a user's own, for the tests: good ones, and some with a mistake."""

import errno
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from waiting import wait_until

import sweep
from sweep import Trial
from sweep.utils.errors import Pruned

CALL = f"{__name__}."


def quadratic(cfg: Any, trial: Trial) -> dict[str, float]:
    """Best for x = 3. Better from epoch to epoch."""
    for epoch in range(1, cfg.trainer.epochs + 1):
        trial.report(epoch, {"val/loss": (cfg.x - 3) ** 2 + 1 / epoch, "score": -abs(cfg.x - 3)})
    return {"test/loss": (cfg.x - 3) ** 2, "test/score": -abs(cfg.x - 3)}


def drawn(cfg: Any, trial: Trial) -> dict[str, float]:
    """Draws from every generator, also for the weights. Saves what the weights are, and no generator."""
    model, dropout = nn.Linear(2, 1), nn.Dropout(0.5)
    if (state := trial.restore()) is not None:
        model.load_state_dict(state["model"])
    for epoch in range(trial.epoch + 1, cfg.trainer.epochs + 1):
        x = dropout(torch.randn(8, 2)) + random.random() + float(np.random.random())  # noqa: NPY002
        with torch.no_grad():
            model.weight += 0.1 * x.mean()
        trial.report(epoch, {"val/loss": model(x).abs().mean()})
        trial.log({"step/x": [x.min().item(), x.max().item()]}, [2 * epoch - 1, 2 * epoch])
        if trial.should_save:
            trial.save(epoch, {"model": model.state_dict()})
    return {"test/loss": model.weight.sum().item()}


def steps(cfg: Any, trial: Trial) -> None:
    """Counts steps, and reports every hundredth."""
    for step in range(100, 1201, 100):
        trial.report(step, {"val/loss": cfg.x + 1 / step})


def returns_alone(cfg: Any, trial: Trial) -> dict[str, float]:
    return {"val/loss": cfg.x}


def of_fold(cfg: Any, trial: Trial) -> None:
    trial.report(1, {"val/loss": float(cfg.split.fold), "n": cfg.split.folds})


def built(cfg: Any, trial: Trial) -> dict[str, float]:
    model = sweep.build(cfg.model, in_features=2, out_features=1)
    optimizer = sweep.build(cfg.optimizer, model)
    trial.report(1, {"val/loss": optimizer.param_groups[0]["lr"]})
    return {"n": sum(weight.numel() for weight in model.parameters())}


def one_of(cfg: Any, trial: Trial) -> Any:
    """Trains as the function of that name does."""
    return globals()[cfg.name](cfg, trial)


# What goes wrong


def raises(cfg: Any, trial: Trial) -> None:
    raise RuntimeError("no such\nluck")


def exits(cfg: Any, trial: Trial) -> None:
    trial.report(1, {"val/loss": 1.0})
    sys.exit(3)


def reports_nothing(cfg: Any, trial: Trial) -> None: ...


def reports_nan(cfg: Any, trial: Trial) -> None:
    trial.report(1, {"val/loss": 1.0})
    trial.report(2, {"val/loss": float("nan")})


def reports_nan_first(cfg: Any, trial: Trial) -> None:
    trial.report(1, {"val/loss": float("nan")})


def reports_text(cfg: Any, trial: Trial) -> None:
    text: Any = "0.5"
    trial.report(1, {"val/loss": text})


def reports_no_metrics(cfg: Any, trial: Trial) -> None:
    trial.report(1, {})


def reports_a_number(cfg: Any, trial: Trial) -> None:
    metrics: Any = 0.5
    trial.report(1, metrics)


def reports_half_an_epoch(cfg: Any, trial: Trial) -> None:
    epoch: Any = 0.5
    trial.report(epoch, {"val/loss": 1.0})


def reports_backwards(cfg: Any, trial: Trial) -> None:
    for epoch in (2, 1):
        trial.report(epoch, {"val/loss": 1.0})


def reports_our_name(cfg: Any, trial: Trial) -> None:
    trial.report(1, {"time/total": 1.0})


def reports_an_odd_name(cfg: Any, trial: Trial) -> None:
    trial.report(1, {"loss(val)": 1.0})


def logs_backwards(cfg: Any, trial: Trial) -> None:
    trial.log({"step/loss": 1.0}, 5)
    trial.log({"step/loss": 1.0}, 4)


def returns_a_number(cfg: Any, trial: Trial) -> Any:
    trial.report(1, {"val/loss": 1.0})
    return 0.5


def returns_nan(cfg: Any, trial: Trial) -> dict[str, float]:
    trial.report(1, {"val/loss": 1.0})
    return {"test/loss": float("inf")}


def saves_a_module(cfg: Any, trial: Trial) -> None:
    trial.save(1, {"kept": torch.ones(2)})
    trial.save(2, {"parts": [nn.Linear(1, 1)]})


def forks(cfg: Any, trial: Trial) -> dict[str, float]:
    """Forks a process that goes on as if it were the first, and waits for it."""
    process = os.fork()
    for epoch in range(1, 4):
        trial.report(epoch, {"val/loss": float(epoch)})
    os.waitpid(process, 0)
    return {"test/loss": 1.0}


def forks_quietly(cfg: Any, trial: Trial) -> dict[str, float]:
    """Forks a process that returns, as the first does."""
    if (process := os.fork()) != 0:
        os.waitpid(process, 0)
    return {"val/loss": 1.0}


def never_returns(cfg: Any, trial: Trial) -> dict[str, float]:
    """For x = 2, it starts a process and hangs in C code that keeps the interpreter's lock, unless it is mended."""
    if cfg.x == 2 and not Path("mended").exists():
        Path("started").write_text(str(subprocess.Popen(["sleep", "600"]).pid))
        re.match(r"(a+)+$", "a" * 50 + "b")
    return {"val/loss": cfg.x}


def saves_a_list(cfg: Any, trial: Trial) -> None:
    state: Any = [1]
    trial.save(1, state)


def misspells(cfg: Any, trial: Trial) -> None:
    trial.report(1, {"val/loss": cfg.ecks})


def swallows_all(cfg: Any, trial: Trial) -> None:
    for epoch in range(1, 10):
        try:
            trial.report(epoch, {"val/loss": 1.0})
        except BaseException:
            continue


def hides_pruned(cfg: Any, trial: Trial) -> None:
    try:
        trial.report(1, {"val/loss": 1.0})
    except Pruned as pruned:
        raise ValueError("stopped") from pruned


def takes_one(cfg: Any) -> None: ...


def takes_three(cfg: Any, trial: Trial, more: int) -> None: ...


def takes_more(cfg: Any, trial: Trial, more: int = 1) -> dict[str, float]:
    return {"val/loss": float(more)}


NO_FUNCTION = 3


# Killed


def killed(cfg: Any, trial: Trial) -> dict[str, float]:
    """Waits in the middle to be killed, unless there is a file `go`. `cfg.saves`: whether it saves its state."""
    state = trial.restore() if cfg.saves else None
    total = 0.0 if state is None else float(state["total"])
    first = trial.epoch + 1 if cfg.saves else 1
    for epoch in range(first, cfg.trainer.epochs + 1):
        total += cfg.x * epoch + torch.rand(()).item()
        trial.report(epoch, {"val/loss": total})
        with open(cfg.trace, "a") as file:
            file.write(f"{trial.number} {epoch}\n")
        if cfg.saves:
            trial.save(epoch, {"total": total})
        if epoch == 4 and trial.number == 1 and not Path("go").exists():
            Path("here").write_text(str(os.getpid()))
            while not Path("go").exists():
                time.sleep(0.05)
    return {"test/loss": total}


# Trained by several processes together


def ranked(cfg: Any, trial: Trial) -> dict[str, float]:
    """Adds up draws of all ranks. Each rank notes its process, and how its training ended.

    cfg.fails: what goes wrong in epoch 2.
    """
    rank, total = distributed.get_rank(), torch.zeros(())
    Path(trial.folder / f"rank-{rank}.pid").write_text(str(os.getpid()))
    if (state := trial.restore()) is not None:
        total = state["total"]
    try:
        for epoch in range(trial.epoch + 1, cfg.trainer.epochs + 1):
            drawn = torch.rand(()) + rank
            distributed.all_reduce(drawn)
            total = total + drawn
            if epoch == 2 and (fail := _FAILURES.get((cfg.fails, rank))) and not Path("go").exists():
                fail(trial)
            trial.report(epoch, {"val/loss": total.item()})
            if trial.should_save:
                trial.save(epoch, {"total": total})
    except BaseException as error:
        (trial.folder / f"rank-{rank}.{type(error).__name__}").touch()
        raise
    return {"test/loss": total.item()} if rank == 0 else {}


def _hang(trial: Trial) -> None:
    """Start a process, and hang in C code that keeps the interpreter's lock."""
    Path(trial.folder / "child.pid").write_text(str(subprocess.Popen(["sleep", "600"]).pid))
    (trial.folder / "here").touch()
    re.match(r"(a+)+$", "a" * 50 + "b")


def _keep_what_is_not_there(trial: Trial) -> None:
    wait_until((trial.folder / "here").exists)
    trial.log_artifact(Path("missing"))


def _fill_the_disk(trial: Trial) -> None:
    for value in (1.0, 2.0):
        trial.report(2, {"val/loss": value})
    trial.report(2, {"val/loss": 3.0, "late": 4.0})
    trial.report(3, {"val/loss": 5.0})
    distributed.barrier()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _give_nonsense(trial: Any) -> None:
    for metrics in ({"val/loss": float("nan")}, {}, "nothing"):
        trial.report(2, metrics)
    trial.log({"step/x": [1.0]}, [2, 1])
    trial.finish(None)
    trial.log_artifact(None)
    trial.save(2, None)
    trial.report(3, None)
    (trial.folder / "given").touch()
    distributed.barrier()
    distributed.barrier()  # until the end of rank 0


_FAILURES: dict[tuple[str, int], Callable[[Trial], object]] = {  # by rank
    ("killed", 1): lambda trial: (Path("go").touch(), os.kill(os.getpid(), signal.SIGKILL)),
    ("skips", 1): lambda trial: trial.report(3, {"val/loss": 1.0}),
    ("hangs", 0): _keep_what_is_not_there,
    ("hangs", 1): _hang,
    ("full", 0): _fill_the_disk,
    ("full", 1): _give_nonsense,
}
