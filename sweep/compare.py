"""`python -m sweep.compare`: which settings are better, and can that be believed? (docs/compare.md)"""

import importlib

from sweep.run import main as run_main


def main() -> None:
    """Runs Hydra's command line, with the exit status of `sweep.run`; a comparison without any result ends with 1."""
    run_main("compare")


if __name__ == "__main__":
    # Under its own name, so that other processes can load what it hands to them.
    importlib.import_module("sweep.compare").main()
