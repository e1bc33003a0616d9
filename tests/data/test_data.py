import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from refusals import refusal

from sweep import Samples
from sweep.config.nodes import Split
from sweep.data import bundled
from sweep.data.noisy_sine import noisy_sine
from sweep.data.split import Part, Splits, divide
from sweep.data.table import table


def samples(**changes: Any) -> Samples:
    return Samples(**{"name": "s", "task": "regression", "x": [[1.0], [2.0]], "y": [3.0, 4.0], **changes})


# Samples


def test_samples_are_rows_and_columns_with_names():
    made = samples(x=[[1, 2], [3, 4], [5, 6]], y=[1, 2, 3], clean=[1, 2, 3])
    assert made.x.dtype == made.y.dtype == np.float64
    assert made.y.shape == (3, 1)
    assert made.clean is not None
    assert made.clean.shape == (3, 1)
    assert made.features == ("x0", "x1")
    assert (made.in_shape, made.out_features) == ((2,), 1)


def test_several_targets_are_several_outputs():
    assert samples(y=[[1.0, 2, 3], [4, 5, 6]]).out_features == 3


def test_classes_are_counted_from_their_names_or_else_from_the_indices():
    made = samples(task="classification", y=[0, 2])
    assert (made.classes, made.out_features, made.y.dtype) == (("0", "1", "2"), 3, np.int64)
    assert samples(task="classification", y=[0, 1], classes=("a", "b", "c")).out_features == 3


@pytest.mark.parametrize(
    ("changes", "key", "says"),
    [
        ({"task": "ranking"}, "data.task", "choose one of regression, classification"),
        ({"x": [["a"], ["b"]]}, "data", "not numbers"),
        ({"x": [[1.0], [2.0, 3.0]]}, "data", "not numbers"),
        ({"x": 3.0}, "data", "one row for each sample"),
        ({"x": [1.0, 2.0]}, "data", "a column for each feature"),
        ({"x": [[1.0], [np.nan]]}, "data", "not finite, in row 1"),
        ({"x": [[1e300], [1.0]]}, "data", "not finite, in row 0"),
        ({"x": [[1.0], [2.0], [3.0]]}, "data", "3 rows of inputs but 2 of targets"),
        ({"features": ("a", "b")}, "data.features", "names 2 columns"),
        ({"y": [1.0, -np.inf]}, "data.target", "not finite, in row 1"),
        ({"y": ["a", "b"]}, "data.target", "not numbers"),
        ({"y": [[[1.0]], [[2.0]]]}, "data.target", "(N, n_targets)"),
        ({"clean": [1.0]}, "data", "clean targets of shape (1, 1)"),
        ({"task": "classification", "y": [0, -1]}, "data.target", "from 0"),
        ({"task": "classification", "y": [0.5, 1.0]}, "data.target", "whole numbers"),
        ({"task": "classification", "y": ["a", "b"]}, "data.target", "whole numbers"),
        ({"task": "classification", "y": [[0], [1]]}, "data.target", "one column"),
        ({"task": "classification", "y": [0, 1], "classes": ("a",)}, "data.target", "class 1, but only 1 names"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict[str, Any], key: str, says: str):
    error = refusal(lambda: samples(**changes))
    assert error.key == key
    assert says in error.problem


# Noisy sine


def test_noisy_sine_is_a_sine_plus_noise_of_the_given_deviation():
    made = noisy_sine(n=20_000, noise=0.25, domain=[1.0, 5.0], seed=3)
    assert made.clean is not None
    assert_allclose(made.clean, np.sin(made.x), atol=1e-6)
    noise = made.y - made.clean
    assert noise.std() == pytest.approx(0.25, rel=0.03)
    assert noise.mean() == pytest.approx(0.0, abs=0.01)
    assert (np.abs(noise) < 0.25).mean() == pytest.approx(0.683, abs=0.02)  # normal, not uniform
    assert made.noise == 0.25
    assert (made.x.min(), made.x.max()) == pytest.approx((1.0, 5.0), abs=0.01)
    assert np.histogram(made.x, bins=4, range=(1, 5))[0] == pytest.approx(5000, rel=0.1)  # uniform over the domain


def test_noisy_sine_follows_its_seed():
    assert_array_equal(noisy_sine(n=50, seed=1).y, noisy_sine(n=50, seed=1).y)
    assert not np.array_equal(noisy_sine(n=50, seed=1).y, noisy_sine(n=50, seed=2).y)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("noise", 0.0),
        ("noise", -0.1),
        ("noise", np.nan),
        ("noise", np.inf),
        ("domain", [1.0, 1.0]),
        ("domain", [2.0, 1.0]),
        ("domain", [1.0]),
        ("domain", [1.0, 2.0, 3.0]),
        ("domain", [0.0, np.inf]),
        ("domain", [np.nan, 1.0]),
        ("seed", -1),
    ],
)
def test_noisy_sine_refuses_values_that_make_no_data(name: str, value: Any):
    assert refusal(lambda: noisy_sine(**{name: value})).key == f"data.{name}"


