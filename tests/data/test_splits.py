"""The options of the group `split`: which samples are for training, validation and test, and the folds of these."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal
from refusals import refusal

from sweep import Samples, compose
from sweep.config.nodes import Split
from sweep.config.schema import validate
from sweep.data.assignment import Assignment, assign
from sweep.data.split import divide
from sweep.data.table import table
from sweep.trial.prepare import load_data
from sweep.trial.remembered import RememberedData

N = 200
RNG = np.random.default_rng(0)
PATIENTS = np.array([f"p{i}" for i in RNG.integers(0, 40, N)])
KINDS = RNG.choice(3, N, p=[0.7, 0.2, 0.1])


def made(**changes: Any) -> Samples:
    """Samples whose input is their own row number."""
    return Samples(**{"name": "s", "task": "regression", "x": np.arange(N)[:, None], "y": np.arange(N), **changes})


def classified(y: Any = KINDS) -> Samples:
    return made(task="classification", x=np.arange(len(y))[:, None], y=y)


def all_rows(rows: Assignment) -> list[int]:
    return sorted(np.concatenate([rows.train, rows.val, rows.test]).tolist())


def sizes(rows: Assignment) -> list[int]:
    return [len(rows.train), len(rows.val), len(rows.test)]


# What each option does


def test_random_is_the_permutation_that_it_always_was() -> None:
    rows = assign(made(), Split(seed=3))
    order = np.random.default_rng(3).permutation(N)
    assert_array_equal(np.concatenate([rows.train, rows.val, rows.test]), order)
    assert sizes(rows) == [140, 30, 30]


def test_stratified_gives_each_class_its_share_in_each_split() -> None:
    rows = assign(classified(), Split(kind="stratified", val=0.2, test=0.2))
    assert all_rows(rows) == [*range(N)]
    for part in (rows.train, rows.val, rows.test):
        shares = np.bincount(KINDS[part]) / len(part)
        assert shares == pytest.approx(np.bincount(KINDS) / N, abs=0.02)
    assert sizes(rows) == [120, 40, 40]


def test_grouped_keeps_each_group_on_one_side() -> None:
    rows = assign(made(groups=PATIENTS), Split(kind="grouped"))
    assert all_rows(rows) == [*range(N)]
    sides = [set(PATIENTS[part]) for part in (rows.train, rows.val, rows.test)]
    assert [len(side) for side in sides] == [27, 6, 6]  # of 39 patients
    assert set.intersection(sides[0], sides[1] | sides[2]) == sides[1] & sides[2] == set()


def test_ordered_takes_the_rows_as_they_come() -> None:
    rows = assign(made(groups=PATIENTS), Split(kind="ordered"))
    assert_array_equal(np.concatenate([rows.train, rows.val, rows.test]), np.arange(N))
    assert sizes(rows) == [140, 30, 30]


def test_ordered_by_a_column_trains_on_the_earliest_rows() -> None:
    times = RNG.permutation(N) / 7
    rows = assign(made(groups=times), Split(kind="ordered", by="time", max_samples=100))
    assert sizes(rows) == [70, 15, 15]
    in_order = times[np.concatenate([rows.train, rows.val, rows.test])]
    assert_array_equal(in_order, np.sort(in_order))


def test_given_follows_the_words_of_the_data() -> None:
    words = RNG.choice(["train", "val", "test"], N)
    rows = assign(made(split=words), Split(kind="given"))
    for word, part in (("train", rows.train), ("val", rows.val), ("test", rows.test)):
        assert sorted(part) == np.flatnonzero(words == word).tolist()


@pytest.mark.parametrize("groups", [None, PATIENTS])
def test_given_without_a_validation_split_draws_one_from_the_training_samples(groups: Any) -> None:
    first_half = np.isin(PATIENTS, [f"p{i}" for i in range(20)])
    words = np.where(first_half, "train", "test")
    rows = assign(made(split=words, groups=groups), Split(kind="given", val=0.3))
    assert sorted(rows.test) == np.flatnonzero(~first_half).tolist()
    assert all_rows(rows) == [*range(N)]
    assert len(rows.val) == pytest.approx(0.3 * first_half.sum(), rel=0.3)
    if groups is not None:
        assert not set(PATIENTS[rows.train]) & set(PATIENTS[rows.val])


@pytest.mark.parametrize("kind", ["stratified", "grouped", "given"])
def test_a_split_follows_its_seed(kind: str) -> None:
    words = np.where(np.arange(N) < 150, "train", "test") if kind == "given" else None
    samples = made(task="classification", y=KINDS, groups=PATIENTS, split=words)

    def train(seed: int) -> list[int]:
        return assign(samples, Split(kind=kind, seed=seed)).val.tolist()

    assert train(1) == train(1)
    assert train(1) != train(2)
    assert train(2**40)  # scikit-learn takes seeds of 32 bits only


def test_a_group_on_both_sides_of_a_given_split_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    words = np.repeat(["train", "val", "test"], [100, 50, 50])
    groups = np.repeat(np.arange(20), 10)
    with caplog.at_level(logging.WARNING):
        divide(made(split=words, groups=groups), Split(kind="given", by="patient"))
        assert caplog.messages == []
        groups[[0, 1, 120]] = 19  # which is in test
        for fold in range(3):
            divide(made(split=words, groups=groups), Split(kind="given", by="patient", folds=3, fold=fold))
    (line,) = caplog.messages
    assert "split.by=patient: group '19' is in more than one of train, val, test" in line


@pytest.mark.parametrize(
    ("samples", "split", "key", "says"),
    [
        (made(), {"kind": "stratified"}, "split", "needs classes"),
        (classified(np.array([0] * 20 + [1] * 2)), {"kind": "stratified"}, "split", "class '1' has 2 samples"),
        (classified(np.arange(40) % 8), {"kind": "stratified"}, "split", "8 classes do not fit in the 6 samples"),
        (made(), {"kind": "grouped"}, "split.by", "is empty; name the column"),
        (made(groups=np.arange(N) % 2), {"kind": "grouped"}, "split.by", "makes 2 groups: too few"),
        (made(groups=PATIENTS), {"kind": "ordered", "by": "who"}, "split.by", "texts, which tell no order in time"),
        (made(), {"kind": "given"}, "split.column", "is empty; name the column of a table with the words train, val"),
        (made(split=["train"] * N), {"kind": "given"}, "split.column", "no row is for test"),
        (made(split=["train"] * N), {}, "split", "is random, but the data name .*; set split=given"),
    ],
)
def test_data_that_cannot_be_divided_so_are_refused(
    samples: Samples, split: dict[str, Any], key: str, says: str
) -> None:
    error = refusal(lambda: assign(samples, Split(**split)))
    assert error.key == key
    assert re.search(says, error.problem), error.problem


@pytest.mark.parametrize(
    ("changes", "key", "says"),
    [
        ({"groups": [1, 2]}, "data", "needs groups of shape (200,)"),
        ({"weights": np.ones((N, 1))}, "data", "needs weights of shape (200,)"),
        ({"weights": np.full(N, -1.0)}, "data.weight", "a negative weight"),
        ({"weights": np.zeros(N)}, "data.weight", "no weight above 0"),
        ({"weights": np.full(N, np.nan)}, "data.weight", "not finite, in row 0"),
        ({"split": ["train"] * (N - 1) + ["holdout"]}, "split.column", "row 199 of Samples.split has 'holdout'"),
    ],
)
def test_arrays_for_splits_and_weights_are_checked(changes: dict[str, Any], key: str, says: str) -> None:
    error = refusal(lambda: made(**changes))
    assert error.key == key
    assert says in error.problem


@pytest.mark.parametrize("fold", [{}, {"folds": 3, "fold": 1}], ids=["split", "fold"])
def test_weights_go_with_their_samples(fold: dict[str, Any]) -> None:
    splits = divide(made(weights=np.arange(N) + 1), Split(normalize=False, **fold))
    for part in (splits.train, splits.val, splits.test):
        assert part.weights is not None
        assert part.weights.dtype == np.float32
        assert_array_equal(part.weights, part.y[:, 0] + 1)


# Folds


@pytest.mark.parametrize("kind", ["random", "stratified", "grouped", "given"])
def test_every_sample_outside_the_test_split_is_in_one_fold(kind: str) -> None:
    words = np.repeat(["train", "test"], [160, 40]) if kind == "given" else None
    samples = made(task="classification", y=KINDS, groups=PATIENTS if kind == "grouped" else None, split=words)
    whole = assign(samples, Split(kind=kind))
    folds = [assign(samples, Split(kind=kind, folds=4, fold=fold)) for fold in range(4)]
    for fold in folds:
        assert_array_equal(fold.test, whole.test)
        assert all_rows(fold) == [*range(N)]
        if kind == "grouped":
            assert not set(PATIENTS[fold.train]) & set(PATIENTS[fold.val])
        if kind == "stratified":
            rest = np.setdiff1d(np.arange(N), whole.test)
            assert np.bincount(KINDS[fold.val]) == pytest.approx(np.bincount(KINDS[rest]) / 4, abs=1)
    assert sorted(np.concatenate([fold.val for fold in folds])) == np.setdiff1d(np.arange(N), whole.test).tolist()


def test_folds_of_ordered_data_validate_on_what_comes_later() -> None:
    folds = [assign(made(), Split(kind="ordered", folds=4, fold=fold)) for fold in range(4)]
    for fold in folds:
        assert fold.train.max() + 1 == fold.val.min()
        assert fold.test.min() == 170
    assert [fold.val.max() for fold in folds] == [67, 101, 135, 169]


@pytest.mark.parametrize(
    ("samples", "split", "says"),
    [
        (made(), {"folds": 171}, "is 171, more than the 170 samples outside the test split"),
        (made(groups=np.arange(N) % 5), {"kind": "grouped", "folds": 5}, "is 5, more than the 4 groups"),
        (
            classified(np.array([0] * 40 + [1] * 4)),
            {"kind": "stratified", "folds": 4},
            "more than the 3 samples of class",
        ),
        (made(), {"kind": "ordered", "folds": 170}, "more than the 169 pairs of samples that follow each other"),
    ],
)
def test_more_folds_than_samples_or_groups_are_refused(samples: Samples, split: dict[str, Any], says: str) -> None:
    split = {"val": 0.25, "test": 0.25, **split} if "stratified" in split.values() else split
    error = refusal(lambda: assign(samples, Split(**split)))
    assert error.key == "split.folds"
    assert says in error.problem


# From the config


@pytest.mark.parametrize("option", ["random", "stratified", "grouped", "ordered", "given"])
def test_each_option_sets_its_kind_and_keeps_the_shared_keys(option: str) -> None:
    split = validate(compose([f"split={option}", "split.val=0.2", "experiment=debug"])).split
    assert (split.kind, split.val, split.test, split.max_samples) == (option, 0.2, 0.15, 64)


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        (["split.by=patient"], "split.by", "is for split=grouped, ordered or given; choose one"),
        (["split=grouped", "split.column=part"], "split.column", "is for split=given; choose it"),
        (["split.folds=1"], "split.folds", "must be 2 to 1000 or null"),
        (["split.folds=3", "split.fold=3"], "split.fold", "must be one of the 3 folds, from 0, got 3"),
        (["split.fold=1"], "split.fold", "one of the 1 folds"),
        (["split=grouped", "split.by=x"], "split.by", "is for tables, and sweep.data.noisy_sine.noisy_sine takes no"),
        (["split=sorted"], "split", "choose one of: given, grouped, ordered, random, stratified"),
    ],
)
def test_a_split_that_does_not_fit_the_config_is_refused(overrides: list[str], key: str, says: str) -> None:
    error = refusal(lambda: load_data(validate(compose(overrides))))
    assert error.key == key
    assert says in error.problem


def test_the_default_split_is_the_same_with_and_without_the_group() -> None:
    """A config.yaml of an earlier version has no split.kind."""
    cfg = compose(["data.n=40"])
    default = load_data(validate(cfg))
    for key in ("kind", "by", "column", "folds", "fold"):
        assert cfg.split[key] == getattr(Split(), key)
    named = load_data(validate(compose(["data.n=40", "split=random"])))
    assert_array_equal(default.splits.train.x, named.splits.train.x)


# Of a table


@pytest.fixture
def visits(tmp_path: Path) -> Callable[..., str]:
    """Writes a table of 40 visits of patients, with changes, and returns its path."""

    def write(name: str = "visits.csv", n: int = 40, **changes: Any) -> str:
        columns = {
            "age": RNG.normal(50, 10, n).round(3),
            "patient": [f"p{i % 10}" for i in range(n)],
            "day": pd.date_range("2026-01-01", periods=n).strftime("%Y-%m-%d")[::-1],
            "part": np.repeat(["train", "val", "test"], [n - 16, 8, 8]),
            "trust": np.linspace(0.5, 1.5, n),
            "y": RNG.normal(size=n),
        }
        pd.DataFrame({**columns, **changes}).to_csv(tmp_path / name, index=False)
        return str(tmp_path / name)

    return write


def loaded(path: str, *overrides: str) -> Any:
    return load_data(validate(compose(["data=table", f"data.path={path}", "data.target=y", *overrides])))


REST = "data.drop=[day,part,patient]"


def test_a_table_is_divided_by_its_column_of_groups(visits: Callable[..., str]) -> None:
    data = loaded(visits(), "split=grouped", "split.by=patient", "data.drop=[day,part]", "data.weight=trust")
    assert data.samples.features == ("age",)  # neither the groups nor the weights
    rows = assign(data.samples, Split(kind="grouped"))
    assert [len(part.x) for part in (data.splits.train, data.splits.val, data.splits.test)] == sizes(rows) == [24, 8, 8]
    assert_array_equal(data.splits.val.weights, data.samples.weights[rows.val])


def test_a_table_is_ordered_by_its_dates(visits: Callable[..., str]) -> None:
    path = visits()
    data = loaded(path, "split=ordered", "split.by=day", "data.drop=[patient,part]", "split.normalize=false")
    frame = pd.read_csv(path)
    assert data.samples.features == ("age", "trust")
    assert_array_equal(data.splits.test.x[:, 0], frame.age.to_numpy(np.float32)[5::-1])  # the file begins with the last


def test_a_table_says_itself_what_is_for_test(visits: Callable[..., str]) -> None:
    data = loaded(visits(), "split=given", "split.column=part", "data.drop=[day,patient]", "split.normalize=false")
    assert data.samples.features == ("age", "trust")
    assert_array_equal(np.sort(data.splits.test.x[:, 1]), np.linspace(0.5, 1.5, 40, dtype=np.float32)[-8:])


@pytest.mark.parametrize("has_val", [True, False])
def test_files_for_train_and_test(visits: Callable[..., str], has_val: bool) -> None:
    train, val, test = (visits(f"{name}.csv", n) for name, n in (("train", 30), ("val", 20), ("test", 20)))
    paths = f"{{train: {train}, val: {val}, test: {test}}}" if has_val else f"{{test: {test}, train: {train}}}"
    data = loaded(paths, "split=given", REST)
    found = [len(part.x) for part in (data.splits.train, data.splits.val, data.splits.test)]
    assert found == ([30, 20, 20] if has_val else [26, 4, 20])
    assert data.samples.name == "train"
    normal = loaded(paths, "split=given", REST, "split.normalize=false")
    expected = pd.read_csv(test).age.to_numpy(np.float32)
    assert_array_equal(np.sort(normal.splits.test.x[:, 0]), np.sort(expected))


def test_a_bad_cell_in_one_of_several_files_is_found(visits: Callable[..., str]) -> None:
    train, test = visits("train.csv", 30), visits("test.csv", 20, age=["old"] * 20)
    error = refusal(lambda: loaded(f"{{train: {train}, test: {test}}}", "split=given", REST))
    assert f"line 2 of '{test}', column 'age' is 'old'" in error.problem


@pytest.mark.parametrize(
    ("changes", "overrides", "key", "says"),
    [
        ({}, ["split=grouped", "split.by=who"], "split.by", "no column 'who'; the columns are: age, patient, day"),
        ({}, ["split=grouped", "split.by=y"], "split.by", "'y' is a target too"),
        ({"patient": ["p1", None] * 20}, ["split=grouped", "split.by=patient"], "split.by", "line 3, .* is empty"),
        ({}, ["split=ordered", "split.by=patient", "data.drop=[day,part]"], "split.by", "tell no order in time"),
        ({}, ["split=given", "split.column=when"], "split.column", "no column 'when'"),
        (
            {"part": ["train"] * 38 + ["trian", "test"]},
            ["split=given", "split.column=part"],
            "split.column",
            "line 40, column 'part' is 'trian', not train, val or test",
        ),
        ({}, ["data.weight=mass"], "data.weight", "no column 'mass'"),
        (
            {"trust": [1.0] * 39 + [-2.0]},
            ["data.weight=trust"],
            "data.weight",
            "line 41, column 'trust' is -2, below 0",
        ),
    ],
)
def test_columns_that_cannot_divide_a_table_are_refused(
    visits: Callable[..., str], changes: dict[str, Any], overrides: list[str], key: str, says: str
) -> None:
    error = refusal(lambda: loaded(visits(**changes), *overrides))
    assert error.key == key
    assert re.search(says, error.problem), error.problem


@pytest.mark.parametrize("paths", ["{train: a.csv}", "{train: a.csv, test: b.csv, dev: c.csv}"])
def test_files_of_unknown_splits_are_refused(paths: str) -> None:
    error = refusal(lambda: loaded(paths, "split=given"))
    assert (error.key, "must name files for train, test and perhaps val" in error.problem) == ("data.path", True)


def test_files_with_other_columns_are_refused(visits: Callable[..., str]) -> None:
    train, test = visits("train.csv"), visits("test.csv", height=np.arange(40) ** 2)
    error = refusal(lambda: loaded(f"{{train: {train}, test: {test}}}", "split=given"))
    assert "column 'height' is in only one of" in error.problem


def test_files_of_splits_need_the_given_split(visits: Callable[..., str]) -> None:
    error = refusal(lambda: loaded(f"{{train: {visits('a.csv')}, test: {visits('b.csv')}}}", REST))
    assert (error.key, "set split=given" in error.problem) == ("split", True)


def test_the_folds_of_a_table_are_read_once(visits: Callable[..., str]) -> None:
    path, load = visits(), RememberedData()
    arguments = ["data=table", f"data.path={path}", "data.target=y", REST, "split.folds=3"]
    first = load(validate(compose(arguments)))
    Path(path).unlink()
    second = load(validate(compose([*arguments, "split.fold=1"])))
    assert_array_equal(first.samples.x, second.samples.x)
    assert not np.array_equal(first.splits.val.y, second.splits.val.y)
    assert_array_equal(table(visits(), "y", drop=["day", "part", "patient"]).y.shape, (40, 1))
