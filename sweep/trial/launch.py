"""A training function that several processes train together, under torch's elastic launcher (`trainer.launch`).

The trial stays in this process, with its record, its pruner and its requests to stop. The ranks are processes of their
own (sweep/trial/rank.py). Rank 0 calls the methods of the trial, and the other ranks receive the result of each report.
"""

import logging
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Self

from sweep.config.schema import Config
from sweep.training.trial import Trial
from sweep.trial.function import function_problem, training_function
from sweep.trial.rank import Call, Ended, Flags, Raised, Start
from sweep.utils.errors import ConfigError, FunctionFailed, Interrupted, one_line

_RANK = "import sys; sys.path[:] = {path!r}; from sweep.trial.rank import main; main({address!r})"
_GUARD = 'read _; kill -s KILL -- "-$0"'
_LOOPBACK = "127.0.0.1"
_GRACE_S = 2.0  # seconds that the other ranks have to end after one has failed
_POLL_S = 0.2  # how often to look whether the launcher still runs
_LONGEST_FOLDER = 80  # bytes: the address of a Unix socket has 104 or 108, and the name in the folder takes 22 of them
_SHORT_FOLDER = "/tmp"


class LaunchedTraining:
    """Calls a training function in `trainer.n_processes` processes at once. `config` is the given config."""

    def __init__(self, config: Config) -> None:
        """Load the function. Raise ConfigError if it cannot be loaded, or does not take a config and a trial."""
        self.config = config
        training_function(str(config.trainer.call))

    @property
    def n_epochs(self) -> int:
        """The number of epochs, if the config says it; otherwise 0."""
        return self.config.trainer.epochs or 0

    def __call__(self, trial: Trial) -> dict[str, float]:
        """Call the function in each rank.

        Returns:
            The single values of the function in rank 0, as `FunctionTraining` returns them.

        Raises:
            FunctionFailed: also if a rank dies.
            ConfigError, Diverged, Pruned, Interrupted, OSError: as `FunctionTraining` does.
        """
        start = Start(
            config=_config_of_ranks(self.config),
            number=trial.number,
            params={**trial.params},
            folder=trial.folder,
            epoch=trial.epoch,
        )
        n = self.config.trainer.n_processes
        assert n is not None
        with Ranks(n, start) as ranks:
            training = _Training(trial, ranks, str(self.config.trainer.call))
            training.follow()
        return training.result()


