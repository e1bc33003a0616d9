"""`python -m sweep.run` without its imports: a process that has made them forks one for each command.

What runs is a process of its own with its own arguments, environment, folder, output and exit status, from the first
line of sweep/run.py to the interpreter's end; only the modules below are there already, imported and not yet used, and
so cost nothing. For tests of what a command does. One of how it starts, what it imports, or how it takes a signal uses
`processes.run`.

The file is both sides: `Zygote` for the tests, and as a program the process that forks. It reads a line of JSON for
each command, and answers with a line: the exit status.
"""

import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

_LIGHT = (
    *("sweep.composition", "sweep.config", "sweep.build", "sweep.record.folder", "sweep.study.sweeper"),
    *("sweep.study.controller", "sweep.study.dry_run"),
)
_HEAVY = (
    *(*_LIGHT, "sweep.trial", "sweep.train.loop", "sweep.record.summary", "sweep.study.again", "sweep.study.plots"),
    *("torch._dynamo", "torch.utils.flop_counter", "matplotlib.pyplot", "optuna.visualization.matplotlib"),
)
_READY = "ready\n"


class Zygote:
    """light: has no torch. environment: of the process that forks; each command has one of its own."""

    def __init__(self, environment: Mapping[str, str], *, light: bool = False) -> None:
        modules = _LIGHT if light else _HEAVY
        self._process = subprocess.Popen(
            [sys.executable, __file__, *modules],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._answer(timeout_s=120) == _READY

    def run(
        self, cwd: Path, arguments: tuple[str, ...], environment: Mapping[str, str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder) / "out", Path(folder) / "err"
            command = {"cwd": str(cwd), "arguments": arguments, "environment": dict(environment)}
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(command | {"out": str(out), "err": str(err)}) + "\n")
            self._process.stdin.flush()
            status = int(self._answer(timeout_s))
            return subprocess.CompletedProcess(arguments, status, out.read_text(), err.read_text())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self, timeout_s: float) -> str:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            os.killpg(self._process.pid, signal.SIGKILL)
            raise AssertionError(f"a command took longer than {timeout_s:g} s")
        return self._process.stdout.readline()


def _serve(commands: IO[str], answers: IO[str]) -> dict[str, Any] | None:
    """Returns in each process that is forked, with its command, and at last in this one, with None."""
    print(_READY, end="", file=answers, flush=True)
    while line := commands.readline():
        child = os.fork()
        if child == 0:
            return json.loads(line)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
    return None


def _become(command: dict[str, Any], import_path: list[str]) -> None:
    """`python -m sweep.run` as it is when the module is about to be run."""
    for number, (path, flags) in enumerate(
        [
            (os.devnull, os.O_RDONLY),
            (command["out"], os.O_WRONLY | os.O_CREAT),
            (command["err"], os.O_WRONLY | os.O_CREAT),
        ]
    ):
        file = os.open(path, flags)
        os.dup2(file, number)
        os.close(file)
    os.chdir(command["cwd"])
    os.environ.clear()
    os.environ.update(command["environment"])
    own = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [os.getcwd(), *own, *import_path]
    sys.argv[1:] = command["arguments"]


def main() -> None:
    import gc
    import importlib

    import_path = [path for path in sys.path[1:] if path not in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    for module in sys.argv[1:]:
        importlib.import_module(module)
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.plugins import Plugins

    Plugins.instance()  # imports them
    OverridesParser.create().parse_overrides(["a=[1,b]", "+c.d='e'"])  # the parser builds its tables as it goes
    assert ("torch" in sys.modules) == ("torch._dynamo" in sys.argv)
    assert "mlflow" not in sys.modules
    gc.freeze()
    commands, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    command = _serve(commands, answers)
    if command is not None:
        commands.close()
        answers.close()
        _become(command, import_path)
        runpy.run_module("sweep.run", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
