"""sweep/search/conditions.py: what a condition may say, and that nothing else of it is run."""

import pytest
from omegaconf import OmegaConf

from sweep.search.conditions import NoCondition, holds, keys_in

CONFIG = {"a": {"lr": 0.1, "widths": [8, 16], "name": "mlp"}, "n": 3}


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("a.lr < 1 and not n == 4", True),
        ("a.name in 'mlp,linear'", True),
        ("max(a.widths) / a.widths[0] == 2 ** 1", True),
        ("log10(a.lr) > -0.5 or sum(a.widths) % 5 == 0", False),
        ("(1 if n > 2 else 0) + len(a.widths) - round(2.6) < 0", False),
        ("-n < abs(-1)", True),
        ("n in [1, 2 + 1] and a.name not in ('conv', 'linear')", True),
        ("a.widths == [8, 16] and sum([n, n]) == 6", True),
        ('a["lr"] > 1', False),
    ],
)
def test_a_condition_of_numbers_texts_and_functions_is_judged(condition: str, expected: bool):
    assert holds(condition, CONFIG) is expected
    assert holds(condition, OmegaConf.create(CONFIG)) is expected, "a searched list, for example, needs OmegaConf"


@pytest.mark.parametrize(
    "condition",
    [
        "'x'.zfill(3*10**9)",
        "9**9**9",
        "'x'*10**9",
        "'%1000000000d' % 1",
        "a.widths[7]",
        "a.widths * 1000000000",
        "[n] * 1000000000",
        "[1, x for x in a]",
        "max(*a.widths)",
        "a.lr if (lambda: 1)() else 0",
        "log(0)",
        "sqrt(-1)",
        "1 / 0",
        "round(1, -1000000000)",
        "a.lr.real",
        "a.name.upper()",
        "nothing.there",
        "a.there",
        "open('x')",
        "[x for x in a.widths]",
        "f'{n:>1000000000}'",
        "n = 4",
        "1; 2",
        "1 << 10",
        "a <",
        "a < 1",
        "",
        chr(0),
        "(" * 400 + "1" + ")" * 400,
        "1+" * 5000 + "1",
        "exp(1000)",
        "max()",
        "n" + ".a" * 499,
        "-" * 150 + "n",  # Python itself would take it
    ],
)
def test_whatever_else_it_says_is_no_condition(condition: str):
    with pytest.raises(NoCondition) as caught:
        holds(condition, CONFIG)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_is_no_condition():
    config = OmegaConf.create({"a": {"b": "???", "c": "${nowhere}"}})
    for condition in ('a["b"] > 1', "a.b > 1", "a.c > 1"):
        with pytest.raises(NoCondition):
            holds(condition, config)


@pytest.mark.parametrize(
    ("condition", "keys"),
    [
        ("model.n_layers >= 2 and not a", ["model.n_layers", "a"]),
        ("max(max, n) > model.widths[i]", ["max", "n", "model.widths", "i"]),
        ('model["n-layers"] > 2', ["model.n-layers"]),
        ("x in [a, b.c]", ["x", "a", "b.c"]),
        ("n" + ".a" * 499, ["n" + ".a" * 499]),
    ],
)
def test_the_keys_that_a_condition_reads(condition: str, keys: list[str]):
    assert sorted(keys_in(condition)) == sorted(keys)


def test_an_operator_that_conditions_lack_is_told_without_pythons_names():
    with pytest.raises(NoCondition, match=r"^it has an operator that conditions lack; choose from: \+ - \*"):
        holds("1 << 9 > 0", CONFIG)
