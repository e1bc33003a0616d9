"""One of the processes that train a trial together. torch's elastic launcher starts it (sweep/trial/launch.py).

It calls the training function with a trial that asks the study's worker, over a socket. Both ends trust each other: the
socket is in a folder that only this user can enter.
"""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Client
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sweep.utils import late_compiler
from sweep.utils.errors import Interrupted
from sweep.utils.signals import warning_signal

if TYPE_CHECKING:
    from sweep.config.schema import Config


@dataclass(frozen=True, kw_only=True)
class Start:
    """The first message that a rank receives.

    Attributes:
        config: the trial's config; `trainer.device` is cpu or cuda.
        number, params, folder, epoch: the trial's.
    """

    config: "Config"
    number: int | None
    params: Mapping[str, Any]
    folder: Path
    epoch: int


class Flags(NamedTuple):
    """What every rank receives after a report: whether to save the trial, and whether to stop it."""

    should_save: bool = False
    should_stop: bool = False


class Raised(NamedTuple):
    """The answer to a call of the trial that raised an error."""

    error: BaseException


class Ended(NamedTuple):
    """How a rank's function ended: what it returned, or its error with the traceback."""

    metrics: dict[str, float]
    error: BaseException | None = None
    trace: str = ""


class Call(NamedTuple):
    """A call of the trial, with its arguments by name. The worker answers each with a value or `Raised`."""

    method: str
    arguments: dict[str, Any]


class WorkerLink:
    """The connection to the worker. When it ends, this process kills itself; the worker's guard does so at any time."""

    def __init__(self, address: str, rank: int) -> None:
        """Connect, and say which rank and which process this is."""
        self._connection = Client(address, family="AF_UNIX")
        self.start: Start = self._answer_to((rank, os.getpid()))

    def call(self, method: str, **arguments: Any) -> Any:
        """Call a method of the worker's trial. Return its answer, or raise its error."""
        answer = self._answer_to(Call(method, arguments))
        if isinstance(answer, Raised):
            raise answer.error
        return answer

    def end(self, ended: Ended) -> None:
        """Say how the function ended, and wait until the worker dismisses all ranks."""
        self._answer_to(ended)

    def _answer_to(self, message: tuple[int, int] | Call | Ended) -> Any:
        try:
            self._connection.send(message)
            return self._connection.recv()
        except (EOFError, ConnectionError):
            os.kill(os.getpid(), signal.SIGKILL)


class RankTrial:
    """The trial as a rank's function sees it. It implements `sweep.Trial`.

    Rank 0 records, saves, and reports to the study. `report` is collective: each rank calls it for the same epochs, and
    all get the same answer. Of the other ranks, `CheckedTrial` passes on reports, saves and restores alone.
    """

    def __init__(self, link: WorkerLink, rank: int) -> None:
        self._link, self._rank = link, rank
        start = link.start
        self.number, self.params, self.folder, self.epoch = start.number, start.params, start.folder, start.epoch
        self._flags = Flags()

    @property
    def should_save(self) -> bool:
        """What the worker said after the last report, so that all ranks decide alike."""
        return self._flags.should_save

    @property
    def should_stop(self) -> bool:
        """What the worker said after the last report, so that all ranks decide alike."""
        return self._flags.should_stop

    def describe(self, *, dataset: Mapping[str, Any] | None = None, device: str | None = None) -> None:
        self._link.call("describe", dataset=dataset, device=device)

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Report the metrics of rank 0, and wait for the study's answer."""
        self._flags = self._link.call("report", epoch=epoch, metrics={**metrics})

    def log(self, metrics: Mapping[str, float | Sequence[float]], step: int | Sequence[int]) -> None:
        self._link.call("log", metrics={**metrics}, step=step)

    def save(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Save the state of rank 0."""
        from sweep.training import checkpoint

        stops, self._flags, self.epoch = self.should_stop, self._flags._replace(should_save=False), epoch
        if self._rank == 0:
            self._link.call("save", epoch=epoch, state=checkpoint.dumps(state))
        if stops:
            raise Interrupted(signal.SIGTERM)

    def restore(self) -> dict[str, Any] | None:
        """Return the state that rank 0 saved last."""
        from sweep.training import checkpoint

        data: bytes | None = self._link.call("restore")
        return None if data is None else checkpoint.loads(data)

    def finish(self, metrics: Mapping[str, float]) -> None:
        self._link.call("finish", metrics={**metrics})

    def log_artifact(self, path: Path) -> None:
        self._link.call("log_artifact", path=path.absolute())


def main(address: str) -> None:
    """Train as the rank that the launcher's environment variables name.

    address: of the worker's socket.
    """
    late_compiler.postpone()
    signal.signal(warning_signal(), signal.SIG_IGN)  # a batch system sends it to all processes; the worker heeds it
    rank = int(os.environ["RANK"])
    link = WorkerLink(address, rank)
    with ExitStack() as stack:
        ended = _trained(link, rank, stack)
        sys.stdout.flush()
        sys.stderr.flush()
        link.end(ended)  # the others may still need this rank's process group


def _trained(link: WorkerLink, rank: int, stack: ExitStack) -> Ended:
    """Train in a process group, which the stack leaves."""
    from sweep.trial.function import FunctionTraining, function_problem

    config = link.start.config
    try:
        device = stack.enter_context(_process_group(config.trainer.device))
        config = replace(config, trainer=replace(config.trainer, device=device))
        return Ended(FunctionTraining(config, rank=rank)(RankTrial(link, rank)))
    except BaseException as error:
        return Ended({}, function_problem(str(config.trainer.call), error), traceback.format_exc())


@contextmanager
def _process_group(kind: str) -> Iterator[str]:
    """Join torch's default process group: nccl for cuda, else gloo. Yield the name of the rank's device."""
    import torch
    from torch import distributed

    device = kind
    if kind == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    else:
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)  # all ranks are on this machine
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield device
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
