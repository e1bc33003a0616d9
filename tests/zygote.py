"""`python -m sweep.run`, or another module, without its imports: a process that has made them forks one a command.

What runs is a process of its own with its own arguments, environment, folder, output and exit status, from the first
line of sweep/run.py to the last function that is run at exit; only the modules below are there already, imported and
not yet used, and so cost nothing. For tests of what a command does. One of how it starts or ends, what it imports, or
how it takes a signal uses `processes.run`.

The upload process (sweep/tracking/upload_process.py) of such a command is forked too, since its imports take seconds;
so is that of a trial or a study in the test's own process. What Hydra composes is kept for the next command; see
compositions.py.

The file is both sides: `Zygote` for the tests, and as a program the process that forks. It reads a line of JSON for
each command, which may come with the files of its standard streams, and answers with lines: "started PID", and some
time later "ended PID STATUS".
"""

import atexit
import importlib
import io
import json
import logging
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn, Self

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
    *("joblib.externals.loky.backend.popen_loky_posix", "joblib.externals.loky.backend.fork_exec"),
    *("torchmetrics", "sklearn.datasets", "torchdata.stateful_dataloader"),
    *("pyarrow.parquet", "mlflow.store.tracking.sqlalchemy_store", "sweep.tracking.mlflow_models"),
)
UPLOAD_PROCESS = "sweep.tracking.upload_process"
_PATIENCE_S = 300.0
_TURN_S = 0.1  # for which one thread keeps others from asking too


class _Forked:
    """A process that a zygote has forked: as much of `subprocess.Popen` as is used."""

    def __init__(self, zygote: "Zygote", pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._zygote = zygote

    def poll(self) -> int | None:
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._ended(_PATIENCE_S if timeout is None else timeout)
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or _PATIENCE_S)
        return status

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout_s: float) -> int | None:
        if self.returncode is None:
            self.returncode = self._zygote.status(self.pid, timeout_s)
        return self.returncode


class Command(_Forked):
    """One whose output is kept."""

    def __init__(self, zygote: "Zygote", pid: int, out: Path, err: Path) -> None:
        super().__init__(zygote, pid)
        self._out, self._err = out, err

    def printed(self) -> str:
        """What it has written to stdout so far."""
        return self._out.read_text()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self.printed(), self._err.read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is not None:  # of the test: it would wait for nothing
            self.send_signal(signal.SIGKILL)
        self.wait()


class ForkedUploadProcess(_Forked):
    """With pipes to and from it."""

    def __init__(self, zygote: "Zygote", pid: int, stdin: IO[str], stdout: IO[str]) -> None:
        super().__init__(zygote, pid)
        self.stdin, self.stdout = stdin, stdout


