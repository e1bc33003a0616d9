"""Trials of several seeds: a step is an epoch of all of them, whether they train in turn or in a pack."""

import functools
import signal
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, TrialState
from processes import quick, recorded, start
from study_folders import folder_of, trials_of
from waiting import wait_until

from sweep import compose, run_trial
from sweep.config.schema import validate
from sweep.execution.replicates import Means
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.training.runtime import Turn
from sweep.trial.recorded import Pause, RecordedTrial
from sweep.trial.training import make_training, train
from sweep.utils.errors import Pruned

N_SEEDS, EPOCHS = 3, 12
RUNGS = (1, 2, 4, 8)  # a twelfth of the epochs, a sixth, a third and two thirds
STUDY = (
    *("-m", "experiment=debug", "tracking=off", "hydra.sweeper.study_name=s", "hydra/sweeper/sampler=random"),
    *("hydra/sweeper/pruner=asha", f"trainer.epochs={EPOCHS}", f"hydra.sweeper.seeds={N_SEEDS}"),
)
ADAMAX = """
_target_: torch.optim.Adamax
lr: 0.01
"""


def searched(cwd: Path, *overrides: str) -> list[FrozenTrial]:
    cwd.mkdir(exist_ok=True)
    done = quick(cwd, *STUDY, *overrides)
    assert (done.returncode, done.stderr) == (0, "")
    return trials_of(cwd)


def means_in_journals(cwd: Path, trial: FrozenTrial) -> dict[int, float]:
    """By epoch, as far as all seeds have trained, the mean of their best losses so far."""
    curves = [recorded(folder_of(cwd).trial(trial.number, seed))["val/loss"][1] for seed in range(N_SEEDS)]
    return {e: sum(min(c[:e]) for c in curves) / N_SEEDS for e in range(1, min(map(len, curves)) + 1)}


def test_a_step_is_known_once_each_run_has_trained_it():
    means = Means(2, "minimize")
    means.add(0, 1, 4.0)
    assert means.unreported() == []
    means.add(0, 2, 2.0)
    means.add(1, 1, 6.0)
    assert means.unreported() == [(1, 5.0)]
    means.reported(1)
    means.add(1, 2, 7.0)
    means.add(1, 3, 5.0)
    assert means.unreported() == [(2, 4.0)]  # the best so far of each
    means.end(0)  # by patience, for example
    assert means.unreported() == [(2, 4.0), (3, 3.5)]
    assert means.n_epochs == 3


def test_what_was_recorded_before_and_not_reported_is_reported():
    means = Means(1, "maximize", reported=[1, 3])
    means.extend(0, [1, 2, 3, 4], [0.1, 0.3, 0.2, 0.4])
    assert means.unreported() == [(2, 0.3), (3, 0.3), (4, 0.4)]  # the last reported may not have been judged
    means.add(0, 3, 0.2)  # trained again after a crash
    assert means.n_epochs == 4


def test_steps_are_those_that_were_reported():
    means = Means(2, "minimize")
    means.extend(0, [100, 200, 300], [4.0, 2.0, 3.0])
    assert means.unreported() == []
    means.add(1, 150, 6.0)
    assert means.unreported() == [(150, 5.0)], "the second has no value at 100"
    means.reported(150)
    means.add(1, 300, 8.0)
    assert means.unreported() == [(200, 4.0), (300, 4.0)]


@pytest.mark.process
@pytest.mark.slow
def test_trials_in_turn_are_as_they_are_alone(tmp_path):
    """Each has its own random generators, for dropout here, and its own settings of the process."""
    small = (f"output_dir={tmp_path}", "experiment=debug", "tracking=off", "model.dropout=0.3", "trainer.epochs=3")
    configs = [compose([*small, f"seed={seed}", f"trainer.epochs={2 + seed}"]) for seed in range(2)]
    runs = [RunFolder(tmp_path / f"turn-{i}") for i in range(2)]

    def trained(run: RunFolder, cfg: DictConfig, pause: Pause) -> dict[str, float]:
        run.create()
        trial = RecordedTrial(run, validate(cfg), output_dir=tmp_path, store=None, pause=pause)
        return train(make_training(validate(cfg)), trial)

    turns = [Turn(functools.partial(trained, run, cfg)) for run, cfg in zip(runs, configs, strict=True)]
    epochs = []
    while not all(turn.is_over for turn in turns):
        for turn in turns:
            if not turn.is_over:
                turn.train()
        epochs.append([turn.epoch for turn in turns])
    assert epochs == [[1, 1], [2, 2], [2, 3], [2, 3]]
    for i, cfg in enumerate(configs):
        alone = run_trial(cfg, folder=tmp_path / f"alone-{i}")
        assert turns[i].result.items() <= alone.metrics.items()
        losses = journal.curves(runs[i].journal)["step/loss"].values
        assert losses.tolist() == alone.history["step/loss"].values.tolist()


def test_a_training_that_pauses_without_gradients_leaves_its_neighbours_theirs():
    def train(pause):
        with torch.no_grad():
            pause(1)
            assert not torch.is_grad_enabled()
        return torch.is_grad_enabled()

    turns = [Turn(train), Turn(train)]
    for turn in turns:
        turn.train()
        assert (turn.epoch, turn.is_over, torch.is_grad_enabled()) == (1, False, True)
    for turn in turns:
        turn.train()
    assert [turn.result for turn in turns] == [True, True]


