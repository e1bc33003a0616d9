"""How much sooner a pruned study comes within 2 % of an unpruned study's best, and how often it does not get there.

The searches: sgd or adam with their default learning-rate bounds, batches of 64, 60 epochs, one worker, on the digits
or on a sine over four periods (`data.domain`). On the default data, a single period, the very first trial is within 2 %
of the best, pruned or not; here at most two in a hundred are. The sampler is random search, so both studies try the
same configurations in the same order, and only the pruner differs. `--sampler tpe` uses another sampler.

For each seed, an unpruned study trains all its trials. Then, for each pruner, a study with the same seed gets as much
time as that one took, and so more trials. Times are the storage's, from the start of the first trial. "Lost" means that
the best after that time, or after as many trials as the unpruned study had, is worse by more than 2 %. MLflow is off,
so that the upload process does not affect the times.

`python benchmarks/pruning.py --pruner asha --pruner median --pruner hyperband`

The bound is on the first pruner. A pruner may have settings: `--pruner asha,min_resource=12`.
"""

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence

from common import at_least, print_setting
from optuna.trial import FrozenTrial, TrialState
from studies import run_study

SEARCH = ["optimizer=sgd,adam", "trainer.batch_size=64", "hydra.sweeper.defaults_first=false", "tracking=off"]
DATA = {"digits": ["data=digits"], "sine": ["data.domain=[-12.57,12.57]"]}
TOLERANCE = 1.02
BOUND = 2
MORE_TRIALS = 5  # at most this many times as many as the unpruned study
STARTING_S = 10  # until a study's first trial; this counts for its timeout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pruner", action="append", help="by default asha; again for more")
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=128, help="of the unpruned study")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--sampler", default="random")
    arguments = parser.parse_args()
    pruners: list[str] = arguments.pruner or ["asha"]
    print_setting()
    ratios: dict[str, list[float]] = {pruner: [] for pruner in pruners}
    lost, lost_of_as_many = dict.fromkeys(pruners, 0), dict.fromkeys(pruners, 0)
    search = [
        *SEARCH,
        *DATA[arguments.data],
        f"trainer.epochs={arguments.epochs}",
        f"hydra/sweeper/sampler={arguments.sampler}",
    ]
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            seeded = [*search, f"hydra.sweeper.sampler.seed={seed}"]
            full = run_study(
                "full", [*seeded, "hydra/sweeper/pruner=none", f"hydra.sweeper.n_trials={arguments.trials}"], folder
            )
            goal = TOLERANCE * _best(full)
            print(f"seed {seed}: unpruned     {_formatted(full, goal)}")
            for pruner in pruners:
                budget = [f"hydra.sweeper.n_trials={MORE_TRIALS * arguments.trials}"]
                budget += [f"hydra.sweeper.timeout={_seconds(full) + STARTING_S:.1f}"]
                name = f"pruned_{pruners.index(pruner)}"
                trials = _until(_seconds(full), run_study(name, [*seeded, *_settings(pruner), *budget], folder))
                print(f"seed {seed}: {pruner:<12} {_formatted(trials, goal)}")
                ratios[pruner].append(_moment(full, goal) / _moment(trials, goal))
                lost[pruner] += _best(trials) > goal
                lost_of_as_many[pruner] += _best(trials[: arguments.trials]) > goal
    for pruner in pruners:
        n = f"of {arguments.seeds}"
        print(f"{pruner}: lost {lost[pruner]} {n} in the same time, {lost_of_as_many[pruner]} {n} in as many trials")
        print(f"{pruner}: unpruned / pruned {', '.join(f'{ratio:.2f}x' for ratio in ratios[pruner])}")
    medians = {pruner: statistics.median(found) for pruner, found in ratios.items()}
    holds = at_least(f"{pruners[0]}: time, unpruned / pruned, median of seeds", medians[pruners[0]], BOUND)
    for pruner in pruners[1:]:
        print(f"{pruner}: time, unpruned / pruned, median of seeds: {medians[pruner]:.3f}x")
    return 0 if holds else 1


def _settings(pruner: str) -> list[str]:
    option, *settings = pruner.split(",")
    return [f"hydra/sweeper/pruner={option}", *(f"hydra.sweeper.pruner.{setting}" for setting in settings)]


def _best(trials: Sequence[FrozenTrial]) -> float:
    return min((t.value for t in _complete(trials) if t.value is not None), default=math.inf)


def _moment(trials: Sequence[FrozenTrial], goal: float) -> float:
    """Return the seconds from the study's start until a trial within the goal is complete; infinite if none is."""
    good = [t for t in _complete(trials) if t.value is not None and t.value <= goal]
    return _seconds(trials[: good[0].number + 1]) if good else math.inf


def _seconds(trials: Sequence[FrozenTrial]) -> float:
    """Return the seconds from the first trial's start to the last completion."""
    ends = [t.datetime_complete for t in trials if t.datetime_complete is not None]
    assert trials[0].datetime_start is not None
    return (max(ends) - trials[0].datetime_start).total_seconds()


def _until(seconds: float, trials: Sequence[FrozenTrial]) -> Sequence[FrozenTrial]:
    """Return the trials that had finished by then. A study with one worker finishes them in order."""
    return [t for t in trials if t.state.is_finished() and _seconds(trials[: t.number + 1]) <= seconds]


def _complete(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [t for t in trials if t.state == TrialState.COMPLETE]


def _formatted(trials: Sequence[FrozenTrial], goal: float) -> str:
    n_epochs = sum(t.last_step or 0 for t in trials)
    return (
        f"best {_best(trials):.5f}, within {goal:.5f} after {_moment(trials, goal):.1f} of {_seconds(trials):.1f} s; "
        f"{len(trials)} trials, {len(_complete(trials))} complete, {n_epochs} epochs"
    )


if __name__ == "__main__":
    sys.exit(main())
