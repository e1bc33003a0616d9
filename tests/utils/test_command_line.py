"""sweep/utils/command_line.py: what a command says if the system refuses a file."""

import argparse
from pathlib import Path

import pytest

from sweep.utils.command_line import Parser, run_command


def full_disk(given: argparse.Namespace) -> int:
    return Path("/dev/full").write_text("a report")


def no_such_file(given: argparse.Namespace) -> int:
    return len(Path("/dev/null/study").read_text())


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (full_disk, "error: study: cannot be written ([Errno 28] No space left on device); make room, and give the"),
        (no_such_file, "error: study: cannot be read or written ([Errno 20] Not a directory: '/dev/null/study')"),
    ],
)
def test_a_file_that_the_system_refuses_is_one_line(run, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(Parser(), run, []) == 2
    said = capfd.readouterr().err
    assert said.startswith(says)
    assert said.count("\n") == 1
