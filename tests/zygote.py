"""`python -m sweep.run`, or another module, without its imports: a process that has made them forks one a command.

What runs is a process of its own with its own arguments, environment, folder, output and exit status, from the first
line of sweep/run.py to the interpreter's end; only the modules below are there already, imported and not yet used, and
so cost nothing. For tests of what a command does. One of how it starts, what it imports, or how it takes a signal uses
`processes.run`.

The upload process (sweep/tracking/upload_process.py) of such a command is forked too, since its imports take seconds.
If asked to, a command keeps what Hydra composes (0.25 s each, 29 times in a comparison) for the next one in its folder.

The file is both sides: `Zygote` for the tests, and as a program the process that forks. It reads a line of JSON for
each command, and answers with lines: "started PID", and some time later "ended PID STATUS".
"""

import hashlib
import importlib
import json
import logging
import os
import pickle
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

_LIGHT = (
    *("sweep.config.composition", "sweep.config.schema", "sweep.trial.build", "sweep.tracking.folders"),
    *("sweep.study.sweeper", "sweep.study.runner", "sweep.study.dry_run"),
)
_HEAVY = (
    *_LIGHT,
    *("sweep.models", "sweep.data.preprocessing", "sweep.training.loop", "sweep.config.best_config"),
    *("sweep.trial.run", "sweep.trial.summary", "sweep.trial.predictor", "sweep.trial.signature"),
    *("sweep.trial.predictions", "sweep.study.shown", "sweep.tracking.mlflow_client", "sweep.tracking.upload_process"),
    *("sweep.reporting.study_page", "sweep.comparison.comparison", "sweep.comparison.report", "sweep.comparison.plot"),
    *("torch._dynamo", "torch.utils.flop_counter", "matplotlib.style", "matplotlib.backends.backend_agg"),
    *("pyarrow.parquet", "mlflow.store.tracking.sqlalchemy_store", "sweep.tracking.mlflow_models"),
)
_PATIENCE_S = 300.0


class Command:
    """One that a zygote has started: as much of `subprocess.Popen` as the tests use."""

    def __init__(self, zygote: "Zygote", pid: int, out: Path, err: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._zygote, self._out, self._err = zygote, out, err

    def poll(self) -> int | None:
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._ended(_PATIENCE_S if timeout is None else timeout)
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or _PATIENCE_S)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self._out.read_text(), self._err.read_text()

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def _ended(self, timeout_s: float) -> int | None:
        if self.returncode is None:
            self.returncode = self._zygote.status(self.pid, timeout_s)
        return self.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is not None:  # of the test: it would wait for nothing
            self.send_signal(signal.SIGKILL)
        self.wait()


class Zygote:
    """light: has neither torch nor MLflow. environment: of the process that forks; each command has its own."""

    def __init__(self, environment: Mapping[str, str], *, light: bool = False) -> None:
        modules = _LIGHT if light else _HEAVY
        self._folder = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [sys.executable, __file__, self._folder.name, *modules],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._statuses: dict[int, int] = {}  # of commands that have ended, by process
        self._unread = b""
        self._n_started = 0
        assert self._answer(_PATIENCE_S) == "ready"

    def start(
        self,
        cwd: Path,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        module: str = "sweep.run",
        remembers: bool = False,
    ) -> Command:
        """In a process group of its own.

        module: what `python -m` is given. remembers: whether compositions are kept, if no option's file changes.
        """
        sys.audit("subprocess.Popen", module, list(arguments), str(cwd), None)  # as if it were started here
        self._n_started += 1
        out, err = (Path(self._folder.name) / f"{self._n_started}.{name}" for name in ("out", "err"))
        for file in (out, err):  # a command may be killed before it opens them
            file.touch()
        command = {"cwd": str(cwd), "arguments": arguments, "environment": dict(environment), "module": module}
        command |= {"out": str(out), "err": str(err), "remembers": remembers}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()
        while (answer := self._answer(_PATIENCE_S)) is not None:
            kind, _, rest = answer.partition(" ")
            if kind == "started":
                return Command(self, int(rest), out, err)
            self._note(rest)
        raise AssertionError("no command is started any more")

    def status(self, pid: int, timeout_s: float) -> int | None:
        """The exit status of a command, which is told once; None if it has not ended by then."""
        deadline = time.monotonic() + timeout_s
        while pid not in self._statuses:
            answer = self._answer(max(0.0, deadline - time.monotonic()))
            if answer is None:
                return None
            self._note(answer.partition(" ")[2])
        return self._statuses.pop(pid)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()

    def _note(self, ended: str) -> None:
        pid, status = map(int, ended.split())
        self._statuses[pid] = status

    def _answer(self, timeout_s: float) -> str | None:
        """The next line; None if there is none by then."""
        assert self._process.stdout is not None
        while b"\n" not in self._unread:
            if not select.select([self._process.stdout], [], [], timeout_s)[0]:
                return None
            read = os.read(self._process.stdout.fileno(), 65536)
            assert read, "the zygote has died"
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()