class Zygote:
    """light: has neither torch nor MLflow. environment: of the process that forks; each command has its own.

    kept: a folder for what commands compose and for MLflow's tables, which other zygotes may share.
    """

    def __init__(self, environment: Mapping[str, str], *, light: bool = False, kept: Path | None = None) -> None:
        modules = _LIGHT if light else _HEAVY
        self._folder = tempfile.TemporaryDirectory()
        self._commands, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(kept or self._folder.name), *modules],
                env=environment,
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        self._turn, self._is_closed = threading.RLock(), False
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
        stdin: int | None = None,
    ) -> Command:
        """In a process group of its own.

        module: what `python -m` is given; or a script in `cwd`, which ends in .py.
        stdin: an open file that it reads from; by default there is nothing to read.
        """
        with self._turn:
            self._n_started += 1
            out, err = (Path(self._folder.name) / f"{self._n_started}.{name}" for name in ("out", "err"))
        command = {"cwd": str(cwd), "arguments": arguments, "environment": dict(environment), "module": module}
        streams = [os.open(file, os.O_RDWR | os.O_CREAT) for file in (os.devnull, out, err)]
        try:
            own = [streams[0] if stdin is None else stdin, *streams[1:]]
            return Command(self, self._start(command, own), out, err)
        finally:
            for stream in streams:
                os.close(stream)

    def start_upload_process(self, errors: IO[bytes]) -> "ForkedUploadProcess":
        """`python -m sweep.tracking.upload_process` here, with pipes to and from it."""
        command = {"cwd": os.getcwd(), "arguments": (), "environment": {**os.environ}, "module": UPLOAD_PROCESS}
        (of_it, to_tester), (of_tester, to_it) = os.pipe(), os.pipe()
        pid = self._start(command, [of_tester, to_tester, errors.fileno()])
        os.close(of_tester)
        os.close(to_tester)
        return ForkedUploadProcess(self, pid, os.fdopen(to_it, "w"), os.fdopen(of_it))

    def _start(self, command: Mapping[str, Any], streams: Sequence[int]) -> int:
        """Return the id of the process that runs the command with these standard streams."""
        sys.audit("subprocess.Popen", command["module"], command["arguments"], command["cwd"], None)  # as if from here
        with self._turn:
            socket.send_fds(self._commands, [json.dumps(command).encode() + b"\n"], streams)
            while (answer := self._answer(_PATIENCE_S)) is not None:
                kind, _, rest = answer.partition(" ")
                if kind == "started":
                    self._statuses.pop(int(rest), None)  # of an earlier process
                    return int(rest)
                self._note(rest)
        raise AssertionError("no command is started any more")

    def status(self, pid: int, timeout_s: float) -> int | None:
        """The exit status of a command; None if it has not ended by then, -1 if nobody knows any more."""
        deadline = time.monotonic() + timeout_s
        while True:
            with self._turn:  # others may wait too
                if pid in self._statuses or self._is_closed:
                    return self._statuses.get(pid, -1)
                left_s = deadline - time.monotonic()
                answer = self._answer(min(_TURN_S, max(0.0, left_s)))
                if answer is not None:
                    self._note(answer.partition(" ")[2])
                elif left_s <= 0:
                    return None

    def close(self) -> None:
        assert self._process.stdout is not None
        with self._turn:  # a thread may wait for an upload process
            self._is_closed = True
            self._commands.close()
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
    commands, unread, streams = socket.socket(fileno=0), b"", list[int]()
    while True:
        for ready in select.select([0, died], [], [])[0]:
            if ready == died:
                os.read(died, 65536)
                _tell_who_ended()
                continue
            read, more, *_ = socket.recv_fds(commands, 65536, 3)
            if not read:
                return None
            unread, streams = unread + read, streams + more
            if not unread.endswith(b"\n"):  # the tester waits for the answer before it sends another
                continue
            child = os.fork()
            if child == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                commands.detach()
                os.close(died)
                os.close(tell)
                return {**json.loads(unread), "streams": streams}
            for stream in streams:
                os.close(stream)
            unread, streams = b"", []
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
    for number, stream in enumerate(command["streams"]):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(command["cwd"])
    os.environ.clear()
    os.environ.update(command["environment"])
    own = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [os.getcwd(), *own, *import_path]
    sys.argv[1:] = command["arguments"]
    if "torch" in sys.modules and (n_threads := os.environ.get("OMP_NUM_THREADS")):  # which torch read long before
        importlib.import_module("torch").set_num_threads(int(n_threads))


def _draw() -> None:
    """Draw once: the first plot of a process costs as much again, for fonts and markers."""
    with importlib.import_module("sweep.figures.drawing").plain_figure((8, 6), 110) as figure:
        axes = figure.subplots()
        axes.plot([1, 2], [0.1, 0.01], label="line")
        axes.set(title="title", xlabel="x", yscale="log")
        axes.legend()
        figure.canvas.print_png(io.BytesIO())


