"""sweep/study/ranges.py: a range as a person writes and reads it."""

import math

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from sweep.errors import ConfigError
from sweep.study.ranges import contains, distribution_of, grid_of, in_words, n_values, parse_override


@pytest.mark.parametrize(
    ("distribution", "words"),
    [
        (FloatDistribution(1e-5, 1e-3, log=True), "1e-05 to 0.001, log"),
        (IntDistribution(2, 8, step=2), "2 to 8, step 2"),
        (IntDistribution(2, 8), "2 to 8"),
        (CategoricalDistribution(["sgd", "adam"]), "sgd, adam"),
    ],
)
def test_ranges_in_words(distribution: BaseDistribution, words: str):
    assert in_words(distribution) == words


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("range(2,9,step=3)", [2, 5, 8]),
        ("choice(a,b)", ["a", "b"]),
        ("interval(1,1)", [1.0]),
        ("int(interval(2,4))", [2, 3, 4]),
    ],
)
def test_a_range_of_few_values_is_counted_and_listed(text: str, values: list[object]):
    distribution = distribution_of("k", parse_override(f"k={text}", "k"))
    assert grid_of("k", distribution) == values
    assert n_values(distribution) == len(values)
    assert all(contains(distribution, value) for value in values)


@pytest.mark.parametrize("text", ["interval(0,1)", "tag(log, interval(1,9))", "int(tag(log, interval(1,9)))"])
def test_a_range_without_a_step_is_no_grid(text: str):
    distribution = distribution_of("k", parse_override(f"k={text}", "k"))
    assert n_values(distribution) == math.inf
    with pytest.raises(ConfigError, match="which is no grid"):
        grid_of("k", distribution)


def test_a_range_contains_what_lies_on_its_step():
    assert [v for v in (1, 2, 3, 4, 7, True, 2.0, "2") if contains(IntDistribution(2, 6, step=2), v)] == [2, 4, 2.0]
