"""Statistics of comparisons, against scipy, enumeration and published values; and whether intervals hold the truth."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sweep.comparison import statistics

RNG_SEED = 7
SOME = np.array([3.1, 2.4, 5.0, 4.4, 2.9, 3.6, 4.1, 2.2])
OTHERS = np.array([3.9, 2.9, 4.8, 5.3, 4.0, 4.4, 4.3, 3.3])


def rng() -> np.random.Generator:
    return np.random.default_rng(RNG_SEED)


def test_the_interquartile_mean_is_the_mean_of_the_middle_half() -> None:
    assert statistics.iqm(np.array([100.0, 1, 2, 3, 4, 5, 6, -50])) == pytest.approx((2 + 3 + 4 + 5) / 4)


def test_diverged_runs_cost_the_mean_once_they_reach_the_middle() -> None:
    assert statistics.iqm([1.0, 2, 3, 4, 5, 6, math.inf, math.inf]) == pytest.approx(4.5)
    assert statistics.iqm([1.0, 2, 3, 4, 5, math.inf, math.inf, math.inf]) == math.inf
    assert statistics.median([1.0, 2, math.inf, math.inf]) == math.inf
    assert statistics.median([1.0, 2, 3, math.inf]) == 2.5


def test_the_signed_rank_test_is_exact() -> None:
    """p is the share of all assignments of signs whose rank sum is as far from the middle."""
    differences = SOME - OTHERS
    ranks = stats.rankdata(np.abs(differences))
    observed = abs(ranks[differences > 0].sum() - ranks.sum() / 2)
    sums = [np.dot(signs, ranks) for signs in itertools.product((0, 1), repeat=len(ranks))]
    as_far = np.mean([abs(total - ranks.sum() / 2) >= observed - 1e-9 for total in sums])
    assert statistics.signed_rank(SOME, OTHERS) == pytest.approx(as_far)


def test_runs_that_both_failed_or_are_equal_say_nothing() -> None:
    failed = np.array([1.0, math.inf, 2.0, math.inf])
    assert statistics.signed_rank(failed, failed) == 1.0
    assert statistics.rank_biserial(failed, failed) == 0.0
    assert statistics.compare(failed, failed, rng()).interval == (0.5, 0.5)


def test_a_run_that_failed_is_worse_than_any_that_did_not() -> None:
    better, worse = np.arange(1.0, 9), np.r_[np.arange(2.0, 6), [math.inf] * 4]
    pair = statistics.compare(better, worse, rng())
    assert pair.effect == 1.0
    assert pair.p == pytest.approx(2 / 2**8)


def test_the_effect_size_is_the_share_of_ranks_for_minus_that_against() -> None:
    """Kerby 2014. The smallest of eight differences is against: rank 1 of 36."""
    assert statistics.rank_biserial(np.zeros(8), np.array([2, 3, 4, 5, 6, 7, 8, -1.0])) == pytest.approx(34 / 36)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=9), st.lists(st.integers(0, 5), min_size=2, max_size=9))
def test_the_probability_of_improvement_is_mann_whitneys_u(first: list[int], second: list[int]) -> None:
    u = stats.mannwhitneyu(second, first).statistic
    found = statistics.improvement(np.array(first, float), np.array(second, float))
    assert found == pytest.approx(u / (len(first) * len(second)))


def test_the_probability_of_improvement_has_an_interval_where_all_pairs_agree() -> None:
    """Clopper and Pearson's for 20 of 20: 83.16 % to 100 %."""
    pair = statistics.compare(np.arange(20.0), np.arange(20.0) + 100, rng())
    exact = stats.binomtest(20, 20).proportion_ci(method="exact")
    assert pair.interval == pytest.approx((exact.low, 1.0))
    assert statistics.compare(np.arange(20.0) + 100, np.arange(20.0), rng()).interval == pytest.approx(
        (0, 1 - exact.low)
    )


def test_holms_adjustment_is_the_published_one() -> None:
    """Four p values of 0.01, 0.04, 0.03 and 0.005 become 0.03, 0.06, 0.06 and 0.02 (R's p.adjust)."""
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_the_smallest_p_is_what_the_tests_can_reach() -> None:
    p = [statistics.signed_rank(np.arange(6.0) + i / 10, np.arange(6.0) + 9 * np.arange(1, 7)) for i in range(3)]
    assert min(statistics.holm(p)) == pytest.approx(statistics.smallest_p(6, 3))


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_the_expected_best_is_the_mean_over_all_choices(k: int) -> None:
    costs = SOME[:6]
    every = [min(chosen) for chosen in itertools.combinations(costs, k)]
    assert statistics.best_of(costs, [k]) == pytest.approx([np.mean(every)])


def test_the_expected_best_is_unbiased() -> None:
    """Best of 4 uniform draws: 1/5, from samples of 10."""
    found = statistics.best_of(rng().uniform(size=(20_000, 10)), [4])
    assert found.mean() == pytest.approx(0.2, abs=4 * found.std() / math.sqrt(20_000))


def test_a_profile_is_the_share_within_each_factor() -> None:
    ratios = np.array([[1.0, 1.2], [3.0, math.inf]])
    assert statistics.profile(ratios, [0.9, 1.0, 2.0, 5.0]).tolist() == [0.0, 0.25, 0.5, 0.75]


SKEWED, NORMAL = stats.lognorm(1), stats.norm(0, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("law", "n"), [(NORMAL, 20), (SKEWED, 20), (NORMAL, 6)], ids=["normal", "skewed", "few"])
def test_a_95_percent_interval_of_the_iqm_holds_it_in_95_percent_of_samples(law, n: int) -> None:
    """Within three standard errors below, and not idly wide."""
    truth = law.expect(lambda x: x, lb=law.ppf(0.25), ub=law.ppf(0.75), conditional=True)
    n_samples, draw = 250, rng()
    held = 0
    for _ in range(n_samples):
        low, high = statistics.interval(law.rvs(n, random_state=draw), draw)
        held += low <= truth <= high
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / n_samples) <= held / n_samples <= 0.99


@pytest.mark.slow
def test_an_interval_of_the_probability_of_improvement_holds_it() -> None:
    """Of N(0, 1) against N(0.7, 1): the normal distribution's share below 0.7 / sqrt 2."""
    truth = stats.norm.cdf(0.7 / math.sqrt(2))
    n_samples, draw = 250, rng()
    held = 0
    for _ in range(n_samples):
        pair = statistics.compare(draw.normal(size=20), draw.normal(0.7, size=20), draw)
        held += pair.interval.low <= truth <= pair.interval.high
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / n_samples) <= held / n_samples <= 0.99
