"""sweep/utils/signals.py: which signals ask for a stop, in a process of its own."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

WARNED = """
import os, signal, sys
from sweep.utils.signals import stop_on_signal

{before}
with stop_on_signal() as stop:
    os.kill(os.getpid(), signal.SIGUSR2)
    print(stop.signum == signal.SIGUSR2)
{after}
"""
AGAIN = "os.kill(os.getpid(), signal.SIGUSR2)\nprint('alive')"
OF_FAULTHANDLER = "import faulthandler\nfaulthandler.register(signal.SIGUSR2, file=sys.stderr)"
OF_USER = "signal.signal(signal.SIGUSR2, lambda signum, frame: print('mine'))"


@pytest.mark.parametrize(
    ("before", "after", "out"),
    [
        ("", "", ["True"]),
        (OF_FAULTHANDLER, AGAIN, ["False", "alive"]),
        (OF_USER, AGAIN, ["mine", "False", "mine", "alive"]),
    ],
    ids=["nobody handles it", "faulthandler", "a handler of the user's own"],
)
def test_a_warning_stops_unless_the_program_uses_its_signal(before: str, after: str, out: list[str]) -> None:
    code = WARNED.format(before=before, after=after)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == out