# Bundled sets


def test_digits_are_images_of_ten_classes():
    digits = bundled.digits()
    assert digits.x.shape == (1797, 1, 8, 8)
    assert (digits.task, digits.out_features) == ("classification", 10)
    zero, one = digits.x[digits.y == 0].mean(0)[0], digits.x[digits.y == 1].mean(0)[0]
    assert zero[3:5, 3:5].mean() < 3 < 12 < one[3:5, 3:5].mean()  # a zero is hollow, a one is not


def test_diabetes_is_a_regression_in_own_units():
    diabetes = bundled.diabetes()
    assert diabetes.x.shape == (442, 10)
    assert (diabetes.y.min(), diabetes.y.max()) == (25, 346)
    age = diabetes.x[:, diabetes.features.index("age")]
    assert 18 < age.min() < age.max() < 100


def test_breast_cancer_has_two_named_classes():
    cancer = bundled.breast_cancer()
    assert cancer.x.shape == (569, 30)
    assert cancer.classes == ("malignant", "benign")
    assert np.bincount(cancer.y).tolist() == [212, 357]
    assert cancer.features[0] == "mean radius"


# Tables

FRAME = pd.DataFrame(
    {"a": [1.0, 2.0, 4.0], "b": [0, 5, 1], "kind": ["u", "w", "u"], "y": [10.0, 20.0, 40.0], "z": [1, 2, 2]}
)
NUMBERS = FRAME.drop(columns="kind")


