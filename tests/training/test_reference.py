"""Numbers stay what they were: 20 configurations come to the curves that an earlier commit recorded.

tests/reference/curves.json is written by tests/campaigns/record_reference.py. Processors round differently, so curves
are compared with it to 4 digits. A trial that was stopped and resumed equals one that was not bit by bit.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from campaigns.record_reference import CONFIG, KINDS, N_TRIALS, trials

from sweep import compose
from sweep.config.schema import validate
from sweep.testing import TrialInMemory
from sweep.trial.builtin import BuiltInTraining
from sweep.trial.remembered import RememberedData
from sweep.utils.errors import Interrupted

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "curves.json").read_text())

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Found]:
    """Searches once for each kind."""
    by_kind: dict[str, Found] = {}

    def searched(kind: str) -> Found:
        if kind not in by_kind:
            by_kind[kind] = trials(tmp_path_factory.mktemp(kind), kind)
        return by_kind[kind]

    return searched


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_trials_come_to_the_recorded_curves(kind: str, found: Callable[[str], Found]) -> None:
    assert len(found(kind)) == N_TRIALS
    assert_same(found(kind), REFERENCE[kind])


@pytest.mark.process
@pytest.mark.slow
def test_resumed_trials_come_to_the_same_curves_bit_by_bit(found: Callable[[str], Found], tmp_path: Path) -> None:
    load = RememberedData()
    for number, trial in enumerate(found("sequential")):
        values = [f"{key.partition('[')[0]}={value}" for key, value in trial["params"].items()]
        train = BuiltInTraining(validate(compose([*CONFIG, *values])), load)
        folder = tmp_path / str(number)
        folder.mkdir()
        stopped = TrialInMemory(folder, number=number, stop_at=1 + number % 2)
        with pytest.raises(Interrupted):
            train(stopped)
        resumed = TrialInMemory(folder, number=number)
        assert resumed.epoch == 1 + number % 2
        train(resumed)
        reports = stopped.reports | resumed.reports
        curves = {name: [[*reports], [metrics[name] for metrics in reports.values()]] for name in reports[1]}
        assert curves == {name: [*curve] for name, curve in trial["curves"].items() if name in curves}, number
        assert curves.keys() == REFERENCE["sequential"][number]["curves"].keys()


def test_the_recorded_curves_of_packed_trials_are_those_of_trials_in_turn() -> None:
    assert_same(REFERENCE["packed"], REFERENCE["sequential"])


def assert_same(found: Found, wanted: Found) -> None:
    for number, (mine, theirs) in enumerate(zip(found, wanted, strict=True)):
        assert mine["params"] == theirs["params"], number
        assert mine["value"] == pytest.approx(theirs["value"], rel=1e-4), number
        assert mine["curves"].keys() == theirs["curves"].keys()
        for name, (steps, values) in theirs["curves"].items():
            assert mine["curves"][name][0] == steps, (number, name)
            assert mine["curves"][name][1] == pytest.approx(values, rel=1e-4, abs=1e-6), (number, name)
