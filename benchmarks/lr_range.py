"""How well the bounds that `sweep.lr_range` suggests train, against those that a study of 32 trials finds.

For each data set and optimizer, and for each of some seeds: a study with all defaults (32 trials, pruned, which also
searches the batch size) finds its best configuration; a range test suggests bounds for the default configuration. Both
are then trained on the same fresh seeds. The bound is on the ratio of their mean lowest validation losses, over all of
these: what is suggested / what is tuned.

"Study's own" is the mean value that the studies themselves report: the lowest of 32 trials on one seed, which is lower
than what its configuration comes to again. The ratio to it is printed without a bound. MLflow is off.
`python benchmarks/lr_range.py`; `--data digits --optimizer sgd` for a part of it.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml
from common import print_setting, print_verdict
from studies import quietly, run_study, study_folder

DATA = ("noisy_sine", "digits", "diabetes")
OPTIMIZERS = ("adam", "sgd")
BOUND = 1.1
FIRST_FRESH_SEED = 1000
GRID = ["hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=none", "hydra.sweeper.pack=16"]
BATCH_SIZE = "trainer.batch_size=64"  # the default, kept out of the search


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=DATA, action="append", help="by default all")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, action="append", help="by default both")
    parser.add_argument("--seeds", type=int, default=3, help="studies, and range tests, of each")
    parser.add_argument("--fresh", type=int, default=10, help="seeds on which what they found is trained")
    parser.add_argument("--options", nargs="*", default=[], help="of the range test, such as lr_range.n_updates=400")
    arguments = parser.parse_args()
    print_setting()
    verdicts = []
    for data in arguments.data or DATA:
        for optimizer in arguments.optimizer or OPTIMIZERS:
            choice = [f"data={data}", f"optimizer={optimizer}", "tracking=off"]
            ratio = _compared(choice, arguments.seeds, arguments.fresh, arguments.options)
            verdicts.append(print_verdict(f"{data}, {optimizer}: suggested / tuned", ratio, BOUND))
    return 0 if all(verdicts) else 1


def _compared(choice: list[str], n_seeds: int, n_fresh: int, options: list[str]) -> float:
    """The ratio of the means over all fresh seeds of all studies."""
    suggested: list[float] = []
    tuned: list[float] = []
    own: list[float] = []
    for seed in range(n_seeds):
        first = FIRST_FRESH_SEED + seed * n_fresh
        fresh = f"seed=range({first},{first + n_fresh})"
        with tempfile.TemporaryDirectory() as folder:
            run_study("tuned", [*choice, f"seed={seed}"], folder)
            best = yaml.safe_load((study_folder("tuned", folder) / "best.yaml").read_text())
            own.append(best["values"][0])
            chosen = [str(o) for o in best["overrides"] if not str(o).startswith("seed=")]
            tuned += _values("again", [*chosen, fresh], folder)
            bounds = _suggested([*choice, f"seed={seed}", *options], folder)
            suggested += _values("suggested", [*choice, *bounds, BATCH_SIZE, fresh], folder)
            searched = [o for o in chosen if o.startswith(("scheduler.", "trainer."))]
        print(f"  seed {seed}: suggested {_told(bounds)}: {statistics.mean(suggested[-n_fresh:]):.4f}", end="; ")
        print(
            f"tuned {_told(searched)}: {statistics.mean(tuned[-n_fresh:]):.4f}, study's own {own[-1]:.4f}", flush=True
        )
    ratio = statistics.mean(suggested) / statistics.mean(own)
    print(f"  suggested {_spread(suggested)}, tuned {_spread(tuned)}; suggested / study's own {ratio:.3f}")
    return statistics.mean(suggested) / statistics.mean(tuned)


def _values(name: str, overrides: Sequence[str], folder: str) -> list[float]:
    """The lowest validation loss of each configuration of a grid."""
    return [trial.values[0] for trial in run_study(name, [*GRID, *overrides], folder)]


def _suggested(overrides: Sequence[str], folder: str) -> list[str]:
    """What the range test prints as the command that uses it."""
    quietly([sys.executable, "-m", "sweep.lr_range", *overrides], folder)
    (result,) = Path(folder).glob("outputs/lr_range/*/lr_range.yaml")
    return [f"{key}={interval['value']}" for key, interval in yaml.safe_load(result.read_text())["suggestion"].items()]


def _told(overrides: Sequence[str]) -> str:
    """Such as "base_lr=0.0006 max_lr=0.027"."""
    pairs = [o.split("=") for o in overrides]
    return " ".join(f"{key.rpartition('.')[2]}={float(value):.3g}" for key, value in pairs)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.4f} +- {statistics.stdev(values) / len(values) ** 0.5:.4f}"


if __name__ == "__main__":
    sys.exit(main())
