"""hydra.sweeper.folds: each configuration trains on each fold, in turn or in a pack, and its value is their mean."""

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from processes import error_line, final_values, quick, recorded
from study_folders import folder_of

from sweep import compose, run_trial
from sweep.config.schema import validate
from sweep.trial.prepare import load_data

pytestmark = pytest.mark.process

SMALL = ("data.n=90", "trainer.epochs=3", "trainer.batch_size=16", "tracking=off", "scheduler=constant")
STUDY = (
    *("-m", *SMALL, "optimizer.lr=1e-3,1e-2", "hydra.sweeper.study_name=s", "hydra/sweeper/sampler=grid"),
    *("hydra/sweeper/pruner=none", "hydra.sweeper.folds=3"),
)


def searched(cwd: Path, *overrides: str) -> tuple[list[FrozenTrial], str]:
    """The trials of a study, and what its command showed."""
    cwd.mkdir()
    done = quick(cwd, *STUDY, *overrides)
    assert (done.returncode, done.stderr) == (0, "")
    storage = JournalStorage(JournalFileBackend(str(folder_of(cwd).storage)))
    return optuna.load_study(study_name="s", storage=storage).get_trials(), done.stdout


def config_of(cwd: Path, trial: int, place: int) -> dict[str, Any]:
    return yaml.safe_load(folder_of(cwd).trial(trial, place).config.read_text())


def best_loss(cwd: Path, trial: int, place: int) -> float:
    return min(recorded(folder_of(cwd).trial(trial, place))["val/loss"][1])


def test_a_value_is_the_mean_over_the_folds_in_turn_and_in_packs(tmp_path: Path) -> None:
    alone, shown = searched(tmp_path / "alone")
    packed, _ = searched(tmp_path / "packed", "hydra.sweeper.pack=8")
    assert "(trains on the whole training split instead of 3 folds, so with another value: that of the study" in shown
    for one, other in zip(alone, packed, strict=True):
        assert one.state == other.state == TrialState.COMPLETE
        assert "packing" not in other.user_attrs
        losses = [best_loss(tmp_path / "alone", one.number, fold) for fold in range(3)]
        assert len(set(losses)) == 3
        assert one.value == pytest.approx(sum(losses) / 3, rel=1e-12)
        assert other.value == pytest.approx(one.value, rel=1e-5)
        for cwd in (tmp_path / "alone", tmp_path / "packed"):
            splits = [config_of(cwd, one.number, place)["split"] for place in range(3)]
            assert [(split["folds"], split["fold"]) for split in splits] == [(3, 0), (3, 1), (3, 2)]
    best = yaml.safe_load(folder_of(tmp_path / "alone").best.read_text().partition("\n")[2])["overrides"]
    assert not [override for override in best if override.startswith(("split.", "seed="))]


def test_a_fold_of_a_study_is_the_fold_of_a_run(tmp_path: Path) -> None:
    """And all folds are tested on one test split."""
    trials, _ = searched(tmp_path / "study", "hydra.sweeper.n_trials=1")
    run = [*SMALL, f"optimizer.lr={trials[0].params['optimizer.lr']}", "split.folds=3", f"output_dir={tmp_path}/runs"]
    for fold in range(3):
        cfg = compose([*run, f"split.fold={fold}"])
        outcome = run_trial(cfg, folder=tmp_path / f"run-{fold}")
        folder = folder_of(tmp_path / "study").trial(0, fold)
        assert recorded(folder)["val/loss"][1] == outcome.history["val/loss"].values.tolist()
        assert final_values(folder)["test/loss"] == [outcome.metrics["test/loss"]]
    splits = [load_data(validate(compose([*run, f"split.fold={fold}"]))).splits for fold in range(3)]
    assert {len(one.test.x) for one in splits} == {14}
    assert sorted(len(one.val.x) for one in splits) == [25, 25, 26]


def test_folds_and_seeds_together(tmp_path: Path) -> None:
    (trial,), _ = searched(tmp_path / "study", "hydra.sweeper.n_trials=1", "hydra.sweeper.seeds=2", "seed=5")
    runs = [config_of(tmp_path / "study", 0, place) for place in range(6)]
    assert [(run["seed"], run["split"]["fold"]) for run in runs] == [(s, f) for s in (5, 6) for f in range(3)]
    losses = [best_loss(tmp_path / "study", 0, place) for place in range(6)]
    assert trial.value == pytest.approx(sum(losses) / 6, rel=1e-12)
    best = yaml.safe_load(folder_of(tmp_path / "study").best.read_text().partition("\n")[2])["overrides"]
    assert [override for override in best if override.startswith(("split.", "seed="))] == ["seed=5"]


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        (["hydra.sweeper.folds=80"], "hydra.sweeper.folds", "is 80, more than the 76 samples outside the test split"),
        (["hydra.sweeper.folds=0"], "hydra.sweeper.folds", "must be >= 1, got 0"),
        (["split.folds=4"], "split.folds", "is for one fold; leave it out with hydra.sweeper.folds"),
        (["split.fold=0,1"], "split.fold", "cannot be searched with hydra.sweeper.folds"),
        (["trainer.batch_size=51"], "trainer.batch_size", "is 51, more than the 50 samples to train on"),
    ],
)
def test_folds_that_cannot_be_are_refused(tmp_path: Path, overrides: list[str], key: str, says: str) -> None:
    given = {override.partition("=")[0] for override in overrides}
    refused = quick(tmp_path, *(o for o in STUDY if o.partition("=")[0] not in given), *overrides)
    assert refused.returncode == 2
    assert error_line(refused).startswith(f"error: {key}: ")
    assert says in error_line(refused)
    assert not (tmp_path / "outputs").exists()
