"""What a comparison is judged by: costs of independent runs, of which less is better, infinite for a run that failed.

Pure functions of arrays, on scipy. Every random one takes its generator.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import gammaln

Array = NDArray[np.float64]
N_RESAMPLES = 4000
_HUGE = 1e100  # stands for an infinite cost where means are taken


class Interval(NamedTuple):
    low: float
    high: float


class Pair(NamedTuple):
    """One contender against another on shared seeds.

    p: of the signed-rank test, before Holm. effect: matched-pairs rank-biserial correlation, 1 where the first is
    better on every seed, -1 where the second is. improvement: probability that a run of the first is better than one of
    the second, with its interval.
    """

    p: float
    effect: float
    improvement: float
    interval: Interval


def iqm(costs: ArrayLike, axis: int = -1) -> Array:
    """The interquartile mean: the mean of the middle half (Agarwal et al. 2021)."""
    middle = stats.trim_mean(np.minimum(costs, _HUGE), 0.25, axis=axis)
    return np.where(middle > _HUGE / 1e6, np.inf, middle)


def median(costs: ArrayLike, axis: int = -1) -> Array:
    """An infinite cost beside the middle makes it infinite."""
    middle = np.median(np.minimum(costs, _HUGE), axis=axis)
    return np.where(middle > _HUGE / 1e6, np.inf, middle)


def interval(
    costs: Array, rng: np.random.Generator, statistic: Callable[..., Array] = iqm, confidence: float = 0.95
) -> Interval:
    """Bootstrap interval of a statistic of `costs`, (n,): percentiles, expanded for small n (Hesterberg 2015)."""
    if np.ptp(np.minimum(costs, _HUGE)) == 0:
        return Interval(float(costs[0]), float(costs[0]))
    return _bootstrap(
        (np.minimum(costs, _HUGE),), lambda x, axis: np.minimum(statistic(x, axis), _HUGE), rng, confidence
    )


def signed_rank(costs: Array, others: Array) -> float:
    """p of the two-sided Wilcoxon signed-rank test of paired costs, (n,): exact for n <= 50 without ties.

    1 where all pairs are equal.
    """
    differences = _differences(costs, others)
    if not differences.any():
        return 1.0
    return float(np.asarray(stats.wilcoxon(differences))[1])


def rank_biserial(costs: Array, others: Array) -> float:
    """Effect size of the signed-rank test (Kerby 2014): share of the ranks for the first minus that for the second."""
    differences = _differences(costs, others)
    differences = differences[differences != 0]
    if not len(differences):
        return 0.0
    ranks = stats.rankdata(np.abs(differences))
    return float((ranks[differences < 0].sum() - ranks[differences > 0].sum()) / ranks.sum())


def improvement(costs: Array, others: Array) -> Array:
    """Probability that one of `costs`, (..., n), is below one of `others`, (..., m); ties count half (Agarwal et al.
    2021; the Mann-Whitney U statistic over n m)."""
    below = costs[..., :, None] < others[..., None, :]
    equal = costs[..., :, None] == others[..., None, :]
    return below.mean((-1, -2)) + 0.5 * equal.mean((-1, -2))


def compare(costs: Array, others: Array, rng: np.random.Generator) -> Pair:
    """Both (n,), on the same seeds."""
    probability = float(improvement(costs, others))
    least = 0.025 ** (1 / len(costs))  # where all pairs agree, so do all resamples (Clopper & Pearson 1934)
    if probability in (0, 1):
        around = Interval(least, 1.0) if probability else Interval(0.0, 1 - least)
    elif np.all(costs == others):
        around = Interval(probability, probability)
    else:  # a pair stays together
        around = _bootstrap((costs, others), lambda x, y, axis: improvement(x, y), rng)
    return Pair(signed_rank(costs, others), rank_biserial(costs, others), probability, around)


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm 1979): those up to a level are rejected at it, all errors together."""
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1.0).tolist()


def smallest_p(n_pairs: int, n_tests: int) -> float:
    """What Holm makes of the smallest p that the signed-rank test of `n_pairs` pairs can come to."""
    return min(1.0, 2.0 ** (1 - n_pairs) * n_tests)


def best_of(costs: ArrayLike, k: ArrayLike) -> Array:
    """Expected lowest of `k` of the independent `costs`, (..., n), drawn without replacement: unbiased, unlike the
    estimate with replacement of Dodge et al. 2019 (Tang et al. 2020). k: (m,), at most n. Returns (..., m)."""
    ordered, k = np.sort(costs, axis=-1), np.asarray(k)
    n = ordered.shape[-1]
    left = n - 1 - np.arange(n)  # costs above each
    with np.errstate(invalid="ignore"):
        log_share = _log_choose(left[None, :], k[:, None] - 1) - _log_choose(np.array(n), k)[:, None]
    return ordered @ np.exp(log_share).T


def best_of_interval(costs: Array, k: ArrayLike, rng: np.random.Generator) -> Array:
    """95 % bootstrap interval of `best_of`, (2, m)."""
    n = len(costs)
    drawn = costs[rng.integers(n, size=(N_RESAMPLES // 4, n))]
    return np.percentile(best_of(drawn, k), [2.5, 97.5], axis=0)


def profile(ratios: Array, factors: ArrayLike) -> Array:
    """Share of runs whose cost is within each factor of the best contender's (Dolan & Moré 2002). ratios: any shape."""
    return (np.ravel(ratios)[:, None] <= np.asarray(factors)[None, :]).mean(0)


def chance_of(n_hits: int, n: int, share: float) -> float:
    """Of so many hits or more in `n` independent draws that hit with probability `share`."""
    return float(stats.binom.sf(n_hits - 1, n, share))


def _differences(costs: Array, others: Array) -> Array:
    """Two infinite costs are equal."""
    return np.where(costs == others, 0.0, np.minimum(costs, _HUGE) - np.minimum(others, _HUGE))


def _bootstrap(
    samples: tuple[Array, ...], statistic: Callable[..., Array], rng: np.random.Generator, confidence: float = 0.95
) -> Interval:
    """The plain percentiles of n samples are too narrow, by sqrt((n - 1) / n) and for taking the normal distribution in
    the place of Student's; other percentiles make up for it (Hesterberg 2015)."""
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
    """log of n over k, -inf where k is more than n."""
    possible = k <= n
    k = np.where(possible, k, 0)
    return np.where(possible, gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1), -np.inf)
