"""Which executor a worker uses."""

from typing import Protocol

from sweep.execution.sequential import SequentialExecutor
from sweep.execution.session import WorkerSession


class Executor(Protocol):
    """Takes trials from the queue and trains them."""

    def run(self) -> int | None:
        """Train until every trial is taken or done, or something says to stop. Return the signal that stopped it."""
        ...


def make_executor(session: WorkerSession) -> Executor:
    """Return the executor that `hydra.sweeper.pack` asks for."""
    sequential = SequentialExecutor(session)
    if session.settings.pack == 1:
        return sequential
    from sweep.execution.packed import PackedExecutor  # it imports torch

    return PackedExecutor(session, sequential)