def _config_of_ranks(config: Config) -> Config:
    """Return the config with the kind of device and the number of threads that each rank gets.

    Raise ConfigError if there are not enough devices.
    """
    import torch

    trainer = config.trainer
    n, device = trainer.n_processes or 1, trainer.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda"):
        message = f"'{device}' cannot be used by trainer.launch, which gives each process a device; choose cpu or cuda"
        raise ConfigError("trainer.device", message)
    if device == "cuda" and (n_gpus := torch.cuda.device_count()) < n:
        raise ConfigError("trainer.n_processes", f"is {n}, and each process needs a GPU, but {_remedy(n_gpus)}")
    threads = trainer.threads or max(1, torch.get_num_threads() // n)
    return replace(config, trainer=replace(trainer, device=device, threads=threads))


def _remedy(n_gpus: int) -> str:
    """Return how many GPUs this process may use, and what to do if these are too few."""
    there = "there is 1 here" if n_gpus == 1 else f"there are {n_gpus} here"
    workers = ", or hydra.sweeper.n_jobs=1, since each of several workers gets one GPU" if n_gpus == 1 else ""
    return f"{there}; lower it, or set trainer.device=cpu{workers}"


class Ranks:
    """The processes of one trial, and the connections to them. Use it in a `with` statement; leaving it ends them all.

    Attributes:
        n: the number of processes.
        exit_codes: of the processes that did not exit with 0, by rank; negative for a signal. They are complete once
            the `with` statement is left.
        problem: an error of the launcher itself; None without one.
    """

    def __init__(self, n: int, start: Start) -> None:
        """Prepare. start: the first message to each rank."""
        self.n, self._start = n, start
        self.exit_codes: dict[int, int] = {}
        self.problem: Exception | None = None
        self._connections: dict[int, Connection] = {}
        self._guards: dict[int, subprocess.Popen[bytes]] = {}
        self._launcher = threading.Thread(target=self._launch, daemon=True)

    def __enter__(self) -> Self:
        is_short = len(os.fsencode(tempfile.gettempdir())) <= _LONGEST_FOLDER
        # Only this user may enter it.
        self._folder = tempfile.TemporaryDirectory(prefix="sweep-", dir=None if is_short else _SHORT_FOLDER)
        self._address = str(Path(self._folder.name) / "socket")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._address)
        self._listener.listen(self.n)
        self._launcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.close()
        for guard in self._guards.values():
            guard.communicate()  # kills the rank, so that the launcher ends, too
        for connection in self._connections.values():
            connection.close()
        self._launcher.join()
        self._folder.cleanup()

    @property
    def are_over(self) -> bool:
        """Whether all processes have ended."""
        return not self._launcher.is_alive()

    def messages(self) -> Iterator[tuple[int, Any]]:
        """Wait for a moment. Yield what ranks sent, with the rank. None is the end of a process."""
        ranks = {connection: rank for rank, connection in self._connections.items()}
        for ready in wait([self._listener, *ranks], _POLL_S):
            try:
                if isinstance(ready, Connection):
                    yield ranks[ready], ready.recv()
                else:
                    self._accept()
            except (EOFError, ConnectionError):
                if isinstance(ready, Connection):
                    self._forget(ranks[ready])
                    yield ranks[ready], None

    def answer(self, rank: int, value: Any) -> None:
        """Send a value to a rank. If its process has ended, `messages` will say so."""
        with suppress(KeyError, ConnectionError):
            self._connections[rank].send(value)

    def dismiss(self, ranks: Collection[int]) -> None:
        """Let ranks exit whose function has ended. Wait a moment until they have."""
        for rank in ranks:
            self.answer(rank, None)
        deadline = time.monotonic() + _GRACE_S
        while self._connections.keys() & {*ranks} and time.monotonic() < deadline:
            for _ in self.messages():
                pass

    def _accept(self) -> None:
        connection = Connection(self._listener.accept()[0].detach())
        rank, pid = connection.recv()
        self._guards[rank] = _guarded(pid)
        connection.send(self._start)
        self._connections[rank] = connection
        if len(self._connections) == self.n:
            self._folder.cleanup()  # now, since nobody could after kill -9

    def _forget(self, rank: int) -> None:
        """Forget a rank whose process has ended: soon, another may have its id."""
        self._connections.pop(rank).close()
        with self._guards.pop(rank) as guard:
            guard.kill()

    def _launch(self) -> None:
        """Start the processes, and wait until they end. The launcher ends all of them once one has failed."""
        try:
            self.exit_codes = self._launched()
        except Exception as error:
            self.problem = error

    def _launched(self) -> dict[int, int]:
        """Start the processes, and wait until they end. Return the exit codes of those that failed, by rank."""
        from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, launch_agent

        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the trial's error says it in a line
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self.n,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint=f"{_LOOPBACK}:0",
            local_addr=_LOOPBACK,
            max_restarts=0,  # a study retries the trial
            logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        )
        code = _RANK.format(path=sys.path, address=self._address)  # not -m: classes of __main__ cannot be sent
        try:
            launch_agent(config, sys.executable, ["-c", code])
        except ChildFailedError as error:
            return {rank: failure.exitcode for rank, failure in error.failures.items()}
        return {}


def _guarded(pid: int) -> subprocess.Popen[bytes]:
    """Start a process that kills a rank and its children when its standard input ends, so also if this process dies.

    A rank could not do so itself while it is stuck in C code that keeps the interpreter's lock. If the kernel did, at
    the death of this process (`sweep.utils.parent`), the rank's children would live on.

    pid: of the rank. The launcher makes each rank the leader of a process group.
    """
    quiet = subprocess.DEVNULL
    command = ["/bin/sh", "-c", _GUARD, str(pid)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True)


