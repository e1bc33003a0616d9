"""When a study has seen enough failures."""

from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

_CANARY = 3  # if all of the first ones fail, so will the rest
_ENOUGH = 10  # finished trials, for a rate to mean something


def too_many_failures(
    trials: Sequence[FrozenTrial], max_failure_rate: float, is_complete: bool = False
) -> FrozenTrial | None:
    """The first failed trial, when so many of the finished ones have failed that the study should stop, or has failed.

    is_complete: whether there are no others to come.
    """
    finished = [t for t in trials if t.state.is_finished()]
    failed = [t for t in finished if t.state == TrialState.FAIL]
    if not failed or max_failure_rate == 1:
        return None
    all_of_the_first = len(failed) == len(finished) >= _CANARY
    too_many = (is_complete or len(finished) >= _ENOUGH) and len(failed) / len(finished) > max_failure_rate
    return failed[0] if all_of_the_first or too_many else None
