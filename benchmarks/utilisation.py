"""The share of two workers' time that is training, for trials of 2, 10 or 60 epochs, drawn at random.

The share is the sum of the trials' `time/train_s` over twice the time from the first trial's start to the last trial's
end, all from the trials' own journals. It is compared, in turn, with hydra-optuna-sweeper and Hydra's joblib launcher,
which train the same trial and wait for both trials of a batch. Nothing is pruned, MLflow is on, and torch has one
thread for each worker on both sides. Each side draws its own lengths, so the result is the median of rounds with
different seeds.

`python benchmarks/utilisation.py`
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from common import at_least, paired_ratio, print_setting
from studies import MULTIRUN, attempts, quietly, run_study, study_folder

SEARCH = [
    "trainer.epochs=choice(2,10,60)",
    "optimizer.lr=tag(log,interval(5e-4,2e-3))",
]  # a rate, so that no two trials are alike
FIXED = ["optimizer=adam", "scheduler=constant", "trainer.batch_size=64", "trainer.threads=1"]
SAMPLER = ["hydra/sweeper/sampler=random", "hydra.sweeper.n_jobs=2"]
OURS = ["hydra/sweeper/pruner=none", "hydra.sweeper.defaults_first=false"]
THEIRS = ["hydra/sweeper=optuna", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
BOUND = 90  # %


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--samples", type=int, default=20000, help="of the data; a trial's time goes with it")
    arguments = parser.parse_args()
    print_setting()
    ours, theirs = [], []
    for seed in range(arguments.rounds):
        search = [*SEARCH, *FIXED, *SAMPLER, f"data.n={arguments.samples}"]
        search += [f"hydra.sweeper.sampler.seed={seed}", f"hydra.sweeper.n_trials={arguments.trials}"]
        with tempfile.TemporaryDirectory() as folder:
            run_study("ours", [*search, *OURS], folder)
            ours.append(_share(study_folder("ours", folder)))
            quietly([*MULTIRUN, *search, *THEIRS], folder)
            theirs.append(_share(Path(folder) / "outputs" / "multirun"))
    holds = at_least("training, of the workers' time", statistics.median(ours), BOUND, " %")
    print(f"hydra-optuna-sweeper with joblib: {statistics.median(theirs):.1f} %")
    print(f"ours / theirs, median of rounds: {paired_ratio(ours, theirs):.2f}x")
    return 0 if holds else 1


def _share(folder: Path) -> float:
    """Return the share of training in two workers' time, in per cent."""
    trials = attempts(folder)
    trained_s = sum(t.train_s for t in trials if t.train_s is not None)
    wall_s = max(t.end for t in trials) - trials[0].start
    longest_s = max(t.end - t.start for t in trials)
    print(f"{len(trials)} trials: {trained_s:.1f} s of training in {wall_s:.1f} s, the longest trial {longest_s:.1f} s")
    return 100 * trained_s / (2 * wall_s)


if __name__ == "__main__":
    sys.exit(main())
