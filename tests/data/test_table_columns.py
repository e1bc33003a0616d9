"""Columns of tables that are no numbers yet: categories, dates, empty cells. What is learnt, and from which rows."""

import io
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from refusals import refusal

from sweep import ConfigError, Samples, compose
from sweep.config.nodes import Split
from sweep.config.schema import validate
from sweep.data.assignment import assign
from sweep.data.encoding import expand, fitted
from sweep.data.preprocessing import apply
from sweep.data.split import prepare
from sweep.data.table import table
from sweep.training.tensors import to_device
from sweep.trial.prepare import load_samples

N = 120
RNG = np.random.default_rng(1)
FILLED = np.arange(N) ** 0.5  # no cell is empty


def passengers(n: int = N) -> pd.DataFrame:
    """Passengers with every kind of column, and empty cells in `age` and `port`."""
    age, port = RNG.normal(30, 10, n).round(1), RNG.choice(["S", "C", "Q"], n, p=[0.6, 0.3, 0.1]).astype(object)
    age[::9], port[::20] = np.nan, None
    return pd.DataFrame(
        {
            "name": [f"N{i}" for i in range(n)],
            "age": age,
            "sex": RNG.choice(["male", "female"], n),
            "port": port,
            "cabin": [f"C{i % 50}" for i in range(n)],
            "day": pd.date_range("2026-01-05 06:00", periods=n, freq="31h").strftime("%Y-%m-%dT%H:%M"),
            "fare": RNG.gamma(2, 10, n).round(2),
            "y": RNG.normal(size=n),
        }
    )


