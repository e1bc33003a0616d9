"""Time to start: `--help` and `--cfg job` against `import hydra`, the default run against `import torch, mlflow`.

`python benchmarks/cold_start.py`
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time

from common import paired_ratio, print_setting, print_verdict, time_in_turn

RUN = [sys.executable, "-m", "sweep.run"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print_setting()
    with tempfile.TemporaryDirectory() as folder:
        seconds = time_in_turn(
            {
                "import hydra": [sys.executable, "-c", "import hydra"],
                "--cfg job": [*RUN, "--cfg", "job"],
                "--help": [*RUN, "--help"],
            },
            rounds,
            cwd=folder,
        )
        holds = True
        for name in ("--cfg job", "--help"):
            holds &= print_verdict(f"{name} / import hydra", paired_ratio(seconds[name], seconds["import hydra"]), 2.5)
        subprocess.run([*RUN, "experiment=debug"], cwd=folder, check=True, stdout=subprocess.DEVNULL)  # makes the store
        ratios, outside = [], []
        for _ in range(rounds):
            imports_s = time_in_turn({"": [sys.executable, "-c", "import torch, mlflow"]}, 1, folder)[""][0]
            outside.append(_outside_training_s(folder))
            ratios.append(outside[-1] / imports_s)
        print(f"the default run outside training: {statistics.median(outside):.2f} s")
        holds &= print_verdict("outside training / import torch, mlflow", statistics.median(ratios), 1.3)
    return 0 if holds else 1


def _outside_training_s(folder: str) -> float:
    """Return the seconds of the complete default run, minus the seconds of training that it prints."""
    start = time.perf_counter()
    done = subprocess.run([*RUN, "optimizer=adam"], cwd=folder, check=True, capture_output=True, text=True)
    whole_s = time.perf_counter() - start
    found = re.search(r"([\d.]+) s of training", done.stdout)
    assert found is not None
    return whole_s - float(found.group(1))


if __name__ == "__main__":
    sys.exit(main())