@pytest.fixture(params=["csv", "parquet", "pq"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[pd.DataFrame], str]:
    """Writes a frame in the format under test and returns its path."""

    def write(frame: pd.DataFrame) -> str:
        path = tmp_path / f"mine.{request.param}"
        if request.param == "csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_parquet(path)
        return str(path)

    return write


def test_a_table_takes_all_columns_but_the_target(save):
    made = table(save(NUMBERS), target="y")
    assert made.features == ("a", "b", "z")
    assert_array_equal(made.x, [[1, 0, 1], [2, 5, 2], [4, 1, 2]])
    assert_array_equal(made.y, [[10], [20], [40]])
    assert (made.task, made.name) == ("regression", "mine")


def test_a_table_takes_the_named_features_in_their_order(save):
    made = table(save(FRAME), target="y", features=["b", "a"])
    assert made.features == ("b", "a")
    assert_array_equal(made.x, [[0, 1], [5, 2], [1, 4]])


def test_a_table_may_have_several_targets(save):
    made = table(save(NUMBERS), target=["z", "y"])
    assert_array_equal(made.y, [[1, 10], [2, 20], [2, 40]])
    assert made.features == ("a", "b")
    assert made.out_features == 2


def test_classes_may_be_names(save):
    made = table(save(FRAME), target="kind", task="classification")
    assert made.classes == ("u", "w")
    assert made.y.tolist() == [0, 1, 0]


def test_classes_may_be_any_numbers(save):
    made = table(save(NUMBERS.assign(y=[10, 9, 10])), target="y", task="classification")
    assert made.classes == ("9", "10")  # in the order of numbers
    assert made.y.tolist() == [1, 0, 1]


def test_classes_may_be_true_and_false(save):
    made = table(save(NUMBERS.assign(y=[True, False, True])), target="y", task="classification")
    assert (made.classes, made.y.tolist()) == (("False", "True"), [1, 0, 1])


def test_columns_of_a_table_may_have_numbers_for_names(tmp_path: Path):
    pd.DataFrame({0: [1.0, 2.0], 1: [3.0, 4.0]}).to_parquet(tmp_path / "t.parquet")
    made = table(str(tmp_path / "t.parquet"), target="1")
    assert (made.features, made.y.tolist()) == (("0",), [[3.0], [4.0]])


@pytest.mark.parametrize(
    ("changes", "arguments", "key", "says"),
    [
        ({}, {"target": "why"}, "data.target", "no column 'why'; the columns are: a, b, y, z"),
        ({}, {"target": []}, "data.target", "is empty"),
        ({}, {"features": ["a", "c"]}, "data.features", "no column 'c'; the columns are: a, b, y, z"),
        ({}, {"features": []}, "data.features", "choose from: a, b, y, z"),
        ({}, {"features": ["a", "y"]}, "data.features", "'y' is a target too"),
        ({}, {"task": "ranking"}, "data.task", "choose one of regression, classification"),
        ({}, {"target": ["y", "z"], "task": "classification"}, "data.target", "takes one column"),
        ({"b": [0.0, None, 1.0]}, {}, "data.features", "<2>, column 'b' is empty or NaN"),
        ({"b": ["0", "1", "five"]}, {}, "data.features", "<3>, column 'b' is 'five', not a finite float32 number"),
        ({"b": [np.inf, 1, 2]}, {}, "data.features", "<1>, column 'b' is 'inf'"),
        ({"b": [1.0, 1e300, 2.0]}, {}, "data.features", "<2>, column 'b' is '1e+300'"),
        ({"b": ["x", "1", "y"]}, {}, "data.features", "(2 such cells in the column)"),
        ({"b": [7, 7, 7]}, {}, "data.features", "column 'b' is constant (7); leave it out"),
        ({"y": [1.0, 2.0, None]}, {}, "data.target", "<3>, column 'y' is empty or NaN"),
        ({"y": ["1", "hi", "2"]}, {}, "data.target", "<2>, column 'y' is 'hi', not a finite float32 number; for"),
        ({"y": ["u", None, "w"]}, {"task": "classification"}, "data.target", "<2>, column 'y' is empty"),
        ({"y": ["u", "u", "u"]}, {"task": "classification"}, "data.target", "holds one class only, 'u'"),
    ],
)
def test_a_table_that_cannot_be_used_names_the_place(
    save, changes: dict[str, Any], arguments: dict[str, Any], key: str, says: str
):
    path = save(NUMBERS.assign(**changes))
    error = refusal(lambda: table(path, **{"target": "y", **arguments}))
    assert error.key == key
    row = re.compile(r"<(\d)>")  # of a CSV file the line, whose first is the header
    says = row.sub(lambda m: f"line {int(m[1]) + 1}" if path.endswith(".csv") else f"row {m[1]}", says)
    assert says in error.problem


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("t.csv", "", "is empty"),
        ("t.csv", "\n\n", "is empty"),
        ("t.csv", "a,y\n", "has no rows"),
        ("t.csv", "a,y\n1,2\n3,4,5\n", "line 3 of '{path}' has 3 cells, more than its header, which has 2"),
        (
            "t.csv",
            "a,y\n7,1,2\n8,3,4\n",
            "line 2 of '{path}' has 3 cells, more than its header",
        ),  # pandas would take 7, 8 for row labels
        ("t.parquet", "a,y\n1,2\n", "cannot read"),
    ],
)
def test_a_file_that_holds_no_table_is_refused(tmp_path: Path, name: str, text: str, says: str):
    (tmp_path / name).write_text(text)
    error = refusal(lambda: table(str(tmp_path / name), target="y"))
    assert error.key == "data.path"
    assert says.format(path=tmp_path / name) in error.problem
    assert name in error.problem


@pytest.mark.parametrize("name", ["missing.csv", "missing.parquet"])
def test_a_missing_file_is_told_with_the_folder_it_was_looked_for_in(tmp_path: Path, monkeypatch, name: str):
    monkeypatch.chdir(tmp_path)
    error = refusal(lambda: table(name, target="y"))
    assert str(error) == f"data.path: no file '{name}' (looked in {tmp_path})"


