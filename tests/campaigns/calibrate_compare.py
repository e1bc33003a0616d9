"""Compares an optimizer with itself, and with a handicapped self, again and again: how often is a difference declared?

    python tests/campaigns/calibrate_compare.py --comparisons 100

Every comparison is one of `python -m sweep.compare` with its usual 20 seeds and 8 trials a tuning, on a small model and
all in packs: both contenders are tuned anew for every seed with draws of their own, what was chosen is trained on the
seed, and the judgement is the tool's. Only studies and records are left out. The handicapped contender trains for
HANDICAP epochs instead of EPOCHS. `--once` also tunes each contender a single time, which the tool calls a verdict
about the chosen configurations: its count says why that is not the default.

Exit status: 0, or 1 when more than 11 of 100 comparisons with itself, or fewer than 90 of 100 with the handicapped,
declare a difference (for other numbers of comparisons, the 99 % bound of the binomial distribution with 5 % and 90 %).
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
from scipy import stats

from sweep import compose
from sweep.comparison.contenders import Contender
from sweep.comparison.judge import judge
from sweep.comparison.runs import Entry, Run, choose
from sweep.config.nodes import MOST_SEEDS
from sweep.config.schema import Config, validate
from sweep.study.trial_result import TrialResult
from sweep.training.packed.member import PackMember
from sweep.training.packed.pack import report
from sweep.training.trial import UnrecordedTrial
from sweep.trial.pack_scheduler import PackScheduler
from sweep.trial.remembered import RememberedData

LEVEL = 0.05
EPOCHS, HANDICAP = 12, 6
LOW, HIGH = 1e-4, 1e-1  # learning rates
WIDTH = 256
SMALL = (
    "tracking=off",
    "data.n=200",
    "model.widths=[8]",
    "trainer.batch_size=32",
    "optimizer=adam",
    "scheduler=constant",
)


@dataclass(frozen=True)
class Size:
    """Of a comparison: seeds, trials of a tuning, and whether each seed has a tuning of its own."""

    n_seeds: int = 20
    n_trials: int = 8
    retune: bool = True

    @property
    def n_tunings(self) -> int:
        return self.n_seeds if self.retune else 1


class Packed:
    """Trains runs of the small model, WIDTH at a time."""

    def __init__(self, *overrides: str) -> None:
        self._scheduler = PackScheduler(WIDTH, WIDTH, RememberedData())
        self._config = validate(compose([*SMALL, *overrides]))

    def train(self, rates: Sequence[float], seeds: Sequence[int]) -> list[Run | None]:
        """A run for each rate and seed; None for one that diverged."""
        pairs = list(zip(rates, seeds, strict=True))
        return [run for i in range(0, len(pairs), WIDTH) for run in self._together(pairs[i : i + WIDTH])]

    def _together(self, pairs: Sequence[tuple[float, int]]) -> list[Run | None]:
        trials: list[_Losses] = []
        members: list[PackMember] = []
        for rate, seed in pairs:
            group, slot = self._scheduler.member(self._with(rate, seed))
            trials.append(_Losses())
            slot.trial = trials[-1]
            group.pack.admit(slot)
            members.append(slot)
        found: dict[PackMember, Run | None] = {}
        while self._scheduler.groups:
            for group in self._scheduler.groups:
                ended, _ = group.advance()
                report(group.pack.members, ended)
                for slot, error in ended.items():
                    losses = np.array(trials[members.index(slot)].values)
                    found[slot] = None if error else Run(group.test(slot), losses, slot.n_updates, 1.0)
                    group.pack.release(slot)
        return [found[slot] for slot in members]

    def _with(self, rate: float, seed: int) -> Config:
        config = deepcopy(self._config)
        config.optimizer["lr"], config.seed, config.trainer.seed = rate, seed, seed
        return config


class _Losses(UnrecordedTrial):
    def __init__(self) -> None:
        self.values: list[float] = []

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        self.values.append(metrics["val/loss"])


def contender(packed: Packed, name: str, seed: int, rng: np.random.Generator, size: Size) -> Entry:
    """Tuned with draws of its own, and trained."""
    rates = np.exp(rng.uniform(np.log(LOW), np.log(HIGH), size.n_trials * size.n_tunings)).tolist()
    tuned = packed.train(rates, [seed] * len(rates))
    entry = Entry(Contender(name, {}), "", n_tunings=size.n_tunings)
    entry.trials = [
        TrialResult(i, {"optimizer.lr": rate}, None, "pruned", True, "diverged")
        if run is None
        else TrialResult(i, {"optimizer.lr": rate}, float(run.val_loss.min()), "complete", False, None)
        for i, (rate, run) in enumerate(zip(rates, tuned, strict=True))
    ]
    entry.chosen = choose(entry.trials, size.n_tunings, size.n_seeds, "minimize")
    fresh = [seed + MOST_SEEDS + i for i in range(size.n_seeds)]
    entry.runs = packed.train([t.params["optimizer.lr"] if t else LOW for t in entry.chosen], fresh)
    return entry


def campaign(n: int, seed: int, size: Size, handicap: int | None, tell: Callable[[str], object]) -> int:
    """How many of `n` comparisons declare a difference. handicap: epochs of the second contender."""
    usual = Packed(f"trainer.epochs={EPOCHS}")
    other = usual if handicap is None else Packed(f"trainer.epochs={handicap}")
    n_declared, found = 0, []
    for i in range(n):
        draws = [np.random.default_rng([seed, i, who]) for who in (0, 1)]
        entries = [
            contender(usual, "a", 100 * i, draws[0], size),
            contender(other, "b", 100 * i, draws[1], size),
        ]
        (task,) = judge(
            entries,
            "test/loss",
            "minimize",
            "minimize",
            learns=False,
            level=LEVEL,
            target=None,
            n_trials=size.n_trials,
        ).tasks
        (duel,) = task.tests
        n_declared += duel.better is not None
        found.append((duel.second.score.median / duel.first.score.median, duel.pair.effect, duel.pair.improvement))
    ratio, effect, better = np.median(found, axis=0)
    tell(f"medians: loss of the second / the first {ratio:.2f}, effect {effect:+.2f}, first better in {better:.0%}")
    return n_declared


def most(n: int) -> int:
    """The 99 % bound of declared differences where there is none: 11 of 100."""
    return int(stats.binom.ppf(0.99, n, LEVEL))


def fewest(n: int) -> int:
    """90 of 100; for fewer comparisons, what a tool that finds 90 % of differences misses with a chance of 1 %."""
    return 90 * n // 100 if n >= 100 else int(stats.binom.ppf(0.01, n, 0.9))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--once", action="store_true", help="also tune once only, without a bound")
    given = parser.parse_args()
    n, start = given.comparisons, time.monotonic()
    same = campaign(n, given.seed, Size(), None, print)
    print(f"with itself: {same} of {n} declare a difference (at most {most(n)})", flush=True)
    planted = campaign(n, given.seed + 1, Size(), HANDICAP, print)
    print(f"{EPOCHS} against {HANDICAP} epochs: {planted} of {n} declare one (at least {fewest(n)})", flush=True)
    if given.once:
        once = campaign(n, given.seed + 2, Size(retune=False), None, print)
        print(f"with itself, each tuned once: {once} of {n} declare a difference")
    print(f"{time.monotonic() - start:.0f} s")
    return 0 if same <= most(n) and planted >= fewest(n) else 1


if __name__ == "__main__":
    sys.exit(main())
