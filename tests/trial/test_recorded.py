"""sweep/trial/recorded.py: what a training function says of its trial, and what becomes of it."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, RecordingTrial, make_loop
from hypothesis import given
from hypothesis import strategies as st

from sweep import compose
from sweep.config.schema import validate
from sweep.tracking import journal
from sweep.tracking.chunks import artifact_files
from sweep.tracking.folders import RunFolder
from sweep.tracking.run_recorder import Membership
from sweep.training.state import stride
from sweep.training.trial import Trial
from sweep.trial.recorded import RecordedTrial
from sweep.utils.errors import Damaged, Diverged, Interrupted, Pruned
from sweep.utils.signals import StopRequest

MakeTrial = Callable[..., RecordedTrial]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


@pytest.fixture
def make_trial(run: RunFolder, tmp_path: Path) -> Iterator[MakeTrial]:
    """Makes the trial as a process of its own would."""
    made: list[RecordedTrial] = []

    def make(*overrides: str, kind: type[RecordedTrial] = RecordedTrial, **more: Any) -> RecordedTrial:
        config = validate(compose([*SMALL, "tracking=off", f"output_dir={tmp_path}", *overrides]))
        made.append(kind(run, config, output_dir=tmp_path, store=None, **more))
        return made[-1]

    yield make
    for trial in made:
        trial.__exit__()


def curve(run: RunFolder, name: str) -> dict[int, float]:
    found = journal.curves(run.journal)[name]
    return dict(zip(found.steps.tolist(), found.values.tolist(), strict=True))


@given(n_steps=st.integers(1, 240), most=st.integers(1, 60))
def test_a_thinned_curve_is_bounded_and_no_thinner_than_it_has_to_be(n_steps: int, most: int) -> None:
    every = stride(n_steps, most)
    assert len(range(1, n_steps + 1, every)) <= most
    assert every == 1 or len(range(1, n_steps + 1, every - 1)) > most


def test_step_curves_are_evenly_spaced_across_epochs_from_the_first_step_on() -> None:
    complete, observed = RecordingTrial(), RecordingTrial()
    make_loop().run(complete)
    loop = make_loop()
    loop._stride = stride(20, 7)
    loop.run(observed)
    assert list(observed.points) == list(range(1, 21, 3)), "of 5 updates an epoch"
    assert observed.points == {step: complete.points[step] for step in observed.points}


@pytest.mark.process
def test_step_points_0_keeps_no_step_curve(small_trial: Callable[..., Any]) -> None:
    assert not any(name.startswith("step/") for name in small_trial("tracking.step_points=0").history)


def test_an_epoch_is_on_file_before_the_study_is_asked(run: RunFolder, make_trial: MakeTrial) -> None:
    seen = []

    def report(epoch: int, metrics: Mapping[str, float]) -> None:
        seen.append((epoch, metrics["val/loss"], curve(run, "val/loss")))
        raise Pruned(epoch)

    trial = make_trial(report=report)
    trial.log({"step/loss": [0.9, 0.8]}, range(1, 3))
    with pytest.raises(Pruned):
        trial.report(1, {"val/loss": 0.7})
    assert seen == [(1, 0.7, {1: 0.7})]
    assert curve(run, "step/loss") == {1: 0.9, 2: 0.8}


def train(trial: Trial, n_epochs: int = 5, stop: Callable[[int], object] = lambda epoch: None) -> list[int]:
    """A training function of a user's: its weight is the sum of the epochs."""
    state = trial.restore()
    weight = torch.zeros(()) if state is None else state["weight"]
    trained = []
    for epoch in range(trial.epoch + 1, n_epochs + 1):
        weight = weight + epoch
        trained.append(epoch)
        stop(epoch)
        trial.log({"step/weight": weight.item()}, epoch)
        trial.report(epoch, {"val/loss": 1 / epoch})
        if trial.should_save:
            trial.save(epoch, {"weight": weight})
    trial.finish({"test/weight": weight.item()})
    return trained


def send(signum: int) -> Callable[[int], object]:
    """A signal to this process in the third epoch."""
    return lambda epoch: epoch == 3 and signal.raise_signal(signum)


def test_a_stopped_function_goes_on_from_what_it_saved(run: RunFolder, make_trial: MakeTrial) -> None:
    with make_trial() as first:
        with pytest.raises(Interrupted) as caught:
            train(first, stop=send(signal.SIGTERM))
        first.end(caught.value)
    assert caught.value.signum == signal.SIGTERM
    assert journal.status(run.journal) == "KILLED"
    second = make_trial()
    with second:
        assert train(second) == [4, 5]
        second.end()
    assert journal.status(run.journal) == "FINISHED"
    assert curve(run, "val/loss") == {epoch: 1 / epoch for epoch in range(1, 6)}
    end = journal.last_end(run.journal)
    assert end is not None
    assert end["values"]["test/weight"] == [15.0]


