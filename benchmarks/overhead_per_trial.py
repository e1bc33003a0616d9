"""The cost of a trial to its worker beyond training, from one trial's completion to the next, with MLflow on.

First, trials of 2 epochs on the default data: a trial's share of the wall time minus its own `time/train_s`. A stricter
figure is printed beside it: the wall time minus as many hand-written epochs (step_overhead.py), without a study.

Then 1,000 trials of one epoch on 200 samples: trials 980 to 1000 against 5 to 25, minus the hand-written epoch.

The pruner compares each trial with all earlier ones in its last epoch, when no trial can be stopped any more. There is
one worker and the random sampler (its time, far below a millisecond, is not subtracted). The storage is the embedded
one, or that of `--storage`.

`python benchmarks/overhead_per_trial.py`
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise

import torch
from common import print_setting, print_verdict
from optuna.trial import FrozenTrial
from step_overhead import hand_written_epoch
from studies import attempts, run_study, study_folder

FIXED = ["optimizer=adam", "trainer.batch_size=64"]  # the learning-rate bounds are searched
STUDY = ["hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=0", "hydra/sweeper/pruner=asha"]
LATE = ["data.n=200", "trainer.epochs=1"]
BOUND_MS, BOUND_LATE = 60, 1.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200, help="of two epochs")
    parser.add_argument("--late", type=int, default=1000, help="number of the last trial of one epoch")
    parser.add_argument("--storage", help="such as postgresql+psycopg://127.0.0.1:5432/test; the embedded one if none")
    arguments = parser.parse_args()
    print_setting()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        holds = _a_trial(arguments.trials, folder, arguments.storage)
        holds &= _the_last(arguments.late, folder, arguments.storage)
    return 0 if holds else 1


def _a_trial(n_trials: int, folder: str, storage: str | None) -> bool:
    search = [*FIXED, *STUDY, "trainer.epochs=2", "hydra.sweeper.pruner.min_resource=2"]
    trials = run_study("two_epochs", [*search, f"hydra.sweeper.n_trials={n_trials}"], folder, storage)
    trained = [a.train_s for a in attempts(study_folder("two_epochs", folder))]
    walls = _walls(trials)
    beyond = sorted(wall - train_s for wall, train_s in zip(walls, trained[1:], strict=True) if train_s is not None)
    epoch_s = _hand_written_s(FIXED)
    bare = statistics.median(walls) - 2 * epoch_s
    print(f"a trial of 2 epochs: {1e3 * statistics.median(walls):.1f} ms, hand-written {2e3 * epoch_s:.1f} ms")
    print(f"beyond the hand-written epochs: median {1e3 * bare:.1f} ms")
    print(f"beyond its own training: 90 % of the trials below {1e3 * beyond[int(0.9 * len(beyond))]:.1f} ms")
    return print_verdict("beyond its own training, median", 1e3 * statistics.median(beyond), BOUND_MS, " ms")


def _the_last(number: int, folder: str, storage: str | None) -> bool:
    trials = run_study("late", [*FIXED, *STUDY, *LATE, f"hydra.sweeper.n_trials={number + 1}"], folder, storage)
    epoch_s = _hand_written_s([*FIXED, "data.n=200"])
    walls = _walls(trials)  # walls[i] is the time of trial i + 1
    early, late = (statistics.median(walls[i - 1 : i + 20]) - epoch_s for i in (5, number - 20))
    print(
        f"beyond a hand-written epoch: {1e3 * early:.1f} ms around trial 15, {1e3 * late:.1f} ms around {number - 10}"
    )
    return print_verdict(f"trial {number} / the 10th", late / early, BOUND_LATE)


def _walls(trials: Sequence[FrozenTrial]) -> list[float]:
    """Return the seconds from each trial's completion to the next. The first trial, which loads torch, is left out."""
    ends = [t.datetime_complete for t in trials]
    return [(b - a).total_seconds() for a, b in pairwise(ends) if a is not None and b is not None]


def _hand_written_s(overrides: list[str]) -> float:
    epoch = hand_written_epoch(overrides)
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        epoch()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main())
