"""Packed trials against sequential ones: the default data and MLP, batches of 64, Adam with a cyclic schedule.

Four parts, each with ratios of one run:

- training: training only, on one core: epochs of one trial by our loop, of a pack, and of a compiled pack, in turn; and
  the share that the pack's products reach of the machine's rate of matrix multiplication, for the same shapes;
- steady: 50 epochs a trial, everything recorded: trials a second once the first ones have finished;
- whole: studies of 10 epochs a trial as complete processes, against unpacked studies and against other tools;
- large: a model that gains nothing from packing, where `pack=auto` may cost at most 3 %.

`python benchmarks/packed.py [--part PART] [--device cuda]`; with a device, only `training` runs, for many widths.
"""

import argparse
import copy
import importlib.util
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from common import at_least, print_setting, print_verdict
from studies import MULTIRUN, quietly, run_study

from sweep import compose
from sweep.config.schema import Config, validate
from sweep.tasks import TensorTask
from sweep.training.loop import TrainingLoop
from sweep.training.packed.grouped_rules import grouped_rules
from sweep.training.packed.member import PackMember
from sweep.training.packed.pack import Pack
from sweep.training.runtime import keep_freed_memory
from sweep.training.tensors import TensorData
from sweep.training.trial import UnrecordedTrial
from sweep.trial.build import group_names
from sweep.trial.prepare import Data, load_data, new_model, new_schedule, prepared

RIVALS = Path(__file__).parent / "rivals"
BOUNDS = ["scheduler.base_lr=tag(log,interval(1e-5,1e-3))", "scheduler.max_lr=tag(log,interval(1e-3,1e-1))"]
SEARCH = ["optimizer=adam", "scheduler=cyclic", "trainer.batch_size=64", "hydra/sweeper/sampler=random", *BOUNDS]
FULL = ["hydra/sweeper/pruner=none"]
WIDTH = 64
BOUNDS_ALONE = {"eager": 4, "compiled": 10}  # trials a second, packed / sequential