class _Training:
    """Passes the calls of rank 0 on to the trial, and sends the result of each report to all ranks."""

    def __init__(self, trial: Trial, ranks: Ranks, call: str) -> None:
        self._trial, self._ranks, self._call = trial, ranks, call
        self._reports: list[tuple[int, Flags | Raised]] = []  # the epochs that rank 0 reported, with the answers
        self._n_answered = [0] * ranks.n  # how many of these answers each rank has
        self._waiting: dict[int, int] = {}  # the epochs of reports without an answer, by rank
        self._state: tuple[bytes | None] | None = None  # the last checkpoint, if any, once a rank has asked for it
        self._ends: dict[int, Ended] = {}  # of each rank's function, the first end first
        self._deaths: list[int] = []  # ranks that ended without saying so
        self._error: BaseException | None = None  # what a call of the trial raised

    def follow(self) -> None:
        """Answer the ranks until all have ended, or until a moment after the first has ended by an error."""
        deadline = math.inf
        while len(self._ends) + len(self._deaths) < self._ranks.n and time.monotonic() < deadline:
            if self._ranks.are_over:  # perhaps before a rank could connect
                self._deaths += sorted(self._ranks.exit_codes.keys() - {*self._ends, *self._deaths})
                break
            for rank, message in self._ranks.messages():
                self._heed(rank, message)
            if self._deaths or any(ended.error is not None for ended in self._ends.values()):
                deadline = min(deadline, time.monotonic() + _GRACE_S)
        self._ranks.dismiss(self._ends)

    def result(self) -> dict[str, float]:
        """Return what rank 0 returned. Raise the error that ended the trial. Call it once the processes have ended."""
        if self._error is not None:
            raise self._error
        if self._deaths:
            codes = self._ranks.exit_codes
            rank = min(self._deaths, key=lambda rank: codes.get(rank) == -signal.SIGTERM)  # the launcher sends SIGTERM
            raise FunctionFailed(self._call, f"rank {rank} {_death(codes.get(rank))}")
        for rank, ended in self._ends.items():
            if (error := ended.error) is not None:
                if rank > 0 and isinstance(error, FunctionFailed):
                    error = FunctionFailed(error.call, f"rank {rank}: {error.reason}")
                raise error from RuntimeError(ended.trace)
        if self._ranks.problem is not None:
            raise FunctionFailed(self._call, f"cannot be launched: {one_line(self._ranks.problem)}")
        if 0 not in self._ends:
            raise FunctionFailed(self._call, "its processes ended before the function did")
        return self._ends[0].metrics

    def _heed(self, rank: int, message: Call | Ended | None) -> None:
        if message is None:
            if rank not in self._ends:
                self._deaths.append(rank)
        elif isinstance(message, Ended):
            self._ends[rank] = message
        elif message.method == "report":
            self._waiting[rank] = message.arguments["epoch"]
            if rank == 0:
                self._report(message)
        else:
            self._ranks.answer(rank, self._answer(message))
        self._answer_reports()

    def _report(self, call: Call) -> None:
        """Report the metrics of rank 0, if there are new ones."""
        answer = (self._answer(call) if call.arguments["metrics"] else None) or Flags(
            self._trial.should_save, self._trial.should_stop
        )
        self._reports.append((call.arguments["epoch"], answer))

    def _answer_reports(self) -> None:
        """Answer all reports whose result is known. A rank's n-th report gets the answer to the n-th of rank 0."""
        for rank, epoch in [*self._waiting.items()]:
            remedy = "report the same epochs in every rank"
            if self._n_answered[rank] < len(self._reports):
                of_first, answer = self._reports[self._n_answered[rank]]
                if epoch != of_first:
                    problem = f"reported epoch {epoch} where rank 0 reported epoch {of_first}; {remedy}"
                    answer = Raised(FunctionFailed(self._call, problem))
            elif 0 in self._ends:
                problem = f"reported epoch {epoch}, which rank 0 did not; {remedy}"
                answer = Raised(FunctionFailed(self._call, problem))
            else:
                continue
            del self._waiting[rank]
            self._n_answered[rank] += 1
            self._ranks.answer(rank, answer)

    def _answer(self, call: Call) -> Any:
        """Call the trial. Return what it returns, or what it raised."""
        from sweep.training import checkpoint

        arguments = call.arguments
        try:
            if call.method == "restore":
                return self._restored()
            if call.method == "save":
                self._state, arguments = None, arguments | {"state": checkpoint.loads(arguments["state"])}
            return getattr(self._trial, call.method)(**arguments)
        except (Exception, Interrupted) as error:
            self._error = function_problem(self._call, error)
            if self._error is not error:
                self._error.__cause__ = error
            return Raised(self._error)

    def _restored(self) -> bytes | None:
        """Return the last checkpoint, which is read once for all ranks."""
        from sweep.training import checkpoint

        if self._state is None:
            state = self._trial.restore()
            self._state = (None if state is None else checkpoint.dumps(state),)
        return self._state[0]


def _death(code: int | None) -> str:
    """Return how a process died, by its exit code."""
    if code is None or code >= 0:
        return f"ended with exit status {code or 0} in the middle of its training"
    return f"was killed by {signal.Signals(-code).name}"
