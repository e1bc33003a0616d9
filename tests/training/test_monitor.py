"""trainer.monitor: the best weights, patience and plateau follow what is optimised, alone, packed and in a study."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RecordingTrial, make_loop
from omegaconf import OmegaConf
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from packs import member_of, pack_of, together
from processes import error_line, quick, recorded
from study_folders import folder_of

from sweep import ConfigError, Outcome, compose, run_trial
from sweep.study.identity import IDENTITY
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder, StudyFolder
from sweep.training import checkpoint
from sweep.training.loop import TrainingLoop

DIGITS = ("data=digits", "split.max_samples=150", "trainer.batch_size=16", "model.widths=[8]", "tracking=off")
# Here the accuracy is best at epoch 5, the loss at epoch 7.
ROUGH = ("optimizer=sgd", "scheduler=constant", "optimizer.lr=0.5", "trainer.epochs=7")
ACCURACY = "trainer.monitor=val/accuracy"


def trained(*overrides: str) -> tuple[TrainingLoop, RecordingTrial]:
    fit, observed = make_loop(*ROUGH, *overrides, base=DIGITS), RecordingTrial()
    fit.run(observed)
    return fit, observed


@pytest.mark.slow
def test_best_weights_and_patience_follow_the_monitored_curve_alone_and_in_a_pack() -> None:
    overrides = [
        (),
        (ACCURACY,),
        (ACCURACY, "trainer.patience=2", "trainer.epochs=20"),
        ("trainer.monitor=train/loss",),
    ]
    alone = [trained(*own) for own in overrides]
    fits = [make_loop(*ROUGH, *own, base=DIGITS) for own in overrides]
    placed = [member_of(fit) for fit in fits]
    together(pack_of(fits[0]), [slot for slot, _ in placed])
    for own, (fit, observed), (slot, _) in zip(overrides, alone, placed, strict=True):
        curve = observed.curve(fit.trainer.monitored)
        best = np.argmax(curve) if ACCURACY in own else np.argmin(curve)
        for course in (fit, slot):
            assert course.best is not None
            assert course.best.epoch == best + 1
            assert course.best.value == pytest.approx(curve[best], rel=1e-4)
            assert course.epoch == fit.epoch
    assert [fit.best.epoch for fit, _ in alone if fit.best] == [7, 5, 5, 7], "the case needs epochs that differ"
    assert alone[2][0].epoch == 7, "the case needs patience to end"


@pytest.mark.slow
def test_a_plateau_is_one_of_the_monitored_curve() -> None:
    plateau = ("scheduler=plateau", "scheduler.patience=1", "trainer.epochs=12")
    _, by_loss = trained(*plateau)
    fit, by_accuracy = trained(*plateau, ACCURACY)
    assert set(by_loss.curve("lr")) == {0.5}, "the loss falls"
    assert set(by_accuracy.curve("lr")) == {0.5, 0.25}
    values = by_accuracy.curve("val/accuracy")
    fell = by_accuracy.curve("lr").index(0.25)
    assert max(values[fell - 2 : fell]) <= max(values[: fell - 2])
    assert fit.best is not None


@pytest.mark.process
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["trainer.monitor=val/accuracy"],
            "trainer.monitor: trials on this data have no 'val/accuracy'; choose one of: ",
        ),
        (["trainer.monitor=test/loss"], "trainer.monitor: 'test/loss' is unknown; choose one of train/loss, val/loss"),
        (["scheduler=plateau", "+scheduler.mode=max"], "scheduler.mode: is max, but the metric that trainer.monitor"),
    ],
)
def test_a_curve_that_trials_lack_is_refused(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run_trial(compose(["experiment=debug", "tracking=off", f"output_dir={tmp_path}", *overrides]))
    assert str(caught.value).startswith(message)


@pytest.mark.process
def test_a_run_says_which_curve_its_weights_follow(tmp_path: Path) -> None:
    outcome: Outcome = run_trial(compose([*DIGITS, *ROUGH, ACCURACY, f"output_dir={tmp_path}"]))
    curve = outcome.history["val/accuracy"].values
    assert (outcome.monitor, outcome.best_epoch, outcome.value) == ("val/accuracy", 5, curve.max())
    run = RunFolder(outcome.folder)
    best = checkpoint.load(run.best)
    assert (best["epoch"], best["value"], best["monitor"]) == (5, curve.max(), "val/accuracy")
    start = journal.first(run.journal, "start")
    assert start is not None
    assert start["params"]["trainer.monitor"] == "val/accuracy"
    end = [*journal.records(run.journal, "end")][-1]
    assert (end["values"]["best/epoch"], end["values"]["best/val_accuracy"]) == ([5], [curve.max()])


SEARCH = ("-m", *DIGITS, *ROUGH[:2], "trainer.epochs=7", "optimizer.lr=0.5,0.1,0.9")
STUDY = (*SEARCH, "hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=none", "hydra.sweeper.study_name=s")
BY_ACCURACY = (*STUDY, "hydra.sweeper.objective=val/accuracy")


@pytest.mark.process
@pytest.mark.parametrize("pack", [1, 3])
def test_the_weights_of_a_studys_trial_are_those_that_its_value_is_of(pack: int, tmp_path: Path) -> None:
    done = quick(tmp_path, *BY_ACCURACY, f"hydra.sweeper.pack={pack}")
    assert (done.returncode, done.stderr) == (0, "")
    folder, epochs = folder_of(tmp_path), []
    for number in range(3):
        run = folder.trial(number)
        curve = recorded(run)["val/accuracy"][1]
        best = checkpoint.load(run.best)
        assert (best["epoch"], best["value"]) == (curve.index(max(curve)) + 1, max(curve))
        epochs.append(best["epoch"] - 1 - int(np.argmin(recorded(run)["val/loss"][1])))
    assert any(epochs), "the case needs an epoch that is not that of the lowest loss"
    if pack > 1:
        return
    found = OmegaConf.to_container(OmegaConf.load(folder.best))
    assert isinstance(found, dict)
    again = quick(tmp_path, "from_study=s")
    assert again.returncode == 0, again.stderr
    assert f"best val/accuracy   {found['values'][0]:.6g} (epoch " in again.stdout
    assert monitor_in_identity(folder) == "null", "or a study from before there was such a key could not go on"
    other = quick(tmp_path, *BY_ACCURACY, "trainer.monitor=val/loss")
    assert other.returncode == 2
    assert 'trainer.monitor = null, now "val/loss"' in error_line(other)


def monitor_in_identity(folder: StudyFolder) -> str:
    """What the study's identity says of `trainer.monitor`; null is what it meant before there was such a key."""
    storage: Any = JournalStorage(JournalFileBackend(str(folder.storage)))
    (study,) = storage.get_all_studies()
    return study.user_attrs[IDENTITY]["trainer.monitor"]
