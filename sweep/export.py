"""`python -m sweep.export RUN --format onnx`: write a trained model as one file for other programs, and check it."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.trial.model_export import SUFFIXES, export_model
from sweep.utils.command_line import Parser, run_command
from sweep.utils.terminal import say

if TYPE_CHECKING:
    from sweep.trial.exported_model import ExportedModel

_SHOWN_NAMES = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: by default those of the process.

    Returns:
        The exit status: 0 if the file is written and equals the model on the test split; 2 if there is no such run, or
        its model cannot be exported.
    """
    return run_command(_parser(), _export, arguments)


def _export(given: argparse.Namespace) -> int:
    _show(export_model(given.run, given.path, format=given.format, output_dir=given.output_dir))
    return 0


def _show(made: "ExportedModel") -> None:
    """Print what was written, what it takes and returns, and how it was checked."""
    shape = ", ".join(["N", *map(str, made.in_shape)])
    names = ", ".join(made.inputs[:_SHOWN_NAMES]) + (", ..." if len(made.inputs) > _SHOWN_NAMES else "")
    say(f"Wrote {made.path}")
    say(f"  takes    inputs: {made.dtype} ({shape}), in their own units: {names}")
    say(f"  returns  {made.output}")
    say(
        f"  checked  by {made.checked_by}: equal to the model on the {made.n_checked} test samples, "
        f"largest difference {made.difference:.1g}"
    )


def _parser() -> Parser:
    parser = Parser(prog="python -m sweep.export", description=__doc__)
    parser.add_argument("run", help="the folder of a run, or the name of a study for its best trial")
    parser.add_argument("--format", choices=[*SUFFIXES], default="onnx", help="default: onnx")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), help="where studies are (default: outputs)")
    parser.add_argument(
        "-o",
        dest="path",
        type=Path,
        metavar="FILE",
        help="where the model goes (default: model.onnx or model.pt2 in the folder of the run)",
    )
    return parser


if __name__ == "__main__":
    logging.raiseExceptions = False
    sys.exit(main())
