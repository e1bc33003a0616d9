"""tests/guarded.py: no server is left behind by tests that are stopped."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from guarded import Guarded
from waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.process

_TEST_PROCESS = """
import sys
from pathlib import Path
from guarded import Guarded

server = Guarded(["sh", "-c", "echo $$; sleep 1000 & sleep 1000"], Path(sys.argv[1]))
print("started", flush=True)
sys.stdin.read()
"""


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_ends_with_the_process_that_started_it(signum: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", _TEST_PROCESS, str(log)]
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=path
    ) as p:
        assert p.stdout is not None
        assert p.stdout.readline() == b"started\n"
        wait_until(lambda: log.exists() and log.read_text().endswith("\n"))
        group = int(log.read_text())
        assert alive(group)
        p.send_signal(signum)
        p.wait(PATIENCE_S)
    wait_until(lambda: not alive(group))


def test_the_status_of_a_server_that_cannot_start_is_told(tmp_path: Path) -> None:
    server = Guarded(["sh", "-c", "echo no room; exit 3"], tmp_path / "log")
    wait_until(lambda: server.poll() is not None)
    assert server.poll() == 3
    assert (tmp_path / "log").read_text() == "no room\n"
    server.end()
