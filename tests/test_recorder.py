"""sweep/tracking/recorder.py: which points of a trial's progress are kept."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweep.tracking import journal
from sweep.tracking.journal import Journal
from sweep.tracking.recorder import Recorder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


@pytest.fixture
def a_journal(path: Path) -> Iterator[Journal]:
    made = Journal(path)
    yield made
    made.close()


def tell(recorder: Recorder, n_updates: int, epochs: int) -> None:
    """A whole trial's progress; the loss at step n is n, the learning rate n / 10."""
    for epoch in range(epochs):
        steps = range(epoch * n_updates + 1, (epoch + 1) * n_updates + 1)
        recorder.steps(steps[0], [float(s) for s in steps], [s / 10 for s in steps])
        recorder.epoch(epoch + 1, {"train/loss": 1.0, "val/loss": 2.0})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n_updates=st.integers(1, 40), epochs=st.integers(1, 6), step_points=st.integers(1, 60))
def test_a_step_curve_is_bounded_evenly_spaced_and_begins_at_the_first_step(
    n_updates: int, epochs: int, step_points: int, path: Path
) -> None:
    path.unlink(missing_ok=True)
    total = n_updates * epochs
    made = Journal(path)
    tell(Recorder(made, total, step_points, None), n_updates, epochs)
    made.close()
    curves = journal.curves(path)
    steps = curves["step/loss"].steps.tolist()
    assert len(steps) <= step_points
    stride = steps[1] - steps[0] if len(steps) > 1 else total
    assert steps == list(range(1, total + 1, stride)), "also across the epochs"
    assert stride == 1 or len(range(1, total + 1, stride - 1)) > step_points, "no thinner than it has to be"
    assert curves["step/loss"].values.tolist() == steps
    assert curves["step/lr"].values.tolist() == [s / 10 for s in steps]
    assert curves["val/loss"].steps.tolist() == list(range(1, epochs + 1))


def test_step_points_0_keeps_no_step_curve(path: Path, a_journal: Journal) -> None:
    tell(Recorder(a_journal, 20, 0, None), 10, 2)
    assert set(journal.curves(path)) == {"train/loss", "val/loss"}


def test_an_epoch_is_on_file_and_shown_before_the_study_hears_of_it(path: Path, a_journal: Journal) -> None:
    class Pruned(Exception):
        pass

    told = []

    def report(epoch: int, metrics: Mapping[str, float]) -> None:
        told.append((epoch, metrics["val/loss"], journal.curves(path)["val/loss"].values.tolist(), list(shown)))
        raise Pruned

    recorder, shown = Recorder(a_journal, 10, 100, report), []
    recorder.show = lambda epoch, metrics: shown.append(epoch)
    recorder.steps(1, [0.9, 0.8], [0.1, 0.1])
    with pytest.raises(Pruned):
        recorder.epoch(1, {"train/loss": 0.85, "val/loss": 0.7})
    assert told == [(1, 0.7, [0.7], [1])]
    assert journal.curves(path)["step/loss"].values.tolist() == [0.9, 0.8]


def test_steps_of_an_epoch_that_does_not_end_are_kept(path: Path, a_journal: Journal) -> None:
    recorder = Recorder(a_journal, 10, 100, None)
    recorder.steps(1, [0.9, 0.8], [0.1, 0.1])  # the epoch diverges at its third update
    assert journal.curves(path)["step/loss"].steps.tolist() == [1, 2]
