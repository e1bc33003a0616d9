"""Servers that end with the test process that started them, however it ends: by Ctrl-C or SIGKILL, too.

The file is both sides. As a program it starts a command in a process group of its own, and ends the group when its own
standard input ends.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path


class Guarded:
    """A server; what it prints is appended to `log`."""

    def __init__(
        self, command: Sequence[str], log: Path, *, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        with open(log, "ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, __file__, *command],
                cwd=cwd,
                env=env,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is not for it
            )

    def poll(self) -> int | None:
        """Return the exit status of the server; None while it runs."""
        return self._process.poll()

    def end(self) -> None:
        """End all of its processes at once, like a machine that loses its power."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)

    def end_with_server() -> None:
        os._exit(server.wait())

    threading.Thread(target=end_with_server, daemon=True).start()
    sys.stdin.read()
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


if __name__ == "__main__":
    main()
