"""Tables as their owners write them: other separators, encodings, indices, classes of any name."""

import csv
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from omegaconf import OmegaConf
from processes import quick

from sweep import ConfigError, Samples, compose
from sweep.data import csv_file
from sweep.data.csv_file import CsvFile, Dialect
from sweep.data.table import table
from sweep.data.table_file import read_table

CLASSES = {"task": "classification"}


@pytest.fixture
def read(tmp_path: Path):
    """Reads a CSV file of that content, with `y` for its target."""

    def made(content: str | bytes, **arguments: Any) -> Samples:
        path = tmp_path / "mine.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return table(str(path), **{"target": "y", **arguments})

    return made


@pytest.fixture
def refusal(read):
    def message(content: str | bytes, **arguments: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            read(content, **arguments)
        assert str(caught.value).isprintable()  # one line too
        return str(caught.value)

    return message


# Columns that say which row it is


def sorted_frame(n: int = 40) -> pd.DataFrame:
    x = np.sort(np.random.default_rng(0).normal(size=n))
    return pd.DataFrame({"x": x, "y": 2 * x})


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_an_index_that_pandas_wrote_is_no_feature_and_a_warning_names_it(kind: str, tmp_path: Path, caplog):
    path = tmp_path / f"mine.{kind}"
    sorted_frame().to_csv(path.with_suffix(".csv"))
    if kind == "parquet":
        pd.read_csv(path.with_suffix(".csv")).to_parquet(path)
    assert table(str(path), "y").features == ("x",)
    (warning,) = caplog.messages
    assert "data.features" in warning
    assert "'Unnamed: 0' (unnamed)" in warning
    caplog.clear()
    assert table(str(path), "y", features=["Unnamed: 0", "x"]).features == ("Unnamed: 0", "x")
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("name", "values", "is_left_out"),
    [
        ("n", [0, 1, 2, 3, 4], True),
        ("n", [1.0, 2.0, 3.0, 4.0, 5.0], True),
        ("n", [50, 40, 30, 20, 10], True),
        ("Id", [3, 4, 8, 9, 20], True),  # of rows that were chosen from more
        ("age", [3, 4, 8, 9, 20], False),
        ("id", [3, 8, 4, 9, 20], False),
        ("t", [0.0, 0.1, 0.2, 0.3, 0.4], False),
        ("Unnamed: 3", [0.5, 0.1, 0.2, 0.9, 0.4], True),
        ("__index_level_0__", [1, 2, 4, 5, 9], True),
    ],
)
def test_columns_that_count_rows_are_left_out(name: str, values: list[float], is_left_out: bool, read, caplog):
    frame = pd.DataFrame({name: values, "x": [3, 1, 2, 5, 4], "y": [1, 2, 4, 8, 16]})
    assert read(frame.to_csv(index=False)).features == (("x",) if is_left_out else (name, "x"))
    assert [name in message for message in caplog.messages] == [True] * is_left_out


def test_a_table_of_nothing_but_an_index_says_how_to_train_with_it(read, refusal):
    text = "n,y\n" + "".join(f"{i},{i * i}\n" for i in range(5))
    assert "no column is left but 'n' (counts rows)" in refusal(text)
    assert read(text, features=["n"]).features == ("n",)


# Classes


def test_a_class_may_be_called_what_pandas_takes_for_missing(read):
    made = read("a,y\n1,NA\n4,None\n2,nan\n7,NA\n", **CLASSES)
    assert (made.classes, made.y.tolist()) == (("NA", "None", "nan"), [0, 1, 2, 0])


def test_an_empty_class_is_named_with_its_line(refusal):
    assert "line 3, column 'y' is empty" in refusal("a,y\n1,NA\n4, \n2,nan\n", **CLASSES)
    assert "line 2, column 'y' is empty" in refusal("a,y\n1,NA\n4,u\n", read={"na_values": ["NA"]}, **CLASSES)


