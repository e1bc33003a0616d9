"""How well the bounds that `sweep.lr_range` suggests train, against those that a study of 32 trials finds.

For each data set and optimizer, several studies with all defaults (32 trials, pruned, which also search the batch size)
find their best configurations, and as many range tests suggest bounds for the default configuration. Both are then
trained on the same fresh seeds. The bound is on the ratio of their mean lowest validation losses, suggested / tuned.

Both are also trained on each study's own seed, with the initial weights and the order of samples that its trials had
(the split is the same for all seeds). The ratio of the suggestion to the value that the study reports is printed
without a bound: that value is the lowest of 32 trials, and luck is part of it. Three figures show how much:

- "copies" is the value that a study without tuned learning rates would report: the lowest of 32 trials of the suggested
  bounds, with eight max_lr within 1.6 % and each batch size that a study may choose. There is a bound on copies / the
  study's value, too;
- "rates" are the study's learning rates with the default batch size;
- "lowest" is the luckiest fresh seed of one configuration.

Ratios are of means over the studies: a mean of their ratios would give most weight to the luckiest one. MLflow is off.

`python benchmarks/lr_range.py`; `--data digits --optimizer sgd` runs a part of it. With `--study-seeds 10`, a study
optimises the mean of ten seeds, which leaves less to luck. With `--study trainer.batch_size=64`, it searches only the
learning rates (and there are eight copies).
"""

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import yaml
from common import print_setting, print_verdict
from studies import quietly, run_study, study_folder

DATA = ("noisy_sine", "digits", "diabetes")
OPTIMIZERS = ("adam", "sgd")
BOUND = 1.1
FIRST_FRESH_SEED = 1000
GRID = ["hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=none", "hydra.sweeper.pack=16"]
SUGGESTED, TUNED, RATES, COPIES = "suggested", "tuned", "rates", "copies"
Values = dict[str, list[float]]  # lowest validation losses, by what was trained
BATCH_SIZE = "trainer.batch_size=64"  # the default, kept out of the search


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=DATA, action="append", help="by default all")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, action="append", help="by default both")
    parser.add_argument("--seeds", type=int, default=3, help="studies, and range tests, of each")
    parser.add_argument("--study-seeds", type=int, default=1, help="of each trial of a study, which optimises the mean")
    parser.add_argument("--fresh", type=int, default=10, help="seeds on which what they found is trained")
    parser.add_argument("--study", nargs="*", default=[], help="options of the studies, such as trainer.batch_size=64")
    parser.add_argument("--options", nargs="*", default=[], help="of the range test, such as lr_range.n_updates=400")
    arguments = parser.parse_args()
    print_setting()
    verdicts = []
    for data in arguments.data or DATA:
        for optimizer in arguments.optimizer or OPTIMIZERS:
            choice = [f"data={data}", f"optimizer={optimizer}", "tracking=off"]
            again, own, copies = _compared(choice, arguments)
            verdicts.append(print_verdict(f"{data}, {optimizer}: suggested / tuned, on fresh seeds", again, BOUND))
            verdicts.append(print_verdict(f"{data}, {optimizer}: copies / the study's own value", copies, BOUND))
            print(f"{data}, {optimizer}: suggested / the study's own value, on its seeds: {own:.3f}x", flush=True)
    return 0 if all(verdicts) else 1


def _compared(choice: list[str], arguments: argparse.Namespace) -> tuple[float, float, float]:
    """Return three ratios.

    These are suggested / tuned on fresh seeds, then suggested and copies / the value that the studies report, both on
    the studies' seeds.
    """
    own: Values = {SUGGESTED: [], TUNED: [], RATES: [], COPIES: []}
    fresh: Values = {SUGGESTED: [], TUNED: [], RATES: []}
    for i in range(arguments.seeds):
        for all_values, values in zip((own, fresh), _study(choice, i, arguments), strict=True):
            for name in values:
                all_values[name] += values[name]
    print(f"  all: its seeds: {_means(own)}; fresh: {_means(fresh)}")
    print("  " + ", ".join(f"{name} {_spread(values)}" for name, values in fresh.items()))
    reported = mean(own[TUNED])
    return mean(fresh[SUGGESTED]) / mean(fresh[TUNED]), mean(own[SUGGESTED]) / reported, mean(own[COPIES]) / reported