def _serve() -> dict[str, Any] | None:
    """Returns in each process that is forked, with its command, and at last in this one, with None."""
    died, tell = os.pipe()  # a byte for each death of a child
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    print("ready", flush=True)
    unread = b""
    while True:
        for ready in select.select([0, died], [], [])[0]:
            read = os.read(ready, 65536)
            if ready == died:
                _tell_who_ended()
                continue
            if not read:
                return None
            *lines, unread = (unread + read).split(b"\n")
            for line in lines:
                child = os.fork()
                if child == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    os.close(died)
                    os.close(tell)
                    return json.loads(line)
                print("started", child, flush=True)


def _tell_who_ended() -> None:
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            print("ended", ended[0], os.waitstatus_to_exitcode(ended[1]), flush=True)
    except ChildProcessError:  # none is left
        pass


def _become(command: dict[str, Any], import_path: list[str]) -> None:
    """`python -m` as it is when the module is about to be run."""
    os.setsid()
    for number, path in enumerate([os.devnull, command["out"], command["err"]]):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.chdir(command["cwd"])
    os.environ.clear()
    os.environ.update(command["environment"])
    own = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [os.getcwd(), *own, *import_path]
    sys.argv[1:] = command["arguments"]


def _remember_compositions(folder: Path) -> None:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    compose = ConfigLoaderImpl._load_configuration_impl

    def remembering(self: ConfigLoaderImpl, **asked: Any) -> Any:
        said = {key: value for key, value in asked.items() if key != "parsed_overrides"}
        if asked.get("activate_config_repository"):  # the command's own, of which Hydra keeps more
            return compose(self, **asked)
        file = folder / hashlib.sha256(repr((os.getcwd(), said)).encode()).hexdigest()
        if file.exists():
            return pickle.loads(file.read_bytes())
        config = compose(self, **asked)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_bytes(pickle.dumps(config))
        part.rename(file)
        return config

    setattr(ConfigLoaderImpl, "_load_configuration_impl", remembering)  # noqa: B010  # it has fewer words than the real one


class _Forking:
    """What upload_process.py uses of the module subprocess, for a process that is forked and so has its imports."""

    PIPE = subprocess.PIPE

    class Popen:
        def __init__(self, command: Sequence[str], *, stderr: IO[bytes], **_: object) -> None:
            of_helper, to_helper = os.pipe()
            of_command, to_command = os.pipe()
            sys.stdout.flush()
            sys.stderr.flush()
            self.pid = os.fork()
            if self.pid == 0:
                os.setsid()
                for number, file in enumerate((of_helper, to_command, stderr.fileno())):
                    os.dup2(file, number)
                os.closerange(3, 256)
                sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
                logging.root.handlers.clear()  # a new process would not log where the command does
                status = 1
                try:
                    importlib.import_module(command[-1]).main()
                    status = 0
                finally:
                    sys.stdout.flush()
                    os._exit(status)
            os.close(of_helper)
            os.close(to_command)
            self.stdin, self.stdout = os.fdopen(to_helper, "w"), os.fdopen(of_command)

        def kill(self) -> None:
            os.kill(self.pid, signal.SIGKILL)

        def wait(self) -> None:
            os.waitpid(self.pid, 0)


def main() -> None:
    import gc

    kept = Path(sys.argv[1])  # what Hydra composed
    import_path = [path for path in sys.path[1:] if path not in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    for module in sys.argv[2:]:
        importlib.import_module(module)
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.plugins import Plugins

    Plugins.instance()  # imports them
    OverridesParser.create().parse_overrides(["a=[1,b]", "+c.d='e'"])  # the parser builds its tables as it goes
    assert ("torch" in sys.modules) == ("torch._dynamo" in sys.argv)
    assert ("mlflow" in sys.modules) == ("sweep.tracking.mlflow_client" in sys.argv)
    gc.freeze()
    command = _serve()
    if command is not None:
        _become(command, import_path)
        if "mlflow" in sys.modules:
            setattr(importlib.import_module("sweep.tracking.upload_process"), "subprocess", _Forking)  # noqa: B010
        if command["remembers"]:
            _remember_compositions(kept)
        runpy.run_module(command["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
