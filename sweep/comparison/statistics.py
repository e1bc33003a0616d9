"""The statistics of a comparison. They work on the costs of independent runs: less is better, infinite is a failed run.

These are pure functions of arrays, based on scipy. Functions that draw random numbers take a generator.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import gammaln

Array = NDArray[np.float64]
N_RESAMPLES = 4000
_HUGE = 1e100  # replaces an infinite cost in means; a mean above _HUGE / 1e6 counts as infinite again


class Interval(NamedTuple):
    """The lower and the upper end of an interval."""

    low: float
    high: float


class Pair(NamedTuple):
    """The first of two contenders against the second, on the same seeds.

    Attributes:
        p: of the signed-rank test, before Holm's adjustment.
        effect: the matched-pairs rank-biserial correlation, in [-1, 1]. It is 1 if the first is better on every seed.
        improvement: the probability that a run of the first is better than a run of the second.
        interval: the 95 % interval of `improvement`.
    """

    p: float
    effect: float
    improvement: float
    interval: Interval


def iqm(costs: ArrayLike, axis: int = -1) -> Array:
    """Return the interquartile mean, the mean of the middle half (Agarwal et al. 2021). Reduces `axis`.

    It is infinite if the middle half has an infinite cost.
    """
    middle = stats.trim_mean(np.minimum(costs, _HUGE), 0.25, axis=axis)
    return np.where(middle > _HUGE / 1e6, np.inf, middle)


def median(costs: ArrayLike, axis: int = -1) -> Array:
    """Return the median. Reduces `axis`. It is infinite if one of the two middle costs is infinite."""
    middle = np.median(np.minimum(costs, _HUGE), axis=axis)
    return np.where(middle > _HUGE / 1e6, np.inf, middle)


def interval(
    costs: Array, rng: np.random.Generator, statistic: Callable[..., Array] = iqm, confidence: float = 0.95
) -> Interval:
    """Return a bootstrap interval of a statistic, with percentiles expanded for small n (Hesterberg 2015).

    Args:
        costs: shape (n,), with n >= 2.
        rng: draws the resamples.
        statistic: takes the costs and the axis to reduce.
        confidence: the probability that the interval should cover.
    """
    if np.ptp(np.minimum(costs, _HUGE)) == 0:
        return Interval(float(costs[0]), float(costs[0]))
    return _bootstrap(
        (np.minimum(costs, _HUGE),), lambda x, axis: np.minimum(statistic(x, axis), _HUGE), rng, confidence
    )


def signed_rank(costs: Array, others: Array) -> float:
    """Return p of the two-sided signed-rank test (Wilcoxon 1945) of paired costs, each of shape (n,).

    It is exact for n <= 50 without ties, and 1 if all pairs are equal.
    """
    differences = _differences(costs, others)
    if not differences.any():
        return 1.0
    return float(np.asarray(stats.wilcoxon(differences))[1])


def rank_biserial(costs: Array, others: Array) -> float:
    """Return the effect size of the signed-rank test (Kerby 2014), in [-1, 1], for paired costs of shape (n,).

    The absolute differences are ranked. The effect is the share of the rank sum in favour of `costs` minus the share in
    favour of `others`. Equal pairs are left out.
    """
    differences = _differences(costs, others)
    differences = differences[differences != 0]
    if not len(differences):
        return 0.0
    ranks = stats.rankdata(np.abs(differences))
    return float((ranks[differences < 0].sum() - ranks[differences > 0].sum()) / ranks.sum())


def improvement(costs: Array, others: Array) -> Array:
    """Return the probability that one of `costs` is below one of `others` (Agarwal et al. 2021). Ties count half.

    This is the Mann-Whitney U statistic divided by n m.

    Args:
        costs: shape (..., n).
        others: shape (..., m).

    Returns:
        Shape (...).
    """
    below = costs[..., :, None] < others[..., None, :]
    equal = costs[..., :, None] == others[..., None, :]
    return below.mean((-1, -2)) + 0.5 * equal.mean((-1, -2))


def compare(costs: Array, others: Array, rng: np.random.Generator) -> Pair:
    """Compare two contenders by their costs on the same seeds, each of shape (n,)."""
    probability = float(improvement(costs, others))
    # If one is always better, all resamples are alike and a bootstrap has no width. The exact interval for n successes
    # in n draws is [0.025^(1/n), 1] (Clopper & Pearson 1934).
    least = 0.025 ** (1 / len(costs))
    if probability in (0, 1):
        around = Interval(least, 1.0) if probability else Interval(0.0, 1 - least)
    elif np.all(costs == others):
        around = Interval(probability, probability)
    else:  # both costs of a seed are resampled together
        around = _bootstrap((costs, others), lambda x, y, axis: improvement(x, y), rng)
    return Pair(signed_rank(costs, others), rank_biserial(costs, others), probability, around)


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p values for multiple tests (Holm 1979), in the given order.

    If you reject every hypothesis whose adjusted p is below a level, the probability of any false rejection is at most
    that level. With p sorted in ascending order, from p_0 to p_(m-1), the adjusted p_i is the maximum over j <= i of
    (m - j) p_j, at most 1.
    """
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1.0).tolist()