def test_what_ends_one_training_is_raised_where_it_paused():
    seen = []

    def train(pause):
        try:
            pause(1)
        except Pruned as pruned:
            seen.append(pruned.epoch)
            raise

    turn = Turn(train)
    turn.train()
    with pytest.raises(Pruned):
        turn.end(Pruned(1))
    assert (seen, turn.is_over) == ([1], False)


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("in_turn")
    return cwd, searched(cwd, "hydra.sweeper.n_trials=8")


@pytest.mark.process
def test_the_same_trials_are_pruned_packed_or_not(in_turn, tmp_path):
    cwd, trials = in_turn
    packed = searched(tmp_path, "hydra.sweeper.n_trials=8", "hydra.sweeper.pack=9")
    assert {t.state for t in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    for where, one, other in ((cwd, a, b) for a, b in zip(trials, packed, strict=True)):
        assert (one.params, one.state) == (other.params, other.state)
        assert one.intermediate_values == pytest.approx(other.intermediate_values, rel=1e-3)
        assert one.intermediate_values == pytest.approx(means_in_journals(where, one))
        if one.state == TrialState.PRUNED:
            assert max(one.intermediate_values) in RUNGS
            assert one.user_attrs["stopped"] == other.user_attrs["stopped"]


@pytest.mark.process
def test_packs_of_several_structures_prune_as_trials_one_after_another_do(tmp_path):
    study = ("hydra.sweeper.n_trials=32", "hydra.sweeper.seeds=1", "optimizer=sgd,adam")
    alone, packed = (searched(tmp_path / f"{n}", *study, f"hydra.sweeper.pack={n}") for n in (1, 8))
    assert sum(t.state == TrialState.PRUNED for t in alone) >= 10
    ended = [[(t.number, t.params, t.state, max(t.intermediate_values)) for t in trials] for trials in (alone, packed)]
    assert ended[0] == ended[1]


@pytest.mark.process
def test_every_seed_of_a_pruned_trial_ends_at_the_rung(in_turn):
    cwd, trials = in_turn
    for trial in trials:
        if trial.state == TrialState.PRUNED:
            for seed in range(N_SEEDS):
                run = folder_of(cwd).trial(trial.number, seed)
                assert len(recorded(run)["val/loss"][0]) == max(trial.intermediate_values)
                assert list(journal.read(run.journal))[-1][0]["tags"]["state"] == "PRUNED"


@pytest.mark.process
def test_what_cannot_be_packed_is_judged_at_the_same_epochs(tmp_path):
    (tmp_path / "conf" / "optimizer").mkdir(parents=True)
    (tmp_path / "conf" / "optimizer" / "adamax.yaml").write_text(ADAMAX)
    trials = searched(
        tmp_path,
        *("--config-dir", str(tmp_path / "conf"), "optimizer=adam,adamax", "scheduler=constant"),
        *("optimizer.lr=tag(log, interval(1e-4, 1e-1))", "hydra.sweeper.n_trials=8", "hydra.sweeper.pack=6"),
    )
    ends = {kind: [t for t in trials if t.params["optimizer"] == kind] for kind in ("adam", "adamax")}
    for of_kind in ends.values():
        assert of_kind, "the case needs both"
        for trial in of_kind:
            assert trial.intermediate_values == pytest.approx(means_in_journals(tmp_path, trial), rel=1e-9)
            assert max(trial.intermediate_values) in (*RUNGS, EPOCHS)


@pytest.mark.process
def test_seeds_in_turn_resume_after_a_kill_to_the_same_values(in_turn, tmp_path):
    cwd, trials = in_turn
    study = (*STUDY, "hydra.sweeper.n_trials=1", "trainer.checkpoint_interval_s=0.0001")
    n_epochs = functools.partial(_n_epochs, tmp_path)
    with start(tmp_path, *study) as process:
        wait_until(lambda: n_epochs(1) >= 3, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = quick(tmp_path, *study)
    assert (done.returncode, done.stderr) == (0, "")
    (trial,) = trials_of(tmp_path)
    assert trial.value == trials[0].value
    assert trial.intermediate_values == trials[0].intermediate_values
    for seed in range(N_SEEDS):
        curves = [recorded(folder_of(where).trial(0, seed)) for where in (cwd, tmp_path)]
        assert curves[0] == curves[1]


ONE_AT_A_TIME = """
import weakref
from torch import nn

living = weakref.WeakSet()


class Large(nn.Linear):
    def __init__(self, in_features: int, out_features: int):
        if len(living):
            raise MemoryError("no room for a second one")
        super().__init__(in_features, out_features)
        living.add(self)
"""


@pytest.mark.process
def test_seeds_that_do_not_fit_into_memory_together_train_one_after_the_other(tmp_path):
    (tmp_path / "large.py").write_text(ONE_AT_A_TIME)
    done = quick(
        tmp_path,
        *(*STUDY, "hydra.sweeper.n_trials=2", "trainer.epochs=2", "hydra/sweeper/pruner=none"),
        *("model._target_=large.Large", "~model.widths", "~model.activation", "~model.dropout"),
        PYTHONPATH=str(tmp_path),
        SWEEP_TARGETS="large.*",
    )
    assert (done.returncode, done.stderr) == (0, "")
    for trial in trials_of(tmp_path):
        assert trial.state == TrialState.COMPLETE
        assert trial.intermediate_values == pytest.approx(means_in_journals(tmp_path, trial))
        assert list(trial.intermediate_values) == [1, 2]


def _n_epochs(cwd: Path, seed: int) -> int:
    path = folder_of(cwd).trial(0, seed).journal
    curve = journal.curves(path).get("val/loss") if path.exists() else None
    return 0 if curve is None else len(curve.steps)