def test_numbers_and_a_text_in_a_long_column_of_classes_are_classes_and_a_warning(read, caplog):
    n = 70_000  # pandas reads so many in several portions, and each has a type of its own
    rows = [f"{i % 7},{i % 3 + 9}\n" for i in range(n)]
    rows[n // 2] = "1,other\n"
    made = read("a,y\n" + "".join(rows), **CLASSES)
    assert made.classes == ("9", "10", "11", "other")
    assert np.bincount(made.y)[3] == 1
    (warning,) = caplog.messages
    assert f"such as 'other' in line {n // 2 + 2}" in warning


def test_classes_that_differ_by_blanks_or_capitals_alone_are_warned_of(read, caplog):
    assert read("a,y\n1,yes\n4,yes \n2,no\n7,No\n", **CLASSES).classes == ("No", "no", "yes", "yes ")
    assert ["'No' and 'no'" in caplog.messages[0], "'yes' and 'yes '" in caplog.messages[1]] == [True, True]


def test_a_number_is_one_class_however_it_is_written(read):
    made = read("a,y\n1,1\n4,01\n2,1.0\n7,9007199254740993\n3,9007199254740992\n", **CLASSES)
    assert made.y.tolist() == [0, 0, 0, 2, 1]
    assert made.classes == ("1", "9007199254740992", "9007199254740993")


# How the file is written


WRITTEN = {
    "semicolons": ("a;b;y\n1;2,5;3\n4;0,5;6\n", {"sep": ";", "decimal": ","}),
    "semicolons, without commas": ("a;b;y\n1;2.5;3\n4;0.5;6\n", {"sep": ";"}),
    "tabs": ("a\tb\ty\n1\t2.5\t3\n4\t0.5\t6\n", {"sep": "\\t"}),
    "bars": ("a|b|y\n1|2.5|3\n4|0.5|6\n", {"sep": "|"}),
    "blanks": ("a  b   y\n1  2.5 3\n4  0.5 6\n", {"sep": r"\s+"}),
    "latin-1": ("a,b,y,größe\n1,2.5,3,0\n4,0.5,6,0\n".encode("latin-1"), {"encoding": "latin-1"}),
    "utf-16": ("a,b,y\n1,2.5,3\n4,0.5,6\n".encode("utf-16"), {"encoding": "utf-16"}),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_file_written_in_another_way_is_read_by_the_override_that_the_error_prints(kind: str, read, refusal):
    content, expected = WRITTEN[kind]
    message = refusal(content)
    assert message.startswith("data.read: ")
    assert kind.partition(",")[0] in message
    (printed,) = [word for word in shlex.split(message.partition("; set ")[2]) if word.startswith("data.read=")]
    node: Any = OmegaConf.to_container(compose(["data=table", printed.rstrip(",")]).data)
    assert node["read"] == expected
    assert_array_equal(read(content, features=["a", "b"], read=node["read"]).x, [[1, 2.5], [4, 0.5]])


def test_commas_before_decimals_get_the_whole_override(refusal):
    message = refusal("a;y\n1,5;1\n2,5;2\n", read={"sep": ";", "encoding": "latin-1"})
    assert """line 2, column 'a' is '1,5'""" in message
    assert """set 'data.read={sep:";",decimal:",",encoding:latin-1}'""" in message


@pytest.mark.parametrize(
    ("content", "x"),
    [
        (b"\xef\xbb\xbfa,y\r\n3,1\r\n5,2\r\n", [[3], [5]]),
        (b'\xef\xbb\xbf"a","y"\n3,1\n5,2\n', [[3], [5]]),
        (b"a , y \n3 , 1 \n5 , 2 \n", [[3], [5]]),
        (b"a,y\r3,1\r5,2\r", [[3], [5]]),
        (b'"a\nb",y\n\n3,1\n   \n5,2\n', [[3], [5]]),
        (b"\n\na,y\n3,1\n5,2", [[3], [5]]),
    ],
)
def test_marks_ends_of_lines_and_blanks_do_not_matter(content: bytes, x: list[list[float]], read):
    assert_array_equal(read(content).x, x)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_an_error_names_the_line_of_the_file_also_where_cells_hold_several(newline: str, refusal):
    lines = ['"a', 'b",y', '3,"1"', "", '5,"bad', 'one"', "6,2"]
    assert "line 5, column 'y' is 'bad\\" in refusal(newline.join(lines))


@pytest.mark.parametrize(
    ("content", "arguments", "says"),
    [
        (b"\xef\xbb\xbf", {}, "is empty"),
        (b",,\n1,2,3\n", {}, "names no column"),
        (b"a,a ,y\n1,2,3\n", {}, "two columns of"),
        (b'a,y\n1,2\n"3,4\n5,6\n', {}, "a quotation mark in line 3 of"),
        (b"a,y\n1,2\n3,4,5\n", {}, "line 3 of"),
        (b"a,y\n1,\x002\n", {}, "is not text"),
        (b"PAR1....", {}, "is a Parquet file; name it .parquet"),
        (b"PK\x03\x04....", {}, "is an Excel or zip file"),
        (b"a,y\n1," + b"z" * 300_000 + b"\n", {}, "line 2, column 'y' is 'zzzz"),
        (b"a,y\n1,\x1b[31mred\n", {}, "is '\\x1b[31mred'"),
        (b"a,y\n1,2\n-inf,4\n", {}, "line 3, column 'a' is '-inf'"),
        (b"# mine\na,y\n# more\n1,2\n4,bad\n", {"read": {"comment": "#"}}, "line 5, column 'y' is 'bad'"),
        (b"mine\n\na,y\n1,2\n4,bad\n", {"read": {"skiprows": 2}}, "line 5, column 'y' is 'bad'"),
        (b"a,y\n1,2\n4,?\n", {"read": {"na_values": "?"}}, "line 3, column 'y' is empty or NaN"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(content: bytes, arguments: dict[str, Any], says: str, refusal):
    assert says in refusal(content, **arguments)


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"converters": {"a": "eval"}}, "data.read.converters"),
        ({"engine": "python"}, "data.read.engine"),
        ({"sep": ";;"}, "data.read.sep"),
        ({"sep": 1}, "data.read.sep"),
        ({"decimal": ","}, "data.read.decimal"),
        ({"encoding": "nope"}, "data.read.encoding"),
        ({"encoding": "hex"}, "data.read.encoding"),
        ({"skiprows": -1}, "data.read.skiprows"),
        ({"na_values": {"a": 1}}, "data.read.na_values"),
        ("x", "data.read"),
        ([1], "data.read"),
    ],
)
def test_a_way_of_reading_that_there_is_not_is_refused(given: Any, key: str, refusal):
    assert refusal("a,y\n1,2\n3,4\n", read=given or 0).startswith(f"{key}: ")


def test_parquet_takes_no_way_of_reading_csv(tmp_path: Path):
    sorted_frame().to_parquet(tmp_path / "mine.parquet")
    with pytest.raises(ConfigError, match=r"data\.read: is for CSV files"):
        table(str(tmp_path / "mine.parquet"), "y", read={"sep": ";"})


@settings(max_examples=60)
@given(
    head=st.sampled_from([b"a,y\n", b"a,b,y\n", b"a;y\n", b"y,a\r\n", b""]),
    body=st.one_of(
        st.binary(max_size=60),
        st.text(alphabet='0123ay,;\t\n\r" .-é', max_size=60).map(str.encode),
    ),
    task=st.sampled_from(["regression", "classification"]),
)
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_line(tmp_path_factory, head: bytes, body: bytes, task: Any):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(head + body)
    message = ""
    try:
        assert len(table(str(path), "y", task=task).x) > 0
    except ConfigError as error:
        message = str(error)
    assert message.replace("…", "").isprintable()


@settings(max_examples=40)
@given(cells=st.lists(st.text(alphabet='ab,"\n\r ', min_size=1, max_size=5), min_size=1, max_size=6))
def test_rows_are_where_they_are_said_to_be(tmp_path_factory, cells: list[str]):
    path = tmp_path_factory.getbasetemp() / "lines.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *([c, f"<{i}>"] for i, c in enumerate(cells))])
    lines = path.read_bytes().decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")
    ends = [n for n, line in enumerate(lines, 1) if "<" in line]
    begins = [2, *(end + 1 for end in ends[:-1])]
    places = [CsvFile(path, Dialect()).place(i, len(cells)) for i in range(len(cells))]
    assert places == [f"line {begin}" for begin in begins]


@pytest.mark.process
def test_a_warning_about_the_data_does_not_make_the_folder_of_a_new_run_a_used_one(tmp_path: Path):
    rows = "".join(f"{i},{i % 7},{i % 5},{i % 3}\n" for i in range(60))
    (tmp_path / "t.csv").write_text(f",a,b,y\n{rows}")
    tiny = ("model.widths=[4]", "trainer.epochs=1", "trainer.batch_size=8", "tracking=off")
    done = quick(tmp_path, "data=table", "data.path=t.csv", "data.target=y", *tiny)
    assert done.returncode == 0, done.stderr
    assert "left out 'Unnamed: 0'" in done.stdout + done.stderr


# Large files


@pytest.mark.parametrize(
    "cells",
    [
        {"a": lambda i: i, "b": lambda i: i / 4},
        {"a": lambda i: i if i < 2500 else i / 4, "b": lambda i: 7},  # whole numbers first, then fractions
        {"a": lambda i: "" if i > 1500 else i, "b": lambda i: ""},  # a chunk of whole numbers, then empty cells
        {"a": lambda i: 2**53 + i if i < 1500 else 0.5, "b": lambda i: i},  # whole numbers that float64 rounds
        {"a": lambda i: "x" if i == 2999 else i, "b": lambda i: i},  # texts in the last chunk only
        {"a": lambda i: i % 2 == 0 if i < 1500 else i, "b": lambda i: i % 3 == 0},
        {"a": lambda i: f"n{i}", "b": lambda i: 2**64 - 1 if i > 2000 else -i},
    ],
)
def test_a_file_that_is_read_in_chunks_gives_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: dict[str, Callable[[int], Any]]
) -> None:
    path = tmp_path / "large.csv"
    rows = [",".join(str(cell(i)) for cell in cells.values()) for i in range(3000)]
    path.write_text("\n".join([",".join(cells), *rows, ""]))
    file = CsvFile(path, Dialect())
    at_once = file.read([], [])
    monkeypatch.setattr(csv_file, "_CHUNK_CELLS", 0)  # chunks of 1000 rows
    in_chunks = file.read([], [])
    pd.testing.assert_frame_equal(in_chunks, at_once)
    as_text = file.read([], ["a"])
    assert as_text["a"].tolist() == [row.split(",")[0] for row in rows]