def smallest_p(n_pairs: int, n_tests: int) -> float:
    """Return the smallest adjusted p that is possible with `n_tests` signed-rank tests of `n_pairs` pairs each.

    If all differences have the same sign, the exact two-sided p is 2 / 2^n_pairs.
    """
    return min(1.0, 2.0 ** (1 - n_pairs) * n_tests)


def best_of(costs: ArrayLike, k: ArrayLike) -> Array:
    """Return the expected lowest of `k` costs that are drawn without replacement (Tang et al. 2020).

    This estimate is unbiased. The one with replacement (Dodge et al. 2019) is not. With the costs sorted in ascending
    order, from x_0 to x_(n-1), it is the sum over i of x_i C(n - 1 - i, k - 1) / C(n, k): the lowest of k is x_i if the
    k - 1 others are among the n - 1 - i costs above it.

    Args:
        costs: independent costs, shape (..., n).
        k: numbers of draws, shape (m,), each from 1 to n.

    Returns:
        Shape (..., m).
    """
    ordered, k = np.sort(costs, axis=-1), np.asarray(k)
    n = ordered.shape[-1]
    left = n - 1 - np.arange(n)  # the number of costs above each
    with np.errstate(invalid="ignore"):
        log_share = _log_choose(left[None, :], k[:, None] - 1) - _log_choose(np.array(n), k)[:, None]
    return ordered @ np.exp(log_share).T


def best_of_interval(costs: Array, k: ArrayLike, rng: np.random.Generator) -> Array:
    """Return the 95 % bootstrap interval of `best_of` for costs of shape (n,): shape (2, m)."""
    n = len(costs)
    drawn = costs[rng.integers(n, size=(N_RESAMPLES // 4, n))]
    return np.percentile(best_of(drawn, k), [2.5, 97.5], axis=0)


def profile(ratios: Array, factors: ArrayLike) -> Array:
    """Return a performance profile (Dolan & Moré 2002): the share of runs whose ratio is at most each factor.

    Args:
        ratios: costs divided by those of the best contender, of any shape.
        factors: shape (m,).

    Returns:
        Shape (m,).
    """
    return (np.ravel(ratios)[:, None] <= np.asarray(factors)[None, :]).mean(0)


def chance_of(n_hits: int, n: int, share: float) -> float:
    """Return the probability of at least `n_hits` hits in `n` independent draws. `share` is that of a hit."""
    return float(stats.binom.sf(n_hits - 1, n, share))


def _differences(costs: Array, others: Array) -> Array:
    """Return the differences of paired costs. Two infinite costs count as equal."""
    return np.where(costs == others, 0.0, np.minimum(costs, _HUGE) - np.minimum(others, _HUGE))


def _bootstrap(
    samples: tuple[Array, ...], statistic: Callable[..., Array], rng: np.random.Generator, confidence: float = 0.95
) -> Interval:
    """Return the expanded percentile interval of a bootstrap (Hesterberg 2015).

    The plain percentile interval of n samples is too narrow by a factor sqrt((n - 1) / n), and it uses the normal
    distribution instead of Student's t. Both are corrected by taking the percentiles at tail and 1 - tail, with
    tail = Phi(sqrt(n / (n - 1)) t(alpha / 2, n - 1)) and alpha = 1 - confidence.
    """
    n = len(samples[0])
    tail = float(stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 - confidence) / 2, n - 1)))
    found = stats.bootstrap(
        samples,
        statistic,
        n_resamples=N_RESAMPLES,
        confidence_level=1 - 2 * tail,
        method="percentile",
        paired=len(samples) > 1,
        vectorized=True,
        rng=rng,
    ).confidence_interval
    low, high = (np.inf if end > _HUGE / 1e6 else float(end) for end in found)
    return Interval(low, high)


def _log_choose(n: NDArray[np.int_], k: NDArray[np.int_]) -> Array:
    """Return the logarithm of the binomial coefficient C(n, k), -inf if k > n."""
    possible = k <= n
    k = np.where(possible, k, 0)
    return np.where(possible, gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1), -np.inf)
