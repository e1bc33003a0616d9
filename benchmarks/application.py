"""The cost of a trial of another Hydra application, whose task function does nothing, to the worker.

The application notes when it is called. From one call to the next passes what a trial costs: composing its config,
Hydra's job, sampling, the storage and the record. The same search runs with Hydra's stock sweeper, which keeps its
study in memory and records nothing, and with ours, with MLflow and without, in turn. There is one worker, the random
sampler and no pruner. Of each run, the first trials are left out: they load modules.

`python benchmarks/application.py`
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from common import paired_ratio, print_setting, print_verdict

APPLICATION = """
import time

import hydra


@hydra.main(config_path=None)
def main(cfg):
    with open(cfg.calls, "a") as file:
        file.write(f"{time.perf_counter()} {time.process_time()}\\n")
    return cfg.x**2


if __name__ == "__main__":
    main()
"""
SEARCH = ("-m", "+x=interval(0.0,1.0)", "hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=0")
SEARCH += ("hydra.sweeper.n_jobs=1",)
STUDY = ("hydra/sweeper=study", "hydra/sweeper/pruner=none")
SWEEPERS: Mapping[str, Sequence[str]] = {
    "stock": ["hydra/sweeper=optuna"],
    "ours": STUDY,
    "ours without MLflow": [*STUDY, "hydra.sweeper.tracking.mlflow=false"],
}
N_LEFT_OUT = 5
BOUND_MS = 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print_setting()
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in SWEEPERS}
    for _ in range(arguments.rounds):
        for name, overrides in SWEEPERS.items():
            costs[name].append(_cost_ms(overrides, arguments.trials))
    for name, rounds in costs.items():
        wall, cpu = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"{name}: {wall:.1f} ms a trial, {cpu:.1f} ms of them computing")
    ours, stock = costs["ours"], costs["stock"]
    verdicts = [print_verdict("a trial's cost", statistics.median(wall for wall, _ in ours), BOUND_MS, " ms")]
    for column, name in enumerate(("ours / stock", "ours / stock, computing")):
        ratio = paired_ratio([pair[column] for pair in ours], [pair[column] for pair in stock])
        verdicts.append(print_verdict(name, ratio, 1))
    return 0 if all(verdicts) else 1


def _cost_ms(overrides: Sequence[str], n_trials: int) -> tuple[float, float]:
    """Return the median time from one call to the next, and how much of it the process computes, in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        script, calls = Path(folder, "app.py"), Path(folder, "calls")
        script.write_text(APPLICATION)
        command = [
            sys.executable,
            str(script),
            *SEARCH,
            *overrides,
            f"+calls={calls}",
            f"hydra.sweeper.n_trials={n_trials}",
        ]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        moments = [[float(word) for word in line.split()] for line in calls.read_text().splitlines()]
    assert len(moments) == n_trials
    gaps = [[later - earlier for earlier, later in zip(*pair, strict=True)] for pair in pairwise(moments[N_LEFT_OUT:])]
    wall, cpu = (1e3 * statistics.median(column) for column in zip(*gaps, strict=True))
    return wall, cpu


if __name__ == "__main__":
    sys.exit(main())
