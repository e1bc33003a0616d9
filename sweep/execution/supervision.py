"""Run a worker in a process of its own, which is killed and replaced if a trial takes too long.

A training function of the user's own may never return, even inside C code, where nothing in its process can end it. So
with `hydra.sweeper.trial_timeout`, the process that a launcher starts trains nothing: it starts a child that does. The
child sends a message when a trial begins and when it ends. If none comes in time, the supervisor notes in the storage
what is wrong with the trial, kills the child and the processes that it forked, and starts another. The next worker
finds a trial whose worker is dead, with a problem, and stores it as failed.

A trial that reports fails by itself, at its first report after the timeout (`WorkerSession.reporter`).
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from time import monotonic, sleep
from typing import Any, Self

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import configure_log, setup_globals
from omegaconf import OmegaConf
from optuna.exceptions import UpdateFinishedTrialError

from sweep.config.guard import LOGGING_CLASSES
from sweep.execution.plan import WorkerPlan
from sweep.execution.queue import PROBLEM
from sweep.execution.session import Announce
from sweep.storage.quiet import quiet_optuna
from sweep.storage.retry import RetryPolicy
from sweep.storage.storage import open_storage
from sweep.utils import late_compiler
from sweep.utils.command_line import secure_streams
from sweep.utils.errors import TrialTimedOut
from sweep.utils.parent import outliving
from sweep.utils.signals import StopRequest, stop_on_signal

Work = Callable[[Announce], int | None]  # trains trials, and returns a signal's number

_GRACE_S = 5.0  # a trial that reports fails by itself in this time; it is gentler than killing its process
_POLL_S = 0.2
_START = "import sys; sys.path[:] = {path!r}; from sweep.execution.supervision import main; main({fd}, {parent})"


def supervise(plan: WorkerPlan, work: Work) -> int | None:
    """Call `work` in a child process, and again in another as long as a trial takes too long.

    Args:
        plan: the worker's plan.
        work: what to call. It is pickled by value if the child cannot import it.

    Returns:
        What `work` returns.

    Raises:
        Exception: what `work` raises.
        RuntimeError: the child died of something else.
    """
    is_child, timeout_s = os.getppid() == plan.launcher_pid, plan.settings.trial_timeout
    assert timeout_s is not None
    with stop_on_signal() as stop:
        while True:
            with _Child(work, timeout_s) as child:
                while child.works():
                    if is_child and os.getppid() != plan.launcher_pid:
                        os._exit(0)  # the study's command has died; the child notices that it is an orphan, and stops
                    child.pass_on(stop)
                    if child.is_late:
                        break
                else:
                    return child.result(stop)
                assert child.trial is not None
                _note_problem(plan, child.trial, str(TrialTimedOut(timeout_s)))


def _note_problem(plan: WorkerPlan, trial: int, problem: str) -> None:
    """Store why a trial fails. The next worker that claims it stores that it has failed."""
    with quiet_optuna(), suppress(UpdateFinishedTrialError):  # it has ended meanwhile
        patiently = RetryPolicy(plan.settings.storage)
        storage = patiently(lambda: open_storage(plan.settings.storage, plan.folder))
        patiently(lambda: storage.set_trial_user_attr(trial, PROBLEM, problem))


class _Child:
    """A child process that works. Use it in a `with` statement: leaving it kills the process, if it still lives.

    Attributes:
        trial: the id of the trial that it trains; None if it trains none.
    """

    def __init__(self, work: Work, timeout_s: float) -> None:
        """Start the process. See `supervise`."""
        self.trial: int | None = None
        self._result: tuple[str, Any] | None = None
        self._is_silent = False  # no more messages will come
        self._since, self._limit_s, self._was_asked = monotonic(), timeout_s + _GRACE_S, False
        self._messages, writer = Pipe(duplex=False)
        with writer:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START.format(path=sys.path, fd=writer.fileno(), parent=os.getpid())],
                stdin=subprocess.PIPE,
                pass_fds=[writer.fileno()],
                start_new_session=True,  # so that what it forks can be killed with it
            )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as stdin:  # if it has died, `result` says so
            stdin.write(cloudpickle.dumps((Singleton.get_state(), work, timeout_s)))

    def works(self) -> bool:
        """Read the messages that have come, and wait a moment. Return False once the process has ended.

        A process that has sent its result may be kept for ever, by threads and processes that a function left. So it
        counts as ended after the time that a trial may take.
        """
        has_ended = self._process.poll() is not None  # looked up first, so that its last message is read
        if self._is_silent and not has_ended:
            sleep(_POLL_S)
            return monotonic() - self._since < self._limit_s
        try:
            while not self._is_silent and self._messages.poll(0 if has_ended else _POLL_S):
                kind, value = self._messages.recv()
                self._since = monotonic()
                if kind == "trial":
                    self.trial = value
                else:
                    self._result, self._is_silent = (kind, value), True
        except EOFError:
            self._is_silent = True
        return not has_ended

    @property
    def is_late(self) -> bool:
        """Whether it has trained the same trial for too long."""
        return self.trial is not None and monotonic() - self._since > self._limit_s

    def pass_on(self, stop: StopRequest) -> None:
        """Pass a request to stop on to the process, once."""
        if stop.signum is not None and not self._was_asked:
            self._was_asked = True
            self._process.terminate()

    def result(self, stop: StopRequest) -> int | None:
        """Return what the work returned, or raise what it raised, once it no longer works."""
        kind, value = self._result or ("died", None)
        if isinstance(value, Exception):
            raise value
        if stop.signum is not None:
            return stop.signum
        if kind == "died":
            raise RuntimeError(f"a worker's process ended with exit status {self._process.returncode}")
        return value

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._messages.close()


def main(fd: int, parent: int) -> None:
    """Work, in a child process. The work comes from the standard input.

    Args:
        fd: the file descriptor to which messages are sent.
        parent: the id of the supervisor's process.
    """
    secure_streams()
    late_compiler.postpone()
    setup_globals()
    with Connection(fd, readable=False) as messages:
        state, work, timeout_s = cloudpickle.load(sys.stdin.buffer)
        threading.Thread(target=_end_after, args=(parent, timeout_s + _GRACE_S), daemon=True).start()
        Singleton.set_state(state)
        hydra: Any = HydraConfig.instance().cfg and HydraConfig.get()
        if hydra is not None and not OmegaConf.is_missing(hydra.runtime, "output_dir"):  # the worker is a job
            configure_log(hydra.job_logging, hydra.verbose, execution_whitelist=LOGGING_CLASSES[:1])
        result: tuple[str, Any]
        try:
            with quiet_optuna(), outliving(parent):
                result = "returned", work(lambda trial: _send(messages, "trial", trial))
        except Exception as error:
            result = "raised", error
        _send(messages, *result)


def _send(messages: Connection, kind: str, value: Any) -> None:
    """Send a message, unless the supervisor has died. Its trial then ends as it would without."""
    with suppress(OSError):
        messages.send((kind, value))


def _end_after(parent: int, limit_s: float) -> None:
    """Kill this process, and those that it forked, if it still works that long after its supervisor has died."""
    while os.getppid() == parent:
        sleep(1)
    sleep(limit_s)
    os.killpg(0, signal.SIGKILL)
