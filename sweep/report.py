"""`python -m sweep.report NAME`: write a study or a comparison as one HTML page that opens offline."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from sweep.api import write_report
from sweep.utils.command_line import Parser, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: by default those of the process.

    Returns:
        The exit status: 0 if the page is written, whether or not MLflow has it; 1 if a journal is damaged; 2 if there
        is no such study, comparison or trial, or the page cannot be written there.
    """
    return run_command(_parser(), _write, arguments)


def _write(given: argparse.Namespace) -> int:
    write_report(
        given.study,
        output_dir=given.output_dir,
        trials=given.trials,
        page=given.page,
        storage=given.storage,
        show=True,
    )
    return 0


def _parser() -> Parser:
    parser = Parser(prog="python -m sweep.report", description=__doc__)
    parser.add_argument("study", help="the name of a study or a comparison, or the path of its folder")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), help="where studies are (default: outputs)")
    parser.add_argument(
        "--trials", type=_numbers, metavar="3,7", help="the trials whose curves are shown (default: the best)"
    )
    parser.add_argument(
        "-o",
        dest="page",
        type=Path,
        metavar="FILE",
        help="where the page goes; its plots go to plots/ beside it (default: report.html in the study's folder, "
        "which MLflow gets as an artifact)",
    )
    parser.add_argument("--storage", metavar="URL", help="hydra.sweeper.storage of the study, if it has moved")
    return parser


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' lists no numbers of trials, such as 3,7") from None


if __name__ == "__main__":
    logging.raiseExceptions = False
    sys.exit(main())
