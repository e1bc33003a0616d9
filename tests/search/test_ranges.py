"""sweep/search/ranges.py: a range as a person writes and reads it."""

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from sweep.search.ranges import contains, distribution_of, grid_of, n_values, on_step, parse_override, range_text
from sweep.utils.errors import ConfigError


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
    assert range_text(distribution) == words


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
    with pytest.raises(ConfigError, match="which is not a grid"):
        grid_of("k", distribution)


def test_a_range_contains_what_lies_on_its_step():
    assert [v for v in (1, 2, 3, 4, 7, True, 2.0, "2") if contains(IntDistribution(2, 6, step=2), v)] == [2, 4, 2.0]


@given(
    low=st.decimals(-1000, 1000, places=3),
    step=st.decimals("0.001", 50, places=3),
    n=st.integers(1, 30),
    data=st.data(),
)
def test_a_stepped_range_has_the_values_of_hydras_own(low: Decimal, step: Decimal, n: int, data: st.DataObject):
    override = parse_override(f"k=range({low},{low + n * step},step={step})", "k")
    values = list(override.sweep_iterator())
    distribution = distribution_of("k", override)
    assert grid_of("k", distribution) == values
    assert n_values(distribution) == len(values)
    assert all(contains(distribution, value) for value in values)
    if isinstance(distribution, CategoricalDistribution):
        return
    assert isinstance(distribution, FloatDistribution)
    assert distribution.step is not None
    i = data.draw(st.integers(0, len(values) - 1))
    assert on_step(distribution, distribution.low + i * distribution.step) == values[i]  # as samplers count
    assert not contains(distribution, distribution.low + (i + 0.01) * distribution.step)


@pytest.mark.parametrize(
    ("given", "values"), [("0.1,0.8", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]), ("10.0,10.3", [10.0, 10.1, 10.2])]
)
def test_a_stepped_range_stops_before_its_end(given: str, values: list[float]):
    assert grid_of("k", distribution_of("k", parse_override(f"k=range({given},step=0.1)", "k"))) == values


def test_steps_that_vanish_beside_the_values_are_refused():
    with pytest.raises(ConfigError, match="steps too fine"):
        distribution_of("k", parse_override("k=range(1000000.0,1000000.1,step=0.0001)", "k"))