def test_a_path_may_begin_with_the_home_directory(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.csv").write_text("x,y\n1,2\n2,0\n4,1\n")
    assert table("~/a.csv", target="y").source == str(tmp_path / "a.csv")


def test_a_folder_is_no_table(tmp_path: Path):
    assert refusal(lambda: table(str(tmp_path), target="y")).key == "data.path"


# Splits


def numbered(n: int) -> Samples:
    """Samples whose target is their own row number."""
    return samples(x=np.stack([np.arange(n), np.arange(n) % 7], 1), y=np.arange(n))


def parts(splits: Splits) -> list[Part]:
    return [splits.train, splits.val, splits.test]


@settings(deadline=None, max_examples=50)
@given(n=st.integers(20, 300), val=st.floats(0.1, 0.4), test=st.floats(0.1, 0.4), seed=st.integers(0, 2**32))
def test_every_sample_is_in_exactly_one_split_and_shares_are_kept(n: int, val: float, test: float, seed: int):
    splits = divide(numbered(n), Split(val=val, test=test, seed=seed, normalize=False))
    rows = [part.y[:, 0] for part in parts(splits)]
    assert sorted(np.concatenate(rows)) == list(range(n))
    assert len(rows[1]) == pytest.approx(n * val, abs=0.5)
    assert len(rows[2]) == pytest.approx(n * test, abs=0.5)
    for part in parts(splits):  # inputs go with their targets
        assert_array_equal(part.x[:, 0], part.y[:, 0])


def test_a_split_follows_its_seed_and_is_shuffled():
    def validation(seed: int) -> list[float]:
        return divide(numbered(100), Split(seed=seed, normalize=False)).val.y[:, 0].tolist()

    assert validation(1) == validation(1)
    assert sorted(validation(1)) != sorted(validation(2))
    assert validation(1) != sorted(validation(1))


def test_normalisation_uses_the_training_part_only():
    made = numbered(200)
    plain = divide(made, Split(normalize=False))
    normal = divide(made, Split())
    mean, std = plain.train.x.mean(0), plain.train.x.std(0)
    assert_allclose(normal.train.x.mean(0), 0, atol=1e-6)
    assert_allclose(normal.train.x.std(0), 1, atol=1e-6)
    for part, own in zip(parts(normal), parts(plain), strict=True):
        assert_allclose(part.x, (own.x - mean) / std, atol=1e-5)
    assert_allclose(normal.y_mean, plain.train.y.mean(0), rtol=1e-6)
    assert_allclose(normal.y_std, plain.train.y.std(0), rtol=1e-6)
    assert abs(normal.val.x.mean()) > 1e-3  # its own statistics would make it 0


@settings(deadline=None, max_examples=50)
@given(
    whole=st.lists(st.integers(-(10**5), 10**5), min_size=20, max_size=60, unique=True),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    seed=st.integers(0, 100),
)
def test_targets_come_back_from_their_scale(whole: list[int], scale: float, seed: int):
    y = scale * np.array(whole)
    made = samples(x=np.arange(len(y))[:, None], y=y, clean=y)
    splits = divide(made, Split(seed=seed))
    plain = divide(made, Split(seed=seed, normalize=False))
    for part, own in zip(parts(splits), parts(plain), strict=True):
        assert_allclose(part.y * splits.y_std + splits.y_mean, own.y, rtol=1e-4, atol=1e-5 * np.abs(y).max())
        assert part.clean is not None
        assert_array_equal(part.clean, part.y)  # the same scale


def test_each_of_several_targets_has_its_own_scale():
    y = np.stack([np.arange(50.0), 100 + 5 * np.arange(50.0)], 1)
    splits = divide(samples(x=np.arange(50)[:, None], y=y), Split())
    assert_allclose(splits.train.y.std(0), [1, 1], atol=1e-6)
    assert splits.y_std[1] == pytest.approx(5 * splits.y_std[0])


def test_classes_are_not_scaled():
    splits = divide(samples(task="classification", x=np.arange(20)[:, None], y=np.arange(20) % 2), Split())
    assert splits.train.y.dtype == np.int64
    assert set(splits.train.y) == {0, 1}
    assert_array_equal(splits.y_std, [1, 1])
    assert_array_equal(splits.y_mean, [0, 0])


def test_images_are_normalised_by_channel_so_that_blank_pixels_are_no_trouble():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(60, 2, 4, 4)) * [[[[3.0]], [[0.5]]]] + [[[[10.0]], [[-1.0]]]]
    images[:, :, 0, 0] = 0  # as the corners of digits are
    train = divide(samples(x=images, y=np.arange(60)), Split()).train.x
    assert_allclose(train.mean((0, 2, 3)), [0, 0], atol=1e-5)
    assert_allclose(train.std((0, 2, 3)), [1, 1], atol=1e-5)
    assert len(np.unique(train[:, 0, 0, 0])) == 1  # not by pixel


