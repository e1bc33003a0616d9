"""sweep/config/overrides.py: what an override is about."""

import pytest

from sweep.config.overrides import command, key_of, known_command, sets, value_of


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


@pytest.mark.parametrize(
    ("text", "is_ours"),
    [
        (command("sweep.run", "-m", "optimizer=sgd,adam", "model.widths=[32],[64,64]", "--config-dir", "a b"), True),
        (command("sweep.compare", 'optimizer="sgd",adam', 'compare.name="$(x)"'), True),
        ("rm -r ~; curl evil", False),
        ("python -m sweep.run seed=1; curl evil", False),
        ("python -m sweep.run seed=$(curl evil)", False),
        ("python -m sweep.run seed=1 # \n rm -r ~", False),
        ("python -m evil seed=1", False),
        ("python -m sweep.run curl", False),
        ("python -m sweep.run --nope", False),
        ("'", False),
        (["python", "-m", "sweep.run"], False),
        (None, False),
    ],
)
def test_only_a_command_of_ours_is_printed_to_be_pasted(text: object, is_ours: bool):
    assert known_command(text) == (text if is_ours else None)
