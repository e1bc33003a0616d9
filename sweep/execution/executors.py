"""Choose the executor of a worker."""

from typing import Protocol

from sweep.execution.sequential import SequentialExecutor
from sweep.execution.session import WorkerSession


class Executor(Protocol):
    """The part of a worker that claims trials from the queue and trains them."""

    def run(self) -> int | None:
        """Train until no trial is left to claim, or a stop is requested.

        Returns:
            The number of the signal that stopped it; None if no signal did.
        """
        ...


def make_executor(session: WorkerSession) -> Executor:
    """Return the executor that `hydra.sweeper.pack` asks for."""
    sequential = SequentialExecutor(session)
    if session.settings.pack == 1 or session.composer.is_function:
        return sequential
    from sweep.execution.packed import PackedExecutor  # it imports torch

    return PackedExecutor(session, sequential)
