"""Standard streams that are closed, cut off, full or not in UTF-8, as a shell makes them."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from processes import RUN, environment, only_run

from sweep.tracking import journal
from sweep.tracking.folders import StudyFolder

pytestmark = pytest.mark.process  # commands, servers, a browser

SMALL = ("experiment=debug", "trainer.batch_size=16", "trainer.epochs=1", "tracking=off")

_SECURED = """
import os, subprocess, sys
from sweep.utils.command_line import secure_streams
secure_streams()
secure_streams()
for stream in (sys.stdout, sys.stderr):
    for line in range(10_000):
        print("\\u2192", line, file=stream)
assert sys.stdin is not None
assert all(os.get_inheritable(number) for number in range(3))
assert os.open(os.devnull, os.O_RDONLY) > 2
subprocess.run(["sh", "-c", "echo said; echo said >&2"], check=True)
"""


def shell(cwd: Path, command: tuple[str, ...], redirections: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a command with its redirections. Its exit status is in the file `status`."""
    line = f"({shlex.join(command)}; echo $? >status) {redirections}"
    done = subprocess.run(
        ["sh", "-c", line],
        cwd=cwd,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (cwd / "status").read_text() == "0\n", done.stdout + done.stderr
    return done


@pytest.mark.parametrize("redirections", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>&1", "2>&1 | head -1"])
def test_a_stream_that_cannot_be_written_ends_nothing(tmp_path: Path, redirections: str) -> None:
    shell(tmp_path, (sys.executable, "-c", _SECURED), redirections)


@pytest.mark.parametrize("changes", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_what_the_encoding_lacks_is_written_with_backslashes(tmp_path: Path, changes: dict[str, str]) -> None:
    done = shell(tmp_path, (sys.executable, "-c", _SECURED), "", PYTHONCOERCECLOCALE="0", **changes)
    assert done.stdout.startswith("\\u2192 0\n")
    assert done.stdout.endswith("\\u2192 9999\nsaid\n")
    assert done.stderr == done.stdout


def test_a_run_without_any_stream_trains_to_its_end(tmp_path: Path) -> None:
    shell(tmp_path, (*RUN, *SMALL), "<&- >&- 2>&-")
    run = only_run(tmp_path)
    assert journal.status(run.journal) == "FINISHED"
    assert run.curves.exists()


def test_a_study_that_is_read_by_head_trains_to_its_end(tmp_path: Path) -> None:
    command = (*RUN, "-m", *SMALL, "hydra.sweeper.n_trials=2", "hydra.sweeper.study_name=s")
    done = shell(tmp_path, command, "2>&- | head -1", PYTHONIOENCODING="ascii")
    assert done.stdout.startswith("study s: 2 trials")
    assert journal.status(StudyFolder(tmp_path / "outputs/studies/s").run.journal) == "FINISHED"
