"""sweep/trial/remembered.py: data that are loaded once, and held once by several workers."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal
from processes import quick

from sweep import ConfigError, compose
from sweep.config.schema import Config, validate
from sweep.storage.storage import open_storage
from sweep.tracking.folders import StudyFolder
from sweep.trial.prepare import Data
from sweep.trial.remembered import RememberedData
from sweep.utils import shared_arrays


def sent(value: Any) -> Any:
    """What another process would get."""
    return pickle.loads(pickle.dumps(value))


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small arrays are shared too."""
    monkeypatch.setattr(shared_arrays, "_FEWEST_BYTES", 1)
    monkeypatch.setattr(shared_arrays, "_MOST_PICKLED", 1e9)


def table(path: Path) -> Config:
    rng = np.random.default_rng(0)
    pd.DataFrame({"a": rng.normal(size=40), "b": ["x", "y"] * 20, "y": rng.normal(size=40)}).to_csv(path, index=False)
    return config_of(path)


def config_of(path: Path, *overrides: str) -> Config:
    own = ("data=table", f"data.path={path}", "data.target=y", "data.categorical=auto")
    return validate(compose([*own, *overrides]))


def assert_same(one: Data, other: Data) -> None:
    assert one.description == other.description
    assert one.splits.preprocessing == other.splits.preprocessing
    assert_array_equal(one.samples.x, other.samples.x)
    for part in ("train", "val", "test"):
        for name in ("x", "y"):
            mine, yours = (getattr(getattr(data.splits, part), name) for data in (one, other))
            assert mine.tobytes() == yours.tobytes()
            assert mine.dtype == yours.dtype


@pytest.mark.usefixtures("any_size")
def test_data_are_not_loaded_again_where_they_are_shared(tmp_path: Path) -> None:
    config, load = table(tmp_path / "t.csv"), RememberedData()
    before, fold = load(config), config_of(tmp_path / "t.csv", "split.folds=3", "split.fold=1")
    with load.shared():
        (tmp_path / "t.csv").unlink()
        worker = sent(load)
        assert_same(worker(config), before)
        assert_same(worker(fold), load(fold))  # folds are other splits of the same samples
        assert_same(load(config), before)  # the process that shares them has mapped them too
        late = sent(load)
    assert_same(load(config), before)
    for other in (late, sent(load)):  # it has ended before they looked: they load their own
        with pytest.raises(ConfigError, match="no file"):
            other(config)


@pytest.mark.usefixtures("any_size")
def test_other_data_are_loaded_where_some_are_shared(tmp_path: Path) -> None:
    load, other = RememberedData(), table(tmp_path / "other.csv")
    load(table(tmp_path / "t.csv"))
    with load.shared():
        assert_same(sent(load)(other), RememberedData()(other))


def test_a_path_is_the_same_data_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, complete = RememberedData(), table(tmp_path / "t.csv")
    monkeypatch.chdir(tmp_path)
    assert load(complete) is load(config_of(Path("t.csv")))
    files = ("split=given", "data.path={train: t.csv, val: t.csv, test: ./t.csv}")
    given = load(config_of(Path("t.csv"), *files))
    there = f"data.path={{train: {tmp_path}/t.csv, val: {tmp_path}/t.csv, test: {tmp_path}/t.csv}}"
    assert load(config_of(Path("t.csv"), files[0], there)) is given


def test_small_data_are_loaded_by_each(tmp_path: Path) -> None:
    config, load = table(tmp_path / "t.csv"), RememberedData()
    load(config)
    with load.shared():
        (tmp_path / "t.csv").unlink()
        with pytest.raises(ConfigError, match="no file"):
            sent(load)(config)


WIDE = """
import numpy as np
from sweep import Samples

def wide(log):
    with open(log, "a") as file:
        file.write("made\\n")
    x = np.random.default_rng(0).normal(size=(2000, 2100))
    return Samples(name="wide", task="regression", x=x, y=x[:, :1])
"""


@pytest.mark.process
def test_two_workers_load_the_data_once_and_train_as_one_does(tmp_path: Path) -> None:
    """Large data of few samples, which say in a file how often they were made. Nothing is left when the study ends."""
    (tmp_path / "mine.py").write_text(WIDE)
    target = ("data._target_=mine.wide", f"+data.log={tmp_path}/log")
    others = (f"~data.{key}" for key in compose([]).data if key != "_target_")
    study = ("-m", *target, *others, "model=linear", "trainer.epochs=2", "trainer.batch_size=500", "tracking=off")
    search = ("optimizer.lr=1e-3,1e-2", "hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=none", "scheduler=constant")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    found = []
    for n_jobs in (2, 1):
        own = ("hydra.sweeper.study_name=s", f"hydra.sweeper.n_jobs={n_jobs}", f"output_dir={tmp_path}/{n_jobs}")
        done = quick(
            *(tmp_path, *study, *search, *own),
            PYTHONPATH=str(tmp_path),
            SWEEP_TARGETS="mine.*",
            TMPDIR=str(temporary),
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / "log").read_text() == "made\n"
        (tmp_path / "log").unlink()
        folder = StudyFolder(tmp_path / str(n_jobs) / "studies" / "s")
        storage = open_storage(None, folder)
        found.append([t.value for t in storage.get_all_trials(storage.get_study_id_from_name("s"))])
    assert found[0] == found[1]
    assert list(temporary.rglob("*.*")) == []
