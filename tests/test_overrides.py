"""sweep/config/overrides.py: what an override is about."""

import pytest

from sweep.config.overrides import key_of, sets, value_of


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("seed=1", "seed", "1"),
        ("+optimizer.a=b=c", "optimizer.a", "b=c"),
        ("++x={a:1}", "x", "{a:1}"),
        ("~scheduler", "scheduler", ""),
        ("~scheduler=null", "scheduler", "null"),
        ("data@other=table", "data@other", "table"),
    ],
)
def test_an_override_is_read_as_its_key_and_the_text_of_its_value(override: str, key: str, value: str):
    assert (key_of(override), value_of(override)) == (key, value)


@pytest.mark.parametrize("override", ["seed=1", "+seed=1", "++seed="])
def test_an_override_sets_its_key_however_it_is_added(override: str):
    assert sets(override, "seed")
    assert sets(override, "other", "seed")
    assert not sets(override, "see")
    assert not sets(override)


@pytest.mark.parametrize("override", ["~seed", "~seed=1", "seed.a=1", "seeds=1", "other=seed"])
def test_an_override_that_takes_a_key_away_or_is_of_another_does_not_set_it(override: str):
    assert not sets(override, "seed")