def test_data_stay_in_their_own_units_without_normalisation():
    splits = divide(numbered(50), Split(normalize=False))
    assert splits.train.x.max() > 30
    assert_array_equal(splits.y_std, [1])
    assert_array_equal(splits.y_mean, [0])


@pytest.mark.parametrize("offset", [0.0, 0.1, 1e6])
def test_a_feature_that_is_constant_where_it_is_trained_on_is_named(offset: float):
    x = np.stack([np.arange(40.0), np.full(40, offset)], 1)
    tested = divide(numbered(40), Split(normalize=False)).test.y[0, 0]
    x[int(tested), 1] = offset + 1
    made = samples(x=x, y=np.arange(40), features=("time", "sensor"))
    error = refusal(lambda: divide(made, Split()))
    assert error.key == "data.features"
    assert "'sensor' is constant over the training split" in error.problem
    assert divide(made, Split(normalize=False)).train.x.shape == (28, 2)


def test_a_large_offset_costs_no_precision():
    seconds = 1.7e9 + np.arange(40.0)  # float32 would round them to multiples of 128
    divided = divide(samples(x=seconds[:, None], y=seconds), Split())
    assert divided.train.x.dtype == divided.train.y.dtype == np.float32
    np.testing.assert_allclose(divided.train.x, divided.train.y, rtol=1e-6)
    assert len(np.unique(divided.train.x)) == 28


def test_samples_given_in_float32_stay_so():
    assert samples(x=np.ones((2, 1), np.float32)).x.dtype == np.float32


def test_a_feature_that_varies_by_rounding_errors_only_is_constant_too():
    x = np.stack([np.arange(40, dtype=np.float32), np.full(40, 0.1, np.float32)], 1)
    x[::9, 1] = np.nextafter(np.float32(0.1), 1)
    assert refusal(lambda: divide(samples(x=x, y=np.arange(40)), Split())).key == "data.features"


def test_a_constant_target_is_refused():
    error = refusal(lambda: divide(samples(x=np.arange(20)[:, None], y=np.full(20, 2.5)), Split()))
    assert error.key == "data.target"
    assert "constant" in error.problem


def test_too_few_samples_are_told_with_what_each_split_would_get():
    error = refusal(lambda: divide(numbered(3), Split()))
    assert error.key == "split"
    assert "3 samples are too few: 3 to train, 0 to validate, 0 to test (needed: 2, 1, 1)" in error.problem
    assert [len(part.x) for part in parts(divide(numbered(4), Split(normalize=False)))] == [2, 1, 1]


def test_a_column_of_dates_is_refused(tmp_path: Path):
    path = tmp_path / "days.parquet"
    pd.DataFrame({"day": pd.date_range("2026-01-01", periods=3), "y": [1.0, 2.0, 3.0]}).to_parquet(path)
    error = refusal(lambda: table(str(path), "y"))
    assert error.key == "data.features"
    assert "'day' holds dates" in error.problem


@pytest.mark.parametrize(
    ("text", "features", "key", "says"),
    [
        ("a,a,y\n1,2,3\n4,5,6\n", None, "data.path", "two columns of"),
        ("a,b,y\n1,2,3\n4,5,6\n", ["a", "a"], "data.features", "names a column twice: a, a"),
        ("a,y\n1,2\n", None, "split", "1 samples are too few"),
    ],
)
def test_a_table_that_is_odd_in_other_ways_is_told(
    text: str, features: list[str] | None, key: str, says: str, tmp_path: Path
):
    path = tmp_path / "odd.csv"
    path.write_text(text)
    error = refusal(lambda: divide(table(str(path), "y", features), Split()))
    assert error.key == key
    assert says in error.problem


def test_blanks_after_the_commas_of_a_header_are_no_part_of_the_names(tmp_path: Path):
    path = tmp_path / "blanks.csv"
    path.write_text("a, b, y\n" + "".join(f"{i % 4}, {i * i}, {2 * i}\n" for i in range(9)))
    assert table(str(path), "y").features == ("a", "b")


def test_fractions_are_no_classes(tmp_path: Path):
    path = tmp_path / "fractions.csv"
    path.write_text("a,y\n" + "".join(f"{i * i},{i / 4}\n" for i in range(9)))
    error = refusal(lambda: table(str(path), "y", task="classification"))
    assert "column 'y' holds fractions" in error.problem
