"""Read from a run's journal whether the run ended its whole trial, and how."""

from collections.abc import Mapping

from optuna.trial import TrialState

from sweep.execution.queue import PROBLEM, STOPPED
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.utils.errors import TRACEBACK_HINT, Diverged, Pruned


class Ended(Exception):
    """The trial ended in an earlier attempt to run it: failed or pruned."""

    def __init__(self, state: TrialState, attrs: Mapping[str, str]) -> None:
        """Make the exception. `attrs` are user attributes to store with the trial in Optuna."""
        super().__init__(state, attrs)
        self.state, self.attrs = state, attrs


def is_pruned(problem: BaseException) -> bool:
    """Return True if the problem that ended a run prunes the whole trial. Its other runs are pruned with it.

    A run that diverged counts as pruned.
    """
    return isinstance(problem, Pruned | Diverged) or (isinstance(problem, Ended) and problem.state == TrialState.PRUNED)


def ended(run: RunFolder) -> Ended | None:
    """Return how the run ended the whole trial; None if it did not."""
    end = journal.last_end(run.journal)
    tags = {} if end is None else end["tags"]
    if tags.get("state") == "FAIL" or "diverged" in tags:
        problem = tags["error"].partition(": ")[2].removesuffix(TRACEBACK_HINT)  # the name of the exception comes first
        return Ended(TrialState[tags["state"]], {PROBLEM: problem})
    if tags.get("state") == "PRUNED":
        return Ended(TrialState.PRUNED, {STOPPED: f"pruned at epoch {tags['pruned.epoch']}"})
    return None
