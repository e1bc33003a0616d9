"""Wait for what another process does."""

import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zygote import Command

PATIENCE_S = 300.0
_POLL_S = 0.01


def wait_until(
    holds: Callable[[], object],
    process: "subprocess.Popen[str] | Command | None" = None,
    *,
    what: str = "it",
) -> None:
    """Return once `holds` does; fail when it takes too long, or `process` ends before."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:g} s for {what}"
        if process is None:
            time.sleep(_POLL_S)
            continue
        try:
            process.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"ended early: {process.communicate()}")
