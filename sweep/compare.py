"""`python -m sweep.compare`: find out which settings are better, and how sure that is (docs/compare.md)."""

import importlib

from sweep.run import main as run_main


def main() -> None:
    """Run Hydra's command line. The exit status is that of `sweep.run`, and 1 if there is nothing to compare."""
    run_main("compare")


if __name__ == "__main__":
    # Import the module under its own name instead of __main__, so that other processes can unpickle its functions.
    importlib.import_module("sweep.compare").main()