def training(device: str, widths: Sequence[int], rounds: int, plot: Path | None) -> bool:
    """Measure the seconds of a trial's epoch, sequential and packed. Return whether the bounds hold.

    Args:
        plot: the file for a plot of the ratios.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    config = validate(compose(["trainer.epochs=1000", "trainer.batch_size=64", f"trainer.device={device}"]))
    holds = True
    gains: dict[str, list[float]] = {kind: [] for kind in BOUNDS_ALONE}
    data = load_data(config)
    with prepared(copy.deepcopy(config), data) as loop:  # a copy: `_sequential_epoch` changes it
        for width in widths:
            packs = {kind: _pack(config, loop, data, width, kind == "compiled") for kind in ("eager", "compiled")}
            for pack in packs.values():
                for _ in range(10):  # until it is compiled, or traced
                    _train_epoch(pack)
            seconds: dict[str, list[float]] = {"alone": [], **{kind: [] for kind in packs}}
            for _ in range(rounds):
                seconds["alone"].append(min(_sequential_epoch(loop) for _ in range(3)))
                for kind, pack in packs.items():
                    start = time.perf_counter()
                    _train_epoch(pack)
                    _synchronize(device)
                    seconds[kind].append((time.perf_counter() - start) / width)
            alone = statistics.median(seconds["alone"])
            print(f"{width} in a pack on {device}; alone {alone * 1e3:.2f} ms an epoch")
            for kind, bound in BOUNDS_ALONE.items():
                ratio = statistics.median(a / b for a, b in zip(seconds["alone"], seconds[kind], strict=True))
                gains[kind].append(ratio)
                share = _products_per_s(loop, statistics.median(seconds[kind])) / _peak(device, width)
                if share >= 1:
                    sys.exit(f"{kind}, {width} in a pack: {share:.0%} of the peak of products; the figures are wrong")
                print(f"  {kind}: {statistics.median(seconds[kind]) * 1e3:.2f} ms, {share:.0%} of the peak of products")
                if width == WIDTH:
                    holds &= at_least(f"  {kind}: trials/s, packed / alone", ratio, bound)
                else:
                    print(f"  {kind}: trials/s, packed / alone: {ratio:.2f}x")
    if plot is not None:
        _draw(widths, gains, device, plot)
    return holds


def _draw(widths: Sequence[int], gains: dict[str, list[float]], device: str, plot: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for kind, ratios in gains.items():
        axes.plot(widths, ratios, marker="o", label=kind)
    axes.axhline(1, color="grey", linewidth=1)
    axes.text(widths[-1], 1.1, "one trial at a time", color="grey", ha="right", va="bottom", fontsize="small")
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.set_ylim(0)
    axes.set_xlabel("trials in a pack")
    axes.set_ylabel("trials a second, packed / alone")
    axes.set_title(
        f"MLP 1-64-64-1, batches of 64, Adam; {'one core' if device == 'cpu' else device}", fontsize="medium"
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(plot)


def _train_epoch(pack: Pack) -> None:
    """Train an epoch of every member. End the benchmark if a member stops, since the figures would be wrong."""
    width = len(pack.members)
    ended = pack.train_epoch()
    if ended or len(pack.members) != width:
        sys.exit(f"{len(ended)} of {width} members stopped training: {next(iter(ended.values()), None)}")
    diverged = [member for member in pack.members if not math.isfinite(member.best.value if member.best else math.nan)]
    if diverged:
        sys.exit(f"{len(diverged)} of {width} members have no finite validation loss")


def _pack(config: Config, loop: TrainingLoop, data: Data, width: int, compiled: bool) -> Pack:
    config = copy.deepcopy(config)
    config.trainer.compile = compiled
    assert isinstance(loop.task, TensorTask)
    assert isinstance(loop.data, TensorData)
    rules = grouped_rules(loop.schedule.optimizer, group_names(config.optimizer, loop.model))
    assert rules is not None
    model = copy.deepcopy(loop.model)
    pack = Pack(model=model, task=loop.task, data=loop.data, trainer=config.trainer, rules=rules)
    n_train, batch = loop.data.n_train, loop.data.example(config.trainer.batch_size)
    for seed in range(width):
        own = copy.deepcopy(config)
        own.trainer.seed = seed
        own.scheduler["max_lr"] = 1e-3 * 10 ** (seed / width)
        weights = new_model(own, data.samples, loop.task, batch, loop.device, seen_before=seed > 0).state_dict()
        schedule = new_schedule(own, n_train, model)
        member = PackMember(schedule=schedule, trainer=own.trainer, n_train=n_train, weights=weights, rules=rules)
        pack.admit(member)
    return pack


def _sequential_epoch(loop: TrainingLoop) -> float:
    loop.trainer.epochs = loop.epoch + 1
    start = time.perf_counter()
    loop.run(UnrecordedTrial())
    return time.perf_counter() - start


def _products_per_s(loop: TrainingLoop, epoch_s: float) -> float:
    """Return the floating-point operations a second of the matrix products of an epoch, including validation."""
    sizes = [weight.numel() for weight in loop.model.parameters() if weight.dim() == 2]
    forward, first = 2 * sum(sizes), 2 * sizes[0]
    per_sample = 3 * forward - first  # the inputs need no gradient
    assert isinstance(loop.data, TensorData)
    return (len(loop.data.train.x) * per_sample + len(loop.data.val.x) * forward) / epoch_s


def _peak(device: str, width: int) -> float:
    """Return the floating-point operations a second of the pack's largest matrix product by itself."""
    a, b = (torch.randn(width, 64, 64, device=device) for _ in range(2))
    out = torch.empty_like(a)
    n_calls = 1 if device == "cpu" else 100  # a GPU works while the next calls are queued
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(n_calls):
            torch.bmm(a, b, out=out)
        _synchronize(device)
        best = min(best, (time.perf_counter() - start) / n_calls)
    return 2 * width * 64**3 / best


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def steady(rounds: int) -> bool:
    """Measure the trials a second once the first have finished. Packs finish in waves and are timed by the wave."""
    ratios = []
    for _ in range(rounds):
        packed = _rate(["hydra.sweeper.pack=64", "trainer.compile=true"], 4 * WIDTH, WIDTH)
        alone = _rate([], 24, 4)
        print(f"50 epochs: packed and compiled {packed:.2f} trials/s, unpacked {alone:.2f}")
        ratios.append(packed / alone)
    return at_least("steady state, packed / unpacked", statistics.median(ratios), 6)


def _rate(overrides: Sequence[str], n_trials: int, n_first: int) -> float:
    size = ["trainer.epochs=50", f"hydra.sweeper.n_trials={n_trials}"]
    with tempfile.TemporaryDirectory() as folder:
        trials = run_study("steady", [*SEARCH, *FULL, *size, *overrides], folder)
    ends = sorted(t.datetime_complete.timestamp() for t in trials if t.datetime_complete is not None)
    return (len(ends) - n_first) / (ends[-1] - ends[n_first - 1])


