"""Numbers stay what they were: 20 configurations come to the curves that an earlier commit recorded.

tests/reference/curves.json is written by tests/campaigns/record_reference.py. Processors round differently, so
they are compared to 4 digits. That a resumed run equals an uninterrupted one bit by bit is tested in test_resume.py.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from campaigns.record_reference import KINDS, N_TRIALS, trials

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "curves.json").read_text())


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_trials_come_to_the_recorded_curves(kind: str, tmp_path: Path) -> None:
    found = trials(tmp_path, kind)
    assert len(found) == N_TRIALS
    assert_same(found, REFERENCE[kind])


def test_the_recorded_curves_of_packed_trials_are_those_of_trials_in_turn() -> None:
    assert_same(REFERENCE["packed"], REFERENCE["sequential"])


def assert_same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    for number, (mine, theirs) in enumerate(zip(found, wanted, strict=True)):
        assert mine["params"] == theirs["params"], number
        assert mine["value"] == pytest.approx(theirs["value"], rel=1e-4), number
        assert mine["curves"].keys() == theirs["curves"].keys()
        for name, (steps, values) in theirs["curves"].items():
            assert mine["curves"][name][0] == steps, (number, name)
            assert mine["curves"][name][1] == pytest.approx(values, rel=1e-4, abs=1e-6), (number, name)