@pytest.fixture(params=["csv", "parquet"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[pd.DataFrame], str]:
    """Writes a frame in the format under test and returns its path."""

    def write(frame: pd.DataFrame) -> str:
        path = tmp_path / f"mine.{request.param}"
        frame.to_csv(path, index=False) if request.param == "csv" else frame.to_parquet(path)
        return str(path)

    return write


def read(path: str, **arguments: Any) -> Samples:
    return table(path, "y", **{"drop": ["name"], "categorical": "auto", "dates": ["day"], **arguments})


def column(samples: Samples, feature: str) -> np.ndarray:
    return samples.x[:, samples.features.index(feature)]


# What a model sees


def test_categories_become_one_input_each_or_one_code(save: Callable[..., str]) -> None:
    frame = passengers()
    inputs, _ = prepare(read(save(frame), missing="most_frequent"), Split(val=0.1, test=0.1, seed=1))
    assert inputs.features[:6] == ("age", "sex=female", "sex=male", "port=C", "port=Q", "port=S")
    assert_array_equal(column(inputs, "sex=female"), frame.sex == "female")
    assert_array_equal(column(inputs, "port=S"), frame.port.fillna("S") == "S")
    codes = column(inputs, "cabin")
    known = sorted({f"C{i % 50}" for i in assign(inputs, Split(val=0.1, test=0.1, seed=1)).train})
    assert 32 < len(known) < 50
    assert_array_equal(codes, [known.index(cabin) if cabin in known else -1 for cabin in frame.cabin])
    assert inputs.in_shape == (len(inputs.features),)


def test_max_one_hot_is_the_border_between_one_hot_and_codes(save: Callable[..., str]) -> None:
    path = save(passengers())
    many, _ = prepare(read(path, missing="median", max_one_hot=50), Split())
    none, _ = prepare(read(path, missing="median", max_one_hot=0), Split())
    assert sum(name.startswith("cabin=") for name in many.features) > 40
    assert none.features == ("age", "sex", "port", "cabin", "day.days", "day.month", "day.weekday", "day.hour", "fare")


def test_dates_become_numbers(save: Callable[..., str]) -> None:
    frame = passengers()
    inputs, _ = prepare(read(save(frame), missing="median"), Split())
    day = pd.to_datetime(frame.day)
    assert_allclose(column(inputs, "day.days"), (day - pd.Timestamp(0)) / pd.Timedelta(days=1))
    assert_array_equal(column(inputs, "day.month"), day.dt.month)
    assert_array_equal(column(inputs, "day.weekday"), day.dt.day_of_week)
    assert_array_equal(column(inputs, "day.hour"), day.dt.hour)


def test_a_part_of_a_date_that_is_the_same_in_all_rows_is_no_input(save: Callable[..., str]) -> None:
    frame = passengers(28).assign(day=pd.date_range("2026-02-01", periods=28).strftime("%d.%m.%Y"))
    inputs, _ = prepare(read(save(frame), missing="median", dates={"day": "%d.%m.%Y"}), Split())
    assert [name for name in inputs.features if name.startswith("day")] == ["day.days", "day.weekday"]
    assert column(inputs, "day.weekday")[0] == 6  # a Sunday


def test_dates_of_a_parquet_file_may_have_a_time_zone(tmp_path: Path) -> None:
    frame = passengers(40)
    frame["day"] = pd.date_range("2026-01-01", periods=40, freq="5h", tz="Europe/Berlin")
    frame.to_parquet(tmp_path / "t.parquet")
    inputs, _ = prepare(read(str(tmp_path / "t.parquet"), missing="median"), Split())
    assert column(inputs, "day.hour")[0] == 23  # in UTC


def test_empty_cells_are_filled_and_may_be_told(save: Callable[..., str]) -> None:
    frame = passengers()
    path, split = save(frame), Split(seed=2)
    for missing, fill in (("median", "median"), ("most_frequent", "mode"), ("indicator", "median")):
        samples = read(path, missing=missing)
        train = frame.iloc[assign(samples, split).train]
        inputs, _ = prepare(samples, split)
        expected = getattr(train.age, fill)()
        expected = expected[0] if isinstance(expected, pd.Series) else expected
        assert_array_equal(column(inputs, "age"), frame.age.fillna(expected))
        assert ("age is empty" in inputs.features) == ("port=(empty)" in inputs.features) == (missing == "indicator")
    assert_array_equal(column(inputs, "age is empty"), frame.age.isna())
    assert_array_equal(column(inputs, "port=(empty)"), frame.port.isna())


def test_an_empty_date_has_one_input_that_says_so(save: Callable[..., str]) -> None:
    frame = passengers()
    frame.loc[::7, "day"] = None
    inputs, splits = prepare(read(save(frame), missing="indicator"), Split(normalize=False))
    assert [name for name in inputs.features if name.endswith("empty")] == ["age is empty", "day is empty"]
    assert_array_equal(column(inputs, "day is empty"), frame.day.isna())
    assert_array_equal(apply(splits.preprocessing, frame), inputs.x.astype(np.float32))


def test_inputs_that_are_0_or_1_are_not_normalised(save: Callable[..., str]) -> None:
    samples = read(save(passengers()), missing="indicator")
    inputs, splits = prepare(samples, Split())
    for i, name in enumerate(inputs.features):
        values = splits.train.x[:, i]
        if "=" in name or "empty" in name:
            assert set(values) <= {0, 1}
        else:
            assert (values.mean(), values.std()) == pytest.approx((0, 1), abs=1e-5)


def test_listed_categories_keep_their_texts(tmp_path: Path) -> None:
    path = tmp_path / "zip.csv"
    path.write_text("zip,grade,y\n" + "".join(f"0{i % 3}, {i % 4},{i * i}\n" for i in range(40)))
    inputs, _ = prepare(table(str(path), "y", categorical=["zip", "grade"]), Split())
    assert inputs.features == ("zip=00", "zip=01", "zip=02", *(f"grade={i}" for i in range(4)))


def test_numbers_in_a_column_of_categories_have_one_name_each(tmp_path: Path) -> None:
    frame = pd.DataFrame({"k": [1, 2, np.nan, 10] * 10, "y": np.arange(40.0) ** 2})  # pandas reads 1 as 1.0
    frame.to_parquet(tmp_path / "k.parquet")
    inputs, splits = prepare(
        table(str(tmp_path / "k.parquet"), "y", categorical=["k"], missing="indicator"), Split(normalize=False)
    )
    assert inputs.features == ("k=(empty)", "k=1", "k=2", "k=10")
    assert_array_equal(apply(splits.preprocessing, pd.DataFrame({"k": ["1", 10, 2.0, None]})), np.eye(4)[[1, 3, 2, 0]])


def test_a_column_of_numbers_with_a_typing_error_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "typo.csv"
    path.write_text("a,b,y\n" + "".join(f"{i % 7},{'l0' if i == 4 else i % 5},{i * i}\n" for i in range(30)))
    with caplog.at_level(logging.WARNING):
        table(str(path), "y", categorical="auto")
    (line,) = caplog.messages
    assert "data.categorical: line 6, column 'b' is 'l0', while most of its cells are numbers" in line


# What it rests on


def test_nothing_is_learnt_from_validation_and_test_rows(save: Callable[..., str]) -> None:
    """Other cells in these rows change neither what is learnt nor the rows to train on."""
    frame, split = passengers(), Split(seed=4)
    rows = assign(read(save(frame), missing="indicator"), split)
    others = np.concatenate([rows.val, rows.test])
    strange = frame.copy()
    for name, value in (("age", 1e6), ("fare", -1e6), ("port", "Z"), ("sex", "?"), ("cabin", "X"), ("y", 1e6)):
        strange.loc[others, name] = value
    strange.loc[others[::2], "age"] = np.nan
    strange.loc[others, "day"] = "2046-07-01T13:00"
    for missing in ("median", "most_frequent", "indicator"):
        _, before = prepare(read(save(frame), missing=missing), split)
        inputs, after = prepare(read(save(strange), missing=missing), split)
        assert after.preprocessing == before.preprocessing
        assert_array_equal(after.train.x, before.train.x)
        assert_array_equal(after.train.y, before.train.y)
        unknown = after.test.x[:, [name.startswith(("sex=", "port=")) for name in inputs.features]]
        assert not unknown.any()  # a category that no row to train on has
        assert inputs.x[rows.test][:, inputs.features.index("cabin")].tolist() == [-1] * len(rows.test)


@pytest.mark.parametrize("missing", ["median", "most_frequent", "indicator"])
def test_the_inputs_are_those_of_scikit_learns_transformer(save: Callable[..., str], missing: str) -> None:
    samples = read(save(passengers()), missing=missing)
    rows, encoding = assign(samples, Split()), samples.encoding
    assert encoding is not None
    kept = [i for i, one in enumerate(encoding.columns) if one.part != "nothing"]
    transformer = fitted(samples.x[rows.train], encoding, kept)
    inputs, splits = prepare(samples, Split())
    reference = np.asarray(transformer.transform(samples.x))
    found = expand(samples.x, splits.preprocessing["columns"], encoding)
    assert found.shape == reference.shape == inputs.x.shape
    assert sorted(map(tuple, found.T.tolist())) == sorted(map(tuple, reference.T.tolist()))  # in another order


@pytest.mark.parametrize("missing", ["median", "most_frequent", "indicator"])
@pytest.mark.parametrize("normalize", [True, False])
def test_what_is_learnt_makes_the_same_inputs_of_new_data(
    save: Callable[..., str], missing: str, normalize: bool
) -> None:
    """Also after it was stored as JSON, or beside weights."""
    frame, split = passengers(), Split(normalize=normalize)
    samples = read(save(frame), missing=missing)
    rows = assign(samples, split)
    _, splits = prepare(samples, split)
    stored = io.BytesIO()
    torch.save(splits.preprocessing, stored)
    stored.seek(0)
    assert json.loads(json.dumps(splits.preprocessing)) == splits.preprocessing
    preprocessing = torch.load(stored, weights_only=True)
    shuffled = frame[RNG.permutation(frame.columns.drop("y"))]
    for part, chosen in ((splits.train, rows.train), (splits.val, rows.val), (splits.test, rows.test)):
        assert_array_equal(apply(preprocessing, shuffled.iloc[chosen]), part.x)


def test_new_categories_are_no_error(save: Callable[..., str]) -> None:
    samples = read(save(passengers()), missing="most_frequent")
    inputs, splits = prepare(samples, Split(normalize=False))
    new = apply(splits.preprocessing, passengers(3).assign(sex="other", cabin="Z9"))
    assert_array_equal(new[:, [inputs.features.index(f"sex={sex}") for sex in ("male", "female")]], np.zeros((3, 2)))
    assert_array_equal(new[:, inputs.features.index("cabin")], [-1] * 3)


def test_arrays_and_images_are_new_data_too() -> None:
    images = RNG.normal(3, 2, size=(40, 2, 4, 4))
    made = Samples(name="s", task="regression", x=images, y=np.arange(40.0))
    rows, (_, splits) = assign(made, Split()), prepare(made, Split())
    assert_array_equal(apply(splits.preprocessing, images[rows.val]), splits.val.x)
    numbers = Samples(name="s", task="regression", x=images[:, :, 0, 0], y=np.arange(40.0), features=("a", "b"))
    _, splits = prepare(numbers, Split())
    assert_array_equal(apply(splits.preprocessing, numbers.x[rows.test]), splits.test.x)
    frame = pd.DataFrame({"b": numbers.x[rows.test, 1], "a": numbers.x[rows.test, 0]})
    assert_array_equal(apply(splits.preprocessing, frame), splits.test.x)


@pytest.mark.parametrize(
    ("change", "key", "says"),
    [
        (lambda frame: frame.drop(columns="age"), "age", "no such column"),
        (lambda frame: frame.assign(age="old"), "age", "'old' in row 0 is no finite number"),
        (lambda frame: frame.assign(age=np.inf), "age", "is no finite number"),
        (lambda frame: frame.assign(day="soon"), "day", "'soon' in row 0 is no date"),
        (lambda frame: frame.assign(sex=None), "sex", "is empty; the model was trained without empty cells"),
        (lambda frame: frame.assign(fare=None), "fare", "is empty; the model was trained without empty cells"),
        (lambda frame: frame.to_numpy(), "data", "give a DataFrame"),
    ],
)
def test_new_data_that_cannot_be_used_are_refused(
    save: Callable[..., str], change: Callable[..., Any], key: str, says: str
) -> None:
    frame = passengers().ffill().bfill()
    _, splits = prepare(read(save(frame)), Split())
    error = refusal(lambda: apply(splits.preprocessing, change(frame)))
    assert error.key == key
    assert says in error.problem


def test_a_table_of_numbers_needs_nothing_of_this(save: Callable[..., str]) -> None:
    frame = passengers()[["fare", "y"]].assign(a=np.sqrt(np.arange(N)))
    plain, full = table(save(frame), "y"), read(save(frame), drop=[], dates=[], missing="indicator", max_one_hot=3)
    assert plain.encoding is full.encoding is None
    assert_array_equal(plain.x, full.x)


def test_weights_reach_the_device(save: Callable[..., str]) -> None:
    frame = passengers()[["fare", "y"]].assign(a=np.sqrt(np.arange(N)), w=np.arange(N) % 3)
    made = table(save(frame), "y", weight="w")
    assert made.features == ("fare", "a")
    rows, (_, splits) = assign(made, Split()), prepare(made, Split())
    weights = to_device(splits, torch.device("cpu")).train.weights
    assert weights is not None
    assert_array_equal(weights.numpy(), frame.w[rows.train])


# What is refused


@pytest.mark.parametrize(
    ("changes", "arguments", "key", "says"),
    [
        ({"age": FILLED}, {"categorical": None}, "data.features", "is '.*categorical=auto.*data.dates, or .*data.drop"),
        ({}, {}, "data.features", r"<1>, column 'age' is empty.* \(14 such cells.*; fill it with data.missing"),
        ({"age": FILLED}, {}, "data.categorical", "<1>, column 'port' is empty.*6 such"),
        ({}, {"drop": ["ticket"]}, "data.drop", "no column 'ticket'; the columns are: name, age"),
        ({}, {"drop": ["age"], "features": ["age", "day"]}, "data.drop", "'age' is in data.features too"),
        ({}, {"categorical": ["class"]}, "data.categorical", "no column 'class'; the columns are: name, age"),
        ({}, {"categorical": ["name"]}, "data.categorical", "'name' is no feature; leave it out here"),
        ({}, {"categorical": "sex"}, "data.categorical", r"must be a list of columns, such as \[sex\], got 'sex'"),
        ({}, {"categorical": ["day"]}, "data.categorical", "'day' is in data.dates too"),
        ({}, {"dates": ["when"]}, "data.dates", "no column 'when'"),
        ({"day": "soon"}, {"missing": "median"}, "data.dates", "<1>, column 'day' is 'soon', no date in ISO.*120 such"),
        ({"day": "31.01.2026"}, {"missing": "median"}, "data.dates", "no date .*, as in data.dates={day: '%d.%m.%Y'}"),
        ({}, {"dates": {"day": "%d.%m.%Y"}, "missing": "median"}, "data.dates", "no date of the format %d.%m.%Y"),
        ({"day": None}, {"missing": "median"}, "data.features", "column 'day' is empty; leave it out"),
        ({"sex": "male"}, {"missing": "median"}, "data.features", r"column 'sex' is constant \(male\)"),
        ({}, {"max_one_hot": -1}, "data.max_one_hot", "must be a number of categories >= 0"),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_used_are_refused(
    save: Callable[..., str], changes: dict[str, Any], arguments: dict[str, Any], key: str, says: str
) -> None:
    path = save(passengers().assign(**changes))
    error = refusal(lambda: read(path, **arguments))
    assert error.key == key
    says = says.replace("<1>", "line 2" if path.endswith("csv") else "row 1")
    assert re.search(says, error.problem), error.problem


def test_a_column_that_is_empty_in_all_rows_to_train_on_is_refused(save: Callable[..., str]) -> None:
    frame = passengers()
    train = assign(read(save(frame), missing="median"), Split()).train
    frame.loc[train, "age"] = np.nan
    error = refusal(lambda: prepare(read(save(frame), missing="median"), Split()))
    assert (error.key, "column 'age' has no cell to train on" in error.problem) == ("data.missing", True)


def test_columns_of_dates_are_refused_with_the_key_that_takes_them(tmp_path: Path) -> None:
    frame = passengers(20).assign(day=pd.date_range("2026-01-01", periods=20))
    frame.to_parquet(tmp_path / "t.parquet")
    error = refusal(lambda: table(str(tmp_path / "t.parquet"), "y", features=["fare", "day"]))
    assert "column 'day' holds dates or durations, not numbers; list it in data.dates" in error.problem


def test_the_task_is_enough_for_a_table_of_classes(tmp_path: Path) -> None:
    pd.DataFrame({"a": np.arange(9.0) ** 2, "kind": ["x", "y", "z"] * 3}).to_csv(tmp_path / "t.csv", index=False)
    chosen = ("data=table", f"data.path={tmp_path / 't.csv'}", "data.target=kind")

    def loaded(*overrides: str) -> Samples:
        samples = load_samples(validate(compose([*chosen, *overrides])))
        assert isinstance(samples, Samples)
        return samples

    for overrides in (("task=classification",), ("data.task=classification",)):
        assert loaded(*overrides).classes == ("x", "y", "z")
    with pytest.raises(ConfigError, match=r"data\.target: .* is 'x', .*; for names of classes set task=classification"):
        loaded()
