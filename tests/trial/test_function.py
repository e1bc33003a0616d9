"""sweep/trial/function.py: a training function of a user's own, called with a config and a checked trial."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import functions
import numpy as np
import pytest
import torch

from sweep import compose
from sweep.config.schema import Config, validate
from sweep.testing import TrialInMemory, check_training_function
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.training import checkpoint
from sweep.trial.checked_trial import CheckedTrial
from sweep.trial.function import FunctionTraining, function_config
from sweep.trial.recorded import RecordedTrial
from sweep.utils.errors import ConfigError, Diverged, FunctionFailed, Pruned

pytestmark = pytest.mark.targets("functions.*")


def config(function: Callable[..., Any] | str, *overrides: str) -> Config:
    name = function if isinstance(function, str) else f"functions.{function.__name__}"
    own = ("trainer=function", f"trainer.call={name}", "tracking=off")
    return validate(compose([*own, *overrides]))


def called(function: Callable[..., Any], folder: Path, *overrides: str, **more: Any) -> tuple[Any, TrialInMemory]:
    folder.mkdir(exist_ok=True)
    trial = TrialInMemory(folder, **more)
    return FunctionTraining(config(function, *overrides))(trial), trial


def test_it_gets_the_config_and_what_it_returns_is_recorded(tmp_path: Path) -> None:
    returned, trial = called(functions.quadratic, tmp_path, "trainer.epochs=2", "+x=5")
    assert returned == {"test/loss": 4.0, "test/score": -2.0} == trial.values
    assert trial.reports == {1: {"val/loss": 5.0, "score": -2.0}, 2: {"val/loss": 4.5, "score": -2.0}}


def test_the_config_has_what_is_chosen_and_the_users_own() -> None:
    cfg = function_config(config(functions.quadratic, "+x=5", "+net={width: 3}", "model=mlp", "+text='\\${a}'"))
    expected = {"seed", "output_dir", "experiment_name", "loader", "trainer", "model", "x", "net", "text"}
    assert {*cfg} == expected
    assert (cfg.x, cfg.net.width, cfg.text, cfg.trainer.epochs) == (5, 3, "${a}", None)
    assert cfg.model._target_ == "sweep.models.MLP"
    more = function_config(config(functions.quadratic, "split=random", "split.fold=1", "split.folds=3"))
    assert (more.split.fold, "model" in more) == (1, False)


def test_a_key_that_is_misspelt_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FunctionFailed, match=r"^functions.misspells: ConfigAttributeError: Key 'ecks' is not in struct"
    ):
        called(functions.misspells, tmp_path, "+x=5")


def test_the_generators_follow_the_seed_and_are_restored(tmp_path: Path) -> None:
    before = checkpoint.random_states()
    first, _ = called(functions.drawn, tmp_path / "a", "trainer.epochs=2")
    again, _ = called(functions.drawn, tmp_path / "b", "trainer.epochs=2")
    other, _ = called(functions.drawn, tmp_path / "c", "trainer.epochs=2", "seed=1")
    assert first == again != other
    after = checkpoint.random_states()
    assert torch.equal(before["torch"], after["torch"])
    assert torch.equal(before["numpy"][1], after["numpy"][1])
    assert torch.equal(before["python"][1], after["python"][1])


def test_a_stopped_function_resumes_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Although it saves no generator."""
    check_training_function(FunctionTraining(config(functions.drawn, "trainer.epochs=4")), tmp_path)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (functions.raises, "RuntimeError: no such luck"),
        (functions.exits, "called sys.exit(3); return, or raise an error"),
        (functions.reports_nothing, "reported and returned no metrics; call trial.report(epoch, {...})"),
        (functions.reports_text, "reported in epoch 1: val/loss = '0.5', which is not a number"),
        (functions.reports_no_metrics, "reported no metrics in epoch 1"),
        (functions.reports_a_number, "reported in epoch 1: 0.5, where names and numbers belong, such as {'val/loss': 0.1}"),  # noqa: E501
        (functions.reports_half_an_epoch, "reported epoch 0.5; give a whole number, from 0"),
        (functions.reports_backwards, "reported epoch 1 after epoch 2; report them in order"),
        (functions.reports_our_name, "reported 'time/total', a name that only sweep itself uses; choose another"),
        (functions.reports_an_odd_name, "reported in epoch 1: the name 'loss(val)'; use letters, digits, spaces and any of _ - . / :"),  # noqa: E501
        (functions.logs_backwards, "logged step 4 of step/loss after step 5; log them in order"),
        (functions.returns_a_number, "returned float; return a dict of metrics, such as {'test/loss': 0.1}"),
        (functions.saves_a_list, "saved [1]; give a mapping of names to tensors, numbers and texts"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(function: Callable[..., Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(FunctionFailed) as caught:
        called(function, tmp_path)
    assert str(caught.value) == f"functions.{function.__name__}: {problem} (HYDRA_FULL_ERROR=1 shows the traceback)"


@pytest.mark.process
@pytest.mark.parametrize("function", [functions.forks, functions.forks_quietly])
def test_a_process_that_it_forks_ends_there(
    function: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Otherwise it would train the trial a second time, and then all others."""
    before = os.getpid()
    returned, trial = called(function, tmp_path)
    assert os.getpid() == before
    assert len(trial.reports) == (3 if function is functions.forks else 0)
    assert len(returned) == 1
    warning = "warning: trial 0: a process that it forked ends; only the first goes on\n"
    assert capfd.readouterr().err == warning


@pytest.mark.parametrize("function", [functions.reports_nan, functions.returns_nan])
def test_what_is_not_finite_counts_as_diverged(function: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"^diverged: (val/loss is nan at step 2|test/loss is inf at step 1); lower"):
        called(function, tmp_path)


def test_what_could_not_be_loaded_is_refused_and_the_earlier_checkpoint_stays(tmp_path: Path) -> None:
    with pytest.raises(
        FunctionFailed, match=r"saved state\['parts'\]\[0\], a Linear, which cannot be loaded again; save"
    ):
        called(functions.saves_a_module, tmp_path)
    assert checkpoint.load(tmp_path / "checkpoint.pt")["kept"].tolist() == [1, 1]


@pytest.mark.parametrize("function", [functions.swallows_all, functions.hides_pruned])
def test_a_function_that_catches_everything_still_ends(function: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(Pruned):
        called(function, tmp_path, prune_at=1)
    assert len(TrialInMemory(tmp_path).reports) == 0


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ("functions.takes_one", "takes_one takes (cfg: Any) -> None; write it as  def train(cfg, trial)"),
        ("functions.takes_three", "takes_three takes (cfg: Any, trial: sweep.training.trial.Trial, more: int) -> None; w"),  # noqa: E501
        ("functions.nope", "cannot load 'functions.nope': "),
        ("functions.NO_FUNCTION", "cannot load 'functions.NO_FUNCTION': "),
        ("''", "is empty; write the dotted path of your function, such as mypkg.train"),
        ("os.system", "'os.system' is not an allowed target; if you trust it, set SWEEP_TARGETS=os.*"),
        ("???", "has no value; set trainer.call=..."),
    ],
)  # fmt: skip
def test_a_function_that_cannot_be_called_is_refused(call: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FunctionTraining(config(call))
    assert caught.value.key == "trainer.call"
    assert caught.value.problem.startswith(problem)


def test_an_argument_with_a_default_is_no_obstacle(tmp_path: Path) -> None:
    assert called(functions.takes_more, tmp_path)[0] == {"val/loss": 1.0}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


def recorded(run: RunFolder, calls: Callable[[CheckedTrial], object]) -> dict[str, tuple[list[int], list[float]]]:
    """What the journal has after these calls, in a process of their own so to say."""
    with RecordedTrial(run, config(functions.quadratic), output_dir=run.path.parent, store=None) as trial:
        calls(CheckedTrial(trial, "functions.f"))
    return {name: curve.tolist() for name, curve in journal.curves(run.journal).items()}


def test_the_first_report_of_an_epoch_stands(run: RunFolder) -> None:
    def first(trial: Any) -> None:
        trial.report(0, {"a": 1.0})
        trial.report(0, {"a": 2.0, "b": np.float32(3)})
        trial.log({"step/c": [1.0, 2.0]}, [1, 2])
        trial.log({"step/c": 5.0}, 2)
        trial.report(100, {"a": torch.tensor([4.0], requires_grad=True)})

    expected = {"a": ([0, 100], [1.0, 4.0]), "b": ([0], [3.0]), "step/c": ([1, 2], [1.0, 2.0])}
    assert recorded(run, first) == expected

    def again(trial: CheckedTrial) -> None:
        """From the beginning, as it left no checkpoint, and with another metric on the way."""
        trial.report(0, {"a": 7.0, "d": 7.0})
        trial.report(100, {"a": 7.0, "b": 6.0})

    assert recorded(run, again) == {**expected, "b": ([0, 100], [3.0, 6.0]), "d": ([0], [7.0])}


def test_a_checkpoint_may_lie_after_the_last_report(run: RunFolder) -> None:
    """A function may report every tenth epoch only, and save in between."""

    def first(trial: CheckedTrial) -> None:
        trial.report(10, {"val/loss": 1.0})
        trial.save(15, {"x": 1})

    recorded(run, first)

    def again(trial: CheckedTrial) -> None:
        assert trial.epoch == 15
        state = trial.restore()
        assert state is not None
        assert (state["x"], "_sweep" in state) == (1, False)

    recorded(run, again)
