"""`python -m sweep.sync OUTPUT_DIR`: send MLflow what it lacks of the runs below a folder. No row is sent twice."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sweep.tracking.syncing import sync_outputs
from sweep.utils.command_line import Parser, run_command
from sweep.utils.terminal import escaped_line, say


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: by default those of the process.

    Returns:
        The exit status: 0 if MLflow has everything; 1 if something could not be sent; 2 if there is no such folder or
        store, or a run names a place that cannot be trusted.
    """
    return run_command(_parser(), _sync, arguments, unreadable="output_dir")


def _sync(given: argparse.Namespace) -> int:
    found = sync_outputs(given.output_dir, uri=given.uri)
    say(escaped_line(f"{found.n_sent} of {found.n_tracked} tracked runs below {found.folder} are in MLflow"))
    if found.n_refused:
        return 2
    return 0 if found.n_sent == found.n_tracked else 1


def _parser() -> Parser:
    parser = Parser(prog="python -m sweep.sync", description=__doc__)
    parser.add_argument(
        "output_dir", type=Path, nargs="?", default=Path("outputs"), help="where to look (default: outputs)"
    )
    parser.add_argument("--uri", help="send all runs to this MLflow store instead of the one that each names")
    return parser


if __name__ == "__main__":
    sys.exit(main())
