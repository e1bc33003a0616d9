"""Decide when a study has too many failed trials."""

from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

_CANARY = 3  # if this many trials finish and all fail, the rest would fail too
_ENOUGH = 10  # finished trials; with fewer, a failure rate means little


def too_many_failures(
    trials: Sequence[FrozenTrial], max_failure_rate: float, is_complete: bool = False
) -> FrozenTrial | None:
    """Return the first failed trial if so many have failed that the study should stop; otherwise None.

    Args:
        trials: the study's trials. Only finished ones count.
        max_failure_rate: the largest share of failed trials that is accepted; 1 accepts any.
        is_complete: True if no more trials will follow. Then the rate counts however few trials there are.
    """
    finished = [t for t in trials if t.state.is_finished()]
    failed = [t for t in finished if t.state == TrialState.FAIL]
    if not failed or max_failure_rate == 1:
        return None
    all_of_the_first = len(failed) == len(finished) >= _CANARY
    too_many = (is_complete or len(finished) >= _ENOUGH) and len(failed) / len(finished) > max_failure_rate
    return failed[0] if all_of_the_first or too_many else None