def test_a_function_that_never_saves_is_stopped_at_its_second_report(run: RunFolder, make_trial: MakeTrial) -> None:
    def never_saves(trial: Trial) -> None:
        for epoch in range(1, 6):
            send(signal.SIGTERM)(epoch)
            trial.report(epoch, {"val/loss": 1.0})

    with make_trial() as trial, pytest.raises(Interrupted):
        never_saves(trial)
    assert list(curve(run, "val/loss")) == [1, 2, 3, 4]


def test_the_first_report_of_an_epoch_stands(run: RunFolder, make_trial: MakeTrial) -> None:
    for value in (0.5, 0.25):  # the second time in another process, which restores nothing
        with make_trial() as trial:
            trial.report(1, {"val/loss": value})
    assert curve(run, "val/loss") == {1: 0.5}


def test_a_checkpoint_is_due_every_interval(make_trial: MakeTrial) -> None:
    now, saved_at = 0.0, []
    trial = make_trial("trainer.checkpoint_interval_s=3", clock=lambda: now)
    for second in range(1, 11):
        now = second
        if trial.should_save:
            saved_at.append(second)
            trial.save(second, {})
    assert saved_at == [3, 6, 9]
    assert trial.epoch == 9


class Watched(RecordedTrial):
    """Notes at which epoch and step it is saved."""

    saves: list[tuple[int, int]]

    def save(self, epoch: int, state: Mapping[str, Any]) -> None:
        self.saves.append((epoch, state["step"]))
        super().save(epoch, state)


@pytest.mark.parametrize(("interval", "expected"), [("1e9", []), ("0", [(1, 5), (2, 10), (3, 15), (4, 20)])])
def test_the_loop_saves_when_it_is_told_to(
    interval: str, expected: list[tuple[int, int]], make_trial: MakeTrial
) -> None:
    trial = make_trial(f"trainer.checkpoint_interval_s={interval}", kind=Watched)
    assert isinstance(trial, Watched)
    trial.saves = []
    with trial:
        make_loop(f"trainer.checkpoint_interval_s={interval}").run(trial)
    assert trial.saves == expected


def test_the_loop_saves_inside_an_epoch_when_it_is_due(make_trial: MakeTrial) -> None:
    now = 0.0
    loop = make_loop("trainer.checkpoint_interval_s=3")

    def tick(module: object, inputs: object) -> None:
        nonlocal now
        now += loop.model.training  # an update takes a second

    loop.model.register_forward_pre_hook(tick)
    trial = make_trial("trainer.checkpoint_interval_s=3", kind=Watched, clock=lambda: now)
    assert isinstance(trial, Watched)
    trial.saves = []
    with trial:
        loop.run(trial)
    assert [step for _, step in trial.saves] == [3, 6, 9, 12, 15, 18]


def test_an_epoch_of_the_state_that_is_another_is_a_mistake(make_trial: MakeTrial) -> None:
    with make_trial() as trial, pytest.raises(ValueError, match=r"state\['epoch'\] is 7"):
        trial.save(1, {"epoch": 7})


def test_what_a_trial_comes_to_is_recorded_however_it_ends(run: RunFolder, make_trial: MakeTrial) -> None:
    with make_trial() as trial:
        trial.finish({"best/epoch": 3})
        trial.end(Diverged("val/loss", float("nan"), 5, 0.1, "lower it"))
    end = journal.last_end(run.journal)
    assert end is not None
    assert (end["status"], end["values"]["best/epoch"]) == ("FAILED", [3])


def test_a_trial_that_says_nothing_leaves_no_record(run: RunFolder, make_trial: MakeTrial) -> None:
    with make_trial() as trial:
        assert trial.restore() is None
        assert not trial.should_stop
        trial.end(ValueError("refused"))
    assert list(run.path.iterdir()) == []


def test_an_artifact_from_elsewhere_is_copied(run: RunFolder, tmp_path: Path, make_trial: MakeTrial) -> None:
    (tmp_path / "table.csv").write_text("theirs")
    with make_trial() as trial:
        trial.log_artifact(tmp_path / "table.csv")
        (run.artifacts / "own.txt").write_text("put there by the function itself")
        trial.log_artifact(run.artifacts / "own.txt")
        trial.end()
    assert (run.artifacts / "table.csv").read_text() == "theirs"
    end = journal.last_end(run.journal)
    assert end is not None
    sent = [path.name for path, above in artifact_files(run, end) if above == "artifacts"]
    assert sent == ["own.txt", "table.csv"]