def _remember_tables(kept: Path) -> None:
    """Have the first new MLflow store kept, and copied for the next ones: its tables cost 2 s."""
    client = importlib.import_module("sweep.tracking.mlflow_client")
    make = client.make_tables

    def make_tables(uri: str) -> None:
        """Only one process at a time makes those of a store."""
        path = Path(uri.removeprefix("sqlite:///"))
        if not uri.startswith("sqlite:///") or "?" in uri or path.exists():
            return
        if kept.exists():
            part = path.with_name(f".{os.getpid()}.{path.name}")
            shutil.copy(kept, part)
            part.rename(path)
            return
        make(uri)
        part = kept.with_suffix(f".{os.getpid()}")
        shutil.copy(path, part)
        part.rename(kept)

    setattr(client, "make_tables", make_tables)  # noqa: B010


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


def _exit_after(work: Callable[[], object]) -> NoReturn:
    """End this process once the work is done, as Python does, but leave the modules as they are.

    To clear them all would cost a second or two: it writes to every page of memory that is shared with the zygote.
    """
    status: Any = 0
    try:
        work()
    except SystemExit as end:
        status = end.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    getattr(threading, "_shutdown")()  # noqa: B009  # waits for threads
    getattr(atexit, "_run_exitfuncs")()  # noqa: B009
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)


def _fork_worker(command: Sequence[str], kept: Sequence[int], env: Mapping[str, str] | None = None) -> int:
    """What joblib starts a worker with: `python -m MODULE ARGUMENTS` with these files open, and more environment."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    try:
        getattr(atexit, "_clear")()  # noqa: B009  # what the command does at its end
        getattr(threading, "_threading_atexits").clear()  # noqa: B009
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            if callable(signal.getsignal(signum)):
                signal.signal(signum, signal.SIG_DFL)
        if callable(signal.getsignal(signal.SIGINT)):
            signal.signal(signal.SIGINT, signal.default_int_handler)
        _let_go_of_files({0, 1, 2, *map(int, kept)})
        os.environ.update(env or {})
        sys.argv[1:] = command[3:]
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
        _exit_after(lambda: runpy.run_module(command[2], run_name="__main__", alter_sys=True))
    finally:
        os._exit(1)


def _let_go_of_files(kept: set[int]) -> None:
    """Close all but these. Their numbers stay taken: objects that are left may close them once more."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number not in kept and number != nothing:
            with suppress(OSError):  # it was the listing's own
                os.fstat(number)
                os.dup2(nothing, number)


def main() -> None:
    import gc

    kept, here = Path(sys.argv[1]), os.path.dirname(__file__)
    import_path = [
        path for path in sys.path if path != here and path not in os.environ.get("PYTHONPATH", "").split(os.pathsep)
    ]
    for module in sys.argv[2:]:
        importlib.import_module(module)
    from compositions import remember
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.plugins import Plugins

    remember(kept)
    Plugins.instance()  # imports them
    OverridesParser.create().parse_overrides(["a=[1,b]", "+c.d='e'"])  # the parser builds its tables as it goes
    importlib.import_module("sweep.config.composition").compose(["experiment=debug"])  # and so does that of values
    if "matplotlib" in sys.modules:
        _draw()
    assert ("torch" in sys.modules) == ("torch._dynamo" in sys.argv)
    assert ("mlflow" in sys.modules) == ("sweep.tracking.mlflow_client" in sys.argv)
    gc.freeze()
    command = _serve()
    if command is None:
        os._exit(0)
    _become(command, import_path)
    if command["module"] == UPLOAD_PROCESS:
        _remember_tables(kept / "mlflow.db")
        _exit_after(importlib.import_module(UPLOAD_PROCESS).main)
    if "mlflow" in sys.modules:
        _remember_tables(kept / "mlflow.db")
        setattr(importlib.import_module(UPLOAD_PROCESS), "subprocess", _Forking)  # noqa: B010
        setattr(importlib.import_module("joblib.externals.loky.backend.fork_exec"), "fork_exec", _fork_worker)  # noqa: B010
    if command["module"].endswith(".py"):
        sys.argv[0] = command["module"]
        _exit_after(lambda: runpy.run_path(command["module"], run_name="__main__"))
    _exit_after(lambda: runpy.run_module(command["module"], run_name="__main__", alter_sys=True))


if __name__ == "__main__":
    main()
