"""sweep/utils/parent.py: a process outlives the one that started it as long as it works, and no longer."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_until

pytestmark = pytest.mark.process

_CHILD = """
import os, sys, time
from pathlib import Path
from sweep.utils.parent import outliving

Path("pid").write_text(str(os.getpid()))
with outliving(int(sys.argv[1])):
    Path("working").touch()
    while not Path("go").exists():
        time.sleep(0.02)
    Path("worked").touch()
time.sleep(1000)  # as a launcher's process waits that somebody takes its result
"""
_PARENT = "import os, subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], str(os.getpid())])"


@pytest.mark.parametrize("dies_first", [True, False])
def test_it_ends_its_work_and_then_itself(dies_first: bool, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT, _CHILD], cwd=tmp_path, text=True) as parent:
        wait_until((tmp_path / "working").exists, parent)
        if dies_first:
            parent.send_signal(signal.SIGKILL)
            parent.wait()
        (tmp_path / "go").touch()
        wait_until((tmp_path / "worked").exists)
        parent.send_signal(signal.SIGKILL)
    child = Path("/proc", (tmp_path / "pid").read_text())
    wait_until(lambda: not child.exists())