def _study(choice: list[str], i: int, arguments: argparse.Namespace) -> tuple[Values, Values]:
    """Return the values of the i-th study and range test, trained on the study's seeds and on fresh seeds."""
    own = [*range(i * arguments.study_seeds, (i + 1) * arguments.study_seeds)]
    fresh = [FIRST_FRESH_SEED + seed for seed in range(i * arguments.fresh, (i + 1) * arguments.fresh)]
    choice = [*choice, f"seed={own[0]}"]
    with tempfile.TemporaryDirectory() as folder:
        run_study("study", [*choice, f"hydra.sweeper.seeds={len(own)}", *arguments.study], folder)
        best = yaml.safe_load((study_folder("study", folder) / "best.yaml").read_text())
        tuned = [str(o) for o in best["overrides"]]
        bounds = _suggested([*choice, *arguments.options], folder)
        configurations = {
            SUGGESTED: [*choice, *bounds, BATCH_SIZE],
            TUNED: tuned,
            RATES: [*(o for o in tuned if not o.startswith("trainer.batch_size=")), BATCH_SIZE],
        }
        lowest = _lowest_of_copies([*choice, *arguments.study], bounds, own, folder)
        trained = {name: _values(name, o, [*own, *fresh], folder) for name, o in configurations.items()}
    on_own, on_fresh = ({name: [v[s] for s in seeds] for name, v in trained.items()} for seeds in (own, fresh))
    on_own |= {TUNED: best["values"], COPIES: [lowest]}  # the values that the study itself reports
    searched = [o for o in tuned if o.startswith(("scheduler.", "trainer."))]
    print(f"  study {i}: suggested {_formatted(bounds)}, tuned {_formatted(searched)}")
    print(f"    its seeds: {_means(on_own)}; fresh: {_means(on_fresh)}", flush=True)
    return on_own, on_fresh


def _values(name: str, overrides: Sequence[str], seeds: Sequence[int], folder: str) -> dict[int, float]:
    """Return the lowest validation loss of a configuration, by seed."""
    others = [o for o in overrides if not o.startswith("seed=")]
    trials = run_study(name, [*GRID, *others, f"seed={','.join(map(str, seeds))}"], folder)
    return {trial.params["seed"]: trial.values[0] for trial in trials}


def _lowest_of_copies(choice: Sequence[str], bounds: Sequence[str], seeds: Sequence[int], folder: str) -> float:
    """Return the lowest mean over the seeds among as many copies of the suggested bounds as a study has trials."""
    base, (key, _, top) = bounds[0], bounds[1].partition("=")
    tops = ",".join(f"{float(top) * (1 + i / 250):.6g}" for i in range(-4, 4))
    others = [o for o in choice if not o.startswith("seed=")]
    trials = run_study("copies", [*GRID, *others, base, f"{key}={tops}", f"seed={','.join(map(str, seeds))}"], folder)
    values = defaultdict(list)
    for trial in trials:
        values[trial.params[key], trial.params.get("trainer.batch_size")].append(trial.values[0])
    return min(map(mean, values.values()))


def _suggested(overrides: Sequence[str], folder: str) -> list[str]:
    """Run the range test and return its suggestion, as overrides."""
    quietly([sys.executable, "-m", "sweep.lr_range", *overrides], folder)
    (result,) = Path(folder).glob("outputs/lr_range/*/lr_range.yaml")
    return [f"{key}={interval['value']}" for key, interval in yaml.safe_load(result.read_text())["suggestion"].items()]


def _formatted(overrides: Sequence[str]) -> str:
    """Return a text such as "base_lr=0.0006 max_lr=0.027"."""
    pairs = [o.split("=") for o in overrides]
    return " ".join(f"{key.rpartition('.')[2]}={float(value):.3g}" for key, value in pairs)


def _means(values: Values) -> str:
    return ", ".join(f"{name} {mean(some):.4f}" for name, some in values.items())


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.4f} +- {stdev(values) / len(values) ** 0.5:.4f} (lowest {min(values):.4f})"


if __name__ == "__main__":
    sys.exit(main())
