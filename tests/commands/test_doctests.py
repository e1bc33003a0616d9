"""The examples in the docstrings of the Python interface, run as they stand, one after another in one folder."""

import doctest
import importlib
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

MODULES = [
    *("sweep.api", "sweep.manage", "sweep.comparison.comparison", "sweep.config.composition"),
    *("sweep.study.study_result", "sweep.study.trial_result", "sweep.study.handle"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module_run(module: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    failed, attempted = doctest.testmod(importlib.import_module(module), raise_on_error=False)
    assert attempted > 0
    assert failed == 0
