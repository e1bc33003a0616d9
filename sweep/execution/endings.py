"""How a run has ended its whole trial, read from the run's journal."""

from collections.abc import Mapping

from optuna.trial import TrialState

from sweep.execution.queue import PROBLEM, STOPPED
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.utils.errors import TRACEBACK_HINT, Diverged, Pruned


class Ended(Exception):
    """The trial has come to its end, and its run's journal knows how. attrs: what the study is to know of it."""

    def __init__(self, state: TrialState, attrs: Mapping[str, str]) -> None:
        super().__init__(state, attrs)
        self.state, self.attrs = state, attrs


def is_pruned(problem: BaseException) -> bool:
    """Whether what ended a run ends its trial early and well, so that the trial's other runs are over too."""
    return isinstance(problem, Pruned | Diverged) or (isinstance(problem, Ended) and problem.state == TrialState.PRUNED)


def ended(run: RunFolder) -> Ended | None:
    """How the run has ended the whole trial; None where it did not."""
    end = journal.last_end(run.journal)
    tags = {} if end is None else end["tags"]
    if tags.get("state") == "FAIL" or "diverged" in tags:
        problem = tags["error"].partition(": ")[2].removesuffix(TRACEBACK_HINT)  # behind the exception's name
        return Ended(TrialState[tags["state"]], {PROBLEM: problem})
    if tags.get("state") == "PRUNED":
        return Ended(TrialState.PRUNED, {STOPPED: f"pruned at epoch {tags['pruned.epoch']}"})
    return None
