"""The time that MLflow adds to a run of 50 epochs (about 10 s): the complete command with tracking on and off, in turn.

`python benchmarks/tracking_cost.py`
"""

import argparse
import statistics
import subprocess
import sys
import tempfile

from common import print_setting, print_verdict, time_in_turn

RUN = [sys.executable, "-m", "sweep.run", "optimizer=adam", "trainer.epochs=50", "data.n=28000"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print_setting()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*RUN, "trainer.epochs=1"], cwd=folder, check=True, stdout=subprocess.DEVNULL)  # makes the store
        seconds = time_in_turn({"on": [*RUN], "off": [*RUN, "tracking=off"]}, rounds, cwd=folder)
    added = statistics.median(on - off for on, off in zip(seconds["on"], seconds["off"], strict=True))
    print(f"with MLflow {statistics.median(seconds['on']):.2f} s, without {statistics.median(seconds['off']):.2f} s")
    return 0 if print_verdict("MLflow adds, of a run of 10 s,", 100 * added / 10, 5, " %") else 1


if __name__ == "__main__":
    sys.exit(main())
