"""This checkout against another one, command by command and in turn: complete processes, in wall-clock and CPU time.

    git worktree add ../before COMMIT
    python benchmarks/paired.py ../before

Each round runs every command once with the code of each checkout, each time in a new folder. In every second round, the
other checkout goes first. The figure is the median over rounds of the ratio within a round. Above 1, this checkout is
slower.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from common import paired_ratio, print_setting, print_verdict

HERE = Path(__file__).resolve().parent.parent
BOUND = 1.03
_STUDY = ("-m", "optimizer=adam", "hydra/sweeper/sampler=random", "hydra/sweeper/pruner=none", "trainer.epochs=10")
COMMANDS = {
    "cold start (--cfg job)": ("--cfg", "job"),
    "a run of 60 epochs": ("optimizer=adam",),
    "a run of 60 epochs, convnet": ("model=convnet", "data=digits", "optimizer=adam"),
    "a study of 40 trials": (*_STUDY, "hydra.sweeper.n_trials=40"),
    "a packed study of 200 trials": (*_STUDY, "hydra.sweeper.n_trials=200", "hydra.sweeper.pack=64"),
}


class Cost(NamedTuple):
    wall_s: float
    cpu_s: float


def cost(checkout: Path, arguments: Sequence[str]) -> Cost:
    """Run the command with the code of that checkout. Return its cost, including its child processes."""
    with tempfile.TemporaryDirectory() as folder:
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "sweep.run", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        wall_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def paired(other: Path, arguments: Sequence[str], rounds: int) -> list[tuple[Cost, Cost]]:
    """Return the costs of the other checkout and of this one, for each round."""
    costs = []
    for i in range(rounds):
        order = [other, HERE] if i % 2 else [HERE, other]
        found = {checkout: cost(checkout, arguments) for checkout in order}
        costs.append((found[other], found[HERE]))
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the root of another checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="commands whose name has this in it")
    given = parser.parse_args()
    other = given.other.resolve()
    if not (other / "sweep" / "run.py").is_file():
        parser.error(f"'{other}' is no checkout of sweep")
    print_setting()
    is_within = True
    for name, arguments in COMMANDS.items():
        if given.only and given.only not in name:
            continue
        costs = paired(other, arguments, given.rounds)
        old, new = zip(*costs, strict=True)
        wall_s = [statistics.median(c.wall_s for c in of_one) for of_one in (old, new)]
        cpu = paired_ratio([c.cpu_s for c in new], [c.cpu_s for c in old])
        print(f"{name}: {wall_s[0]:.2f} s before, {wall_s[1]:.2f} s now, {cpu:.3f}x the CPU time", flush=True)
        wall = paired_ratio([c.wall_s for c in new], [c.wall_s for c in old])
        is_within = print_verdict(name, wall, BOUND) and is_within
    sys.exit(not is_within)


if __name__ == "__main__":
    main()
