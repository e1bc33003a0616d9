"""sweep/config/overrides.py: what is printed may be pasted into a shell, whatever the names are."""

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.config.composition import compose
from sweep.config.overrides import spelled
from sweep.search.ranges import distribution_of, options_of, parse_override
from sweep.tracking.provenance import from_study_command, report_command, resume_command, sync_command
from sweep.tracking.store import Store
from sweep.trial.summary import where_to_look

ODD = [
    "a b",
    "it's",
    'say "x"',
    "a=b",
    "a,b",
    "$HOME",
    "${seed}",
    "#1",
    "größe",
    "-x",
    "~",
    "a\\",
    "null",
    "1e3",
    "[x]",
]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12))
def test_a_text_is_read_back_by_hydra_as_it_was(text: str):
    assert parse_override(f"key={spelled(text)}", "key").value() == text


@given(
    st.recursive(st.none() | st.booleans() | st.integers(), lambda v: st.lists(v) | st.dictionaries(st.just("a"), v))
)
def test_so_is_any_other_value(value: object):
    assert parse_override(f"key={spelled(value)}", "key").value() == value


@pytest.mark.parametrize("name", ODD)
def test_a_printed_command_means_the_folder_or_the_study_that_it_was_made_for(name: str):
    folder = Path("/tmp") / name
    means = {"resume": str(folder)}, {"from_study": name, "output_dir": str(folder)}
    for line, meant in zip((resume_command(folder), from_study_command(name, folder)), means, strict=True):
        python, m, module, *overrides = shlex.split(line)
        assert (python, m, module) == ("python", "-m", "sweep.run")
        config = compose(overrides)
        assert {key: config[key] for key in meant} == meant
    assert shlex.split(sync_command(folder, Store(None, None)))[3:] == [str(folder)]
    assert shlex.split(report_command(name, folder))[-1] == name


def test_quoted_options_are_the_options_that_they_name():
    override = parse_override("optimizer=\"sgd\",'adam',rmsprop", "optimizer")
    options = options_of("optimizer", distribution_of("optimizer", override))
    assert list(options.choices) == ["sgd", "adam", "rmsprop"]


@pytest.mark.parametrize("uri", ["sqlite:///outputs/mlflow.db", "sqlite:////a b/it's $HOME (1)/mlflow.db"])
def test_the_printed_command_that_shows_runs_is_of_their_store(uri: str):
    _, _, printed = where_to_look("runs", uri).partition(":  ")
    assert shlex.split(printed) == ["mlflow", "ui", "--backend-store-uri", uri]
