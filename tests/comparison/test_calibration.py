"""Comparisons of an optimizer with itself, and with a handicapped self: the short form of a campaign."""

import pytest
from campaigns.calibrate_compare import Size, campaign, fewest, most

# As many seeds as the network has hidden units: a trace of the pack once took either for the other.
SMALL, LARGER = Size(n_seeds=8, n_trials=2), Size(n_seeds=14, n_trials=4)


@pytest.mark.slow
def test_an_optimizer_is_rarely_declared_different_from_itself() -> None:
    """The 99 % bound: 2 of 8 at the 5 % level."""
    assert (most(8), most(100)) == (2, 11)
    assert campaign(8, 0, SMALL, None, print) <= most(8)


@pytest.mark.slow
def test_a_handicapped_optimizer_is_found_out() -> None:
    """One epoch against twelve."""
    assert (fewest(4), fewest(100)) == (2, 90)
    assert campaign(4, 1, LARGER, 1, print) >= fewest(4)
