"""Decide when a study has too many failed trials."""

_CANARY = 3  # if this many trials finish and all fail, the rest would fail too
_ENOUGH = 10  # finished trials; with fewer, a failure rate means little


def too_many_failures(n_finished: int, n_failed: int, max_failure_rate: float, is_complete: bool = False) -> bool:
    """Return True if so many trials have failed that the study should stop.

    Args:
        n_finished: how many trials are finished.
        n_failed: how many of these failed.
        max_failure_rate: the largest share of failed trials that is accepted; 1 accepts any.
        is_complete: True if no more trials will follow. Then the rate counts however few trials there are.
    """
    if not n_failed or max_failure_rate == 1:
        return False
    is_enough = is_complete or n_finished >= _ENOUGH
    return n_failed == n_finished >= _CANARY or (is_enough and n_failed / n_finished > max_failure_rate)