def test_a_bad_line_in_a_later_chunk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.csv"
    path.write_text("a,y\n" + "".join(f"{i},{i * i}{',7' if i == 2500 else ''}\n" for i in range(3000)))
    monkeypatch.setattr(csv_file, "_CHUNK_CELLS", 0)
    with pytest.raises(ConfigError, match=r"line 2502 of .* has 3 cells, more than its header, which has 2"):
        CsvFile(path, Dialect()).read(["y"], [])


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
        pd.DataFrame({"a": [1, 2], "b": [0.5, None]}, index=pd.Index(["u", "v"], name="who")),
        pd.DataFrame({"a": [1, 2], "k": [3, 4]}).set_index("k", append=True),
        pd.DataFrame({0: [1, 2], 1: [True, False]}),
        pd.DataFrame({"a.b": [1, 2], "a": [3, 4]}),
        pd.DataFrame({"a": [{"b": 1}, {"b": 2}], "d": pd.date_range("2026-01-01", periods=2, tz="UTC")}),
        pd.DataFrame({"c": pd.Categorical(["u", "v"]), "n": pd.array([1, None], dtype="Int64")}),
    ],
)
def test_a_parquet_file_read_by_column_gives_the_same_table(tmp_path: Path, frame: pd.DataFrame) -> None:
    path = tmp_path / "t.parquet"
    frame.to_parquet(path)
    at_once = pd.read_parquet(path).reset_index(drop=True)
    at_once.columns = at_once.columns.map(str)
    pd.testing.assert_frame_equal(read_table(str(path), None, [], []).frame, at_once)