@pytest.mark.parametrize(("makes_model", "listed"), [("true", ["best.pt", "model"]), ("false", ["best.pt"])])
def test_the_files_of_the_model_are_listed_where_they_are_if_they_are_logged(
    makes_model: str, listed: list[str], run: RunFolder, make_trial: MakeTrial
) -> None:
    own = {"best.pt", "predictions.parquet", "model"}
    with make_trial(f"tracking.model={makes_model}") as trial:
        for file in run.of_model:
            file.write_text("content")
        trial.log_artifact(run.best)
        trial.log_artifact(run.signature)
        trial.log_artifact(run.best)
        trial.end()
    end = journal.last_end(run.journal)
    assert end is not None
    assert [name for name in end["artifacts"] if name in own] == listed, "predictions were not logged"
    assert not run.artifacts.exists()


def test_a_model_that_was_not_logged_or_whose_trial_failed_is_none_of_mlflows(
    run: RunFolder, make_trial: MakeTrial
) -> None:
    for logs in (False, True):
        with make_trial() as trial:
            trial.describe()
            for file in (run.best, run.signature):
                file.write_text("content")
                if logs:
                    trial.log_artifact(file)
            trial.end(ValueError("of the function's") if logs else None)
        end = journal.last_end(run.journal)
        assert end is not None
        assert "model" not in end["artifacts"]
        assert ("best.pt" in end["artifacts"]) == logs


def test_a_damaged_checkpoint_is_refused_and_in_a_study_trained_from_its_beginning(
    run: RunFolder, tmp_path: Path, make_trial: MakeTrial
) -> None:
    with make_trial() as trial:
        trial.report(1, {"val/loss": 1.0})
        trial.save(1, {})
    data = bytearray(run.checkpoint.read_bytes())
    data[len(data) // 2] ^= 1
    run.checkpoint.write_bytes(data)
    with pytest.raises(Damaged):
        make_trial().restore()
    member = Membership(study="s", folder=tmp_path, parent="u", number=4, replicate=None, params={"optimizer.lr": 0.1})
    trial = make_trial(member=member)
    assert (trial.restore(), trial.epoch, trial.number, dict(trial.params)) == (None, 0, 4, {"optimizer.lr": 0.1})


def test_others_train_after_each_report_and_their_time_does_not_count(make_trial: MakeTrial) -> None:
    paused: list[int] = []
    trial = make_trial(pause=paused.append)
    with closing(trial._open):
        trial.report(1, {"val/loss": 1.0})
        trial.report(2, {"val/loss": 1.0})
    assert paused == [1, 2]


def test_the_state_may_be_restored_again_and_is_not_kept(make_trial: MakeTrial) -> None:
    with make_trial() as trial:
        trial.report(1, {"val/loss": 1.0})
        trial.save(1, {"weight": torch.ones(2)})
    again = make_trial()
    for _ in range(2):
        state = again.restore()
        assert state is not None
        assert state["weight"].tolist() == [1.0, 1.0]
        assert again._saved is None
    assert again.epoch == 1


def test_a_trial_that_is_to_stop_lets_no_other_train_first(make_trial: MakeTrial) -> None:
    stop, paused = StopRequest(), []
    with make_trial(pause=paused.append, stop=stop) as trial:
        trial.report(1, {"val/loss": 1.0})
        stop.signum = signal.SIGTERM
        assert trial.should_save
        trial.report(2, {"val/loss": 1.0})
        with pytest.raises(Interrupted):
            trial.save(2, {})
    assert paused == [1]


def test_the_time_until_a_failure_counts(run: RunFolder, make_trial: MakeTrial) -> None:
    with make_trial() as trial:
        trial.describe()
        time.sleep(0.05)
        trial.end(ValueError("of the model's"))
    end = journal.last_end(run.journal)
    assert end is not None
    assert end["values"]["time/train_s"][0] >= 0.05


def test_a_journal_that_lost_its_epochs_is_damaged_though_it_has_steps(run: RunFolder, make_trial: MakeTrial) -> None:
    with make_trial() as trial:
        trial.log({"step/loss": [1.0, 0.5]}, [1, 2])
        size = run.journal.stat().st_size
        trial.report(1, {"val/loss": 1.0})
        trial.save(1, {})
    with open(run.journal, "r+b") as file:
        file.truncate(size)
    with pytest.raises(Damaged, match="lacks epochs"):
        make_trial().restore()
