"""The same search by sweep and by other tools, as complete processes with their start: trials a second, in turn.

64 trials of 10 epochs, the default data and MLP, Adam, batches of 64, a log-uniform learning rate, TPE. sweep runs with
one and two workers, without a pruner ("full") and with the default pruner ("pruned"); MLflow is on. The others are:

- hydra-optuna-sweeper: the stock sweeper on one worker, running our trial with MLflow;
- Hydra + MLflow: a script as people write it (rivals/hydra_mlflow.py), with the stock sweeper, MLflow once an epoch;
- Optuna loop: Optuna and torch in one script (rivals/optuna_loop.py), no config, no record;
- Ray Tune: two trials side by side (rivals/ray_tune.py), random search, left out if ray is not installed.

None of the others prunes. Each process starts in an empty folder, so MLflow's first start counts if MLflow is used. The
rivals' training is hand-written and lean: no data loader, one thread, a fused optimizer.

`pip install -c constraints.txt --no-build-isolation -e '.[bench]'; python benchmarks/versus.py`
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import print_setting
from studies import MULTIRUN, quietly

RIVALS = Path(__file__).parent / "rivals"
RANGE = "tag(log,interval(1e-4,1e-1))"
SEARCH = [f"optimizer.lr={RANGE}", "optimizer=adam", "scheduler=constant", "trainer.batch_size=64"]
STOCK = ["hydra/sweeper=optuna", "hydra.sweeper.sampler.seed=0", "hydra.sweeper.n_jobs=1"]


def commands(n_trials: int, n_epochs: int, n_ray_trials: int) -> dict[str, tuple[list[str], int]]:
    """Return the command and the number of trials by name; those of sweep come first."""
    size = [str(n_trials), str(n_epochs)]
    trials = f"hydra.sweeper.n_trials={n_trials}"
    own = [*MULTIRUN, *SEARCH, f"trainer.epochs={n_epochs}", trials]
    found = {
        f"{kind}, {n_jobs} worker{'s' * (n_jobs > 1)}": [*own, f"hydra.sweeper.n_jobs={n_jobs}", *pruner]
        for kind, pruner in {"full": ["hydra/sweeper/pruner=none"], "pruned": []}.items()
        for n_jobs in (1, 2)
    }
    found["hydra-optuna-sweeper"] = [*own, *STOCK]
    rival = [sys.executable, str(RIVALS / "hydra_mlflow.py"), "--multirun", f"lr={RANGE}", f"epochs={n_epochs}"]
    found["Hydra + MLflow"] = [*rival, *STOCK, trials]
    found["Optuna loop"] = [sys.executable, str(RIVALS / "optuna_loop.py"), *size]
    counted = {name: (command, n_trials) for name, command in found.items()}
    if importlib.util.find_spec("ray") is None:
        print("Ray Tune: left out, ray is not installed (the extra 'bench')")
    else:
        ray = [sys.executable, str(RIVALS / "ray_tune.py"), str(n_ray_trials), str(n_epochs)]
        counted["Ray Tune"] = ray, n_ray_trials
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--ray-trials", type=int, default=64, help="each starts a process of its own")
    arguments = parser.parse_args()
    print_setting()
    contest = commands(arguments.trials, arguments.epochs, arguments.ray_trials)
    rates: dict[str, list[float]] = {name: [] for name in contest}
    for _ in range(arguments.rounds):
        for name, (command, n_trials) in contest.items():
            rates[name].append(n_trials / _seconds(command))
    for name, found in rates.items():
        print(f"{name:<24}{statistics.median(found):6.2f} trials/s  ({contest[name][1]} trials)")
    ours = [name for name in contest if "worker" in name]
    for theirs in [name for name in contest if name not in ours]:
        for own in ours:
            ratio = statistics.median(a / b for a, b in zip(rates[own], rates[theirs], strict=True))
            print(f"{own} / {theirs}: {ratio:.2f}x")


def _seconds(command: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        quietly(command, folder)
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