def whole(n_trials: int, n_stock: int, n_ray: int) -> bool:
    """Measure the trials a second of complete commands, including their start and end.

    The bounds are on compiled packs whose compiled code is in torch's cache, as from the second study of a kind on.
    """
    size = ["trainer.epochs=10", f"hydra.sweeper.n_trials={n_trials}"]
    own = [*MULTIRUN, *SEARCH, *FULL, *size]
    packed, compiled = [*own, "hydra.sweeper.pack=64"], [*own, "hydra.sweeper.pack=64", "trainer.compile=true"]
    stock = ["hydra/sweeper=optuna", "hydra/sweeper/sampler=random", "hydra.sweeper.n_jobs=1", "epochs=10"]
    script = [sys.executable, str(RIVALS / "hydra_mlflow.py"), "--multirun", "lr=tag(log,interval(1e-4,1e-1))"]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        first = _whole_rate("packed and compiled, for the first time", compiled, n_trials)
        eager = _whole_rate("packed", packed, n_trials)
        again = _whole_rate("packed and compiled", compiled, n_trials)
        unpacked = _whole_rate("unpacked", own, n_trials)
        others = _whole_rate("stock", [*script, *stock, f"hydra.sweeper.n_trials={n_stock}"], n_stock)
        ratios = {
            "unpacked": (again / unpacked, 4),
            "hydra-optuna-sweeper, MLflow once an epoch": (again / others, 10),
        }
        for name, rate in {"packed": eager, "packed and compiled for the first time": first}.items():
            print(f"whole processes, {name}: {rate / unpacked:.2f}x unpacked, {rate / others:.2f}x stock")
        if importlib.util.find_spec("ray") is None:
            print("Ray Tune: left out, ray is not installed (the extra 'bench')")
        else:
            ray = [sys.executable, str(RIVALS / "ray_tune.py"), str(n_ray), "10"]
            both = _whole_rate("packed and compiled, two workers", [*compiled, "hydra.sweeper.n_jobs=2"], n_trials)
            name = "Ray Tune, two workers against two trials side by side"
            ratios[name] = both / _whole_rate("Ray Tune", ray, n_ray), 50
    return all([at_least(f"whole processes, packed / {name}", ratio, bound) for name, (ratio, bound) in ratios.items()])


def _whole_rate(name: str, command: Sequence[str], n_trials: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        quietly(command, folder)
        rate = n_trials / (time.perf_counter() - start)
    print(f"{name}: {rate:.2f} trials/s ({n_trials} trials)")
    return rate


def large(rounds: int) -> bool:
    """Measure the cost of `pack=auto` when its best choice is 1."""
    size = ["trainer.epochs=2", "hydra.sweeper.n_trials=4", "model.widths=[4096,4096]", "data.n=1600"]
    ratios = []
    for _ in range(rounds):
        seconds = {}
        for pack in ("1", "auto"):
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                quietly([*MULTIRUN, *SEARCH, *FULL, *size, f"hydra.sweeper.pack={pack}"], folder)
                seconds[pack] = time.perf_counter() - start
        print(f"large model: pack=1 {seconds['1']:.1f} s, pack=auto {seconds['auto']:.1f} s")
        ratios.append(seconds["auto"] / seconds["1"])
    return print_verdict("large model, pack=auto / pack=1", statistics.median(ratios), 1.03)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["training", "steady", "whole", "large"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5, help="of training; the other parts take fewer")
    parser.add_argument("--trials", type=int, default=1000, help="of complete studies")
    parser.add_argument("--stock-trials", type=int, default=200)
    parser.add_argument("--ray-trials", type=int, default=64, help="each starts a process")
    parser.add_argument("--plot", type=Path, help="the file in which `training` plots its ratios")
    arguments = parser.parse_args()
    print_setting()
    on_cpu = arguments.device == "cpu"
    widths = (2, 4, 16, WIDTH, 256) if on_cpu else (16, 64, 256, 1024, 4096)
    parts = {
        "training": lambda: training(arguments.device, widths, arguments.rounds, arguments.plot),
        "steady": lambda: steady(1),
        "whole": lambda: whole(arguments.trials, arguments.stock_trials, arguments.ray_trials),
        "large": lambda: large(3),
    }
    chosen = [arguments.part] if arguments.part else list(parts) if on_cpu else ["training"]
    sys.exit(0 if all([parts[name]() for name in chosen]) else 1)


if __name__ == "__main__":
    main()
