"""sweep/training/callbacks.py: your own code while a trial trains."""

import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import RecordingTrial, make_loop
from processes import recorded
from torch import nn

from sweep import ConfigError, Outcome, compose
from sweep.config.schema import validate
from sweep.tracking.folders import RunFolder
from sweep.training import checkpoint
from sweep.training.callbacks import Callback, StopTraining
from sweep.training.loop import TrainingLoop
from sweep.training.packed.parameters import Unpackable
from sweep.training.trial import Trial
from sweep.trial.pack_scheduler import PackScheduler
from sweep.trial.prepare import load_data
from sweep.utils.errors import TrainingFailed

pytestmark = pytest.mark.targets(f"{__name__}.*")


calls: list[Any] = []


class Norm(Callback):
    """A metric of its own, and a random number that must not change the training."""

    def __init__(self, order: int = 2) -> None:
        self.order = order

    def on_epoch_end(self, trial: Trial, model: nn.Module, metrics: Mapping[str, float]) -> dict[str, float]:
        torch.rand(3)
        norm = torch.linalg.vector_norm(nn.utils.parameters_to_vector(model.parameters()), self.order)
        return {"norm": norm.item()}


class Watches:
    """No subclass: any object with one of the methods."""

    def on_train_start(self, trial: Trial, model: nn.Module) -> None:
        calls.append(("start", model.training))

    def on_epoch_end(self, trial: Trial, model: nn.Module, metrics: Mapping[str, float]) -> None:
        calls.append((sorted(metrics), model.training))

    def on_train_end(self, trial: Trial, model: nn.Module) -> None:
        calls.append({name: weight.clone() for name, weight in model.state_dict().items()})


class StopsAfter:
    """Its own stopping; it counts, and so has state."""

    def __init__(self, n: int) -> None:
        self.n, self.seen = n, 0

    def on_epoch_end(self, trial: Trial, model: nn.Module, metrics: Mapping[str, float]) -> None:
        self.seen += 1
        if self.seen == self.n:
            raise StopTraining

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.seen = state["seen"]


class Fails:
    def on_epoch_end(self, trial: Trial, model: nn.Module, metrics: Mapping[str, float]) -> None:
        raise RuntimeError("no\nsuch image")


class Repeats:
    def on_epoch_end(self, trial: Trial, model: nn.Module, metrics: Mapping[str, float]) -> dict[str, float]:
        return {"val/loss": 0.0}


class Tests:
    def on_epoch_end(self, trial: Trial, model: nn.Module, metrics: Mapping[str, float]) -> dict[str, float]:
        return {"test/loss": 0.0}


class Image:
    """Keeps a file of each epoch."""

    def on_epoch_end(self, trial: Trial, model: nn.Module, metrics: Mapping[str, float]) -> None:
        path = trial.folder / f"outputs-{len([*trial.folder.glob('outputs-*')])}.txt"
        path.write_text(f"{metrics['val/loss']}")
        trial.log_artifact(path)


class Turning:
    """Declares a metric that rises until its epoch, and then falls; what `goes` says, it does at that epoch."""

    metrics: ClassVar = {"turn": "maximize", "test/turn": "minimize"}

    def __init__(self, at: int = 2, goes: str = "well") -> None:
        self.at, self.goes, self.seen = at, goes, 0

    def on_epoch_end(self, trial: Trial, model: nn.Module, metrics: Mapping[str, float]) -> Any:
        self.seen += 1
        if self.seen == self.at:
            values = {"absent": {}, "nan": {"turn": math.nan}, "text": {"turn": "up"}, "number": 3.0}
            if self.goes in values:
                return values[self.goes]
            if self.goes == "stops":
                raise StopTraining({"turn": 100.0})
            if self.goes == "just stops":
                raise StopTraining
        return {"turn": 10.0 - abs(self.seen - self.at)}

    def on_train_end(self, trial: Trial, model: nn.Module) -> Any:
        return {"absent at the end": {}, "more": {"test/turn": 1, "more": 1}}.get(self.goes, {"test/turn": 7})


class Nothing:
    pass


def with_callbacks(*nodes: str) -> str:
    return f"trainer.callbacks=[{','.join(nodes)}]"


def node(name: str, **arguments: Any) -> str:
    more = "".join(f", {key}: {value}" for key, value in arguments.items())
    return f"{{_target_: {__name__}.{name}{more}}}"


def trained(*overrides: str) -> tuple[TrainingLoop, RecordingTrial]:
    fit, observed = make_loop(*overrides, "model.dropout=0.2"), RecordingTrial()
    fit.run(observed)
    return fit, observed


def test_a_callback_adds_curves_and_changes_no_number() -> None:
    _, observed = trained(with_callbacks(node("Norm"), node("Watches")))
    _, plain = trained()
    assert observed.points == plain.points
    for epoch, metrics in observed.epochs.items():
        assert metrics["norm"] > 0
        assert {name: value for name, value in metrics.items() if name != "norm"} == plain.epochs[epoch]


def test_callbacks_are_called_in_order_with_the_validated_model_and_at_the_end_with_the_best() -> None:
    calls.clear()
    fit, _ = trained(with_callbacks(node("Norm", order=1), node("Watches")))
    start, *epochs, best = calls
    assert start == ("start", True)
    assert len(epochs) == 4
    assert all("norm" in names and "val/loss" in names and not training for names, training in epochs)
    assert fit.best is not None
    assert all(torch.equal(weight, best[name]) for name, weight in fit.best.weights.items())


def test_a_callback_that_stops_ends_the_training_after_its_epoch() -> None:
    fit, observed = trained(with_callbacks(node("StopsAfter", n=2), node("Norm")))
    assert list(observed.epochs) == [1, 2]
    assert "norm" in observed.epochs[2], "callbacks after it are called"
    assert fit.best is not None
    assert fit.is_over


def test_a_resumed_trial_has_the_callbacks_state_and_stays_stopped() -> None:
    saved: list[bytes] = []

    def save(state: Mapping[str, Any]) -> None:
        file = io.BytesIO()
        torch.save(dict(state), file)
        saved.append(file.getvalue())

    overrides = (with_callbacks(node("StopsAfter", n=3)), "model.dropout=0.2")
    complete = RecordingTrial(saves=True, on_save=save)
    make_loop(*overrides).run(complete)
    assert list(complete.epochs) == [1, 2, 3]
    for state in saved:
        fit, observed = make_loop(*overrides), RecordingTrial()
        fit.load_state_dict(torch.load(io.BytesIO(state), weights_only=True))
        fit.run(observed)
        assert observed.points.items() <= complete.points.items()
        assert observed.epochs.items() <= complete.epochs.items()
        assert fit.epoch == 3


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Fails", "training failed at step 5: in callback Fails: RuntimeError: no such image"),
        ("Repeats", "training failed at step 5: in callback Repeats: ValueError: it returned 'val/loss', which the"),
        (
            "Tests",
            "training failed at step 5: in callback Tests: ValueError: on_epoch_end returned 'test/loss',",
        ),
    ],
)
def test_a_callback_that_fails_fails_the_trial_in_one_line(name: str, says: str) -> None:
    with pytest.raises(TrainingFailed) as caught:
        trained(with_callbacks(node(name)))
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


TURN = "trainer.monitor=turn"


def test_best_weights_patience_and_plateau_follow_a_declared_metric() -> None:
    fit, observed = trained(with_callbacks(node("Turning")), TURN, "trainer.epochs=9", "trainer.patience=3")
    assert observed.curve("turn") == [9, 10, 9, 8, 7]
    assert fit.best is not None
    assert (fit.best.epoch, fit.best.value) == (2, 10)
    assert fit.reached() == {"best/epoch": 2, "best/turn": 10}
    other = trained(with_callbacks(node("Turning", at=4)), TURN)[0]
    assert other.best is not None
    assert other.best.epoch == 4
    same = trained("trainer.epochs=2", "scheduler=constant")[0]
    assert same.best is not None
    fit, _ = trained(with_callbacks(node("Turning")), TURN, "scheduler=constant")
    assert fit.best is not None
    for name, weight in same.model.state_dict().items():  # those after epoch 2
        assert torch.equal(fit.best.weights[name], weight)
    plateau = ("scheduler=plateau", "scheduler.patience=0", "scheduler.factor=0.5", "trainer.epochs=5")
    rates = trained(with_callbacks(node("Turning")), TURN, *plateau)[1].curve("lr")
    assert rates == [rates[0] * share for share in (1, 1, 1, 0.5, 0.25)]


def test_what_a_callback_declares_for_the_end_stands_beside_the_tests_metrics() -> None:
    fit, observed = trained(with_callbacks(node("Norm"), node("Turning")))
    assert {"turn", "norm"} <= observed.epochs[1].keys()
    assert "test/turn" not in observed.epochs[4]
    plain, _ = trained()
    assert fit.test(None) == {**plain.test(None), "test/turn": 7.0}


def test_a_callback_that_stops_may_give_its_metrics() -> None:
    fit, observed = trained(with_callbacks(node("Turning", at=3, goes="stops"), node("Norm")), TURN)
    assert observed.curve("turn") == [8, 9, 100]
    assert fit.best is not None
    assert fit.best.epoch == 3
    assert "norm" in observed.epochs[3]


@pytest.mark.parametrize(
    ("goes", "says"),
    [
        ("absent", "step 10: in callback Turning: ValueError: it declares the metric 'turn', but on_epoch_end did not"),
        ("just stops", "step 10: in callback Turning: ValueError: it declares the metric 'turn', but on_epoch_end did"),
        ("nan", "step 10: in callback Turning: ValueError: its metric 'turn' is nan, not a finite number"),
        ("text", "step 10: in callback Turning: ValueError: its metric 'turn' is a str, not a number"),
        ("number", "step 10: in callback Turning: ValueError: it returned a float, not a mapping of names to numbers"),
        (
            "absent at the end",
            "step 20: in callback Turning: ValueError: it declares the metric 'test/turn', but on_tra",
        ),
        (
            "more",
            "step 20: in callback Turning: ValueError: on_train_end returned 'more', but may return what it decla",
        ),
    ],
)
def test_a_declared_metric_that_does_not_come_fails_the_trial_in_one_line(goes: str, says: str) -> None:
    with pytest.raises(TrainingFailed) as caught:
        trained(with_callbacks(node("Turning", goes=f"'{goes}'")))
    assert str(caught.value).startswith(f"training failed at {says}")
    assert "\n" not in str(caught.value)


def test_what_is_no_callback_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        make_loop(with_callbacks(node("Norm"), node("Nothing")))
    assert str(caught.value).startswith(
        f"trainer.callbacks.1._target_: {__name__}.Nothing returned Nothing, which has none of on_train_start, "
    )
    with pytest.raises(
        ConfigError, match=r"^trainer\.callbacks\.0\.size: Norm takes no such argument; it takes: order"
    ):
        make_loop(with_callbacks(node("Norm", size=3)))


def test_trials_with_callbacks_train_sequentially() -> None:
    config = validate(compose(["experiment=debug", "tracking=off", with_callbacks(node("Norm"))]))
    with pytest.raises(Unpackable, match=r"^trainer\.callbacks is set$"):
        PackScheduler(2, 2, load_data).member(config)


@pytest.mark.process
def test_the_example_of_the_documentation_runs(
    small_trial: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "recipe.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", docs, re.DOTALL)
    (tmp_path / "drawn_weights.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SWEEP_TARGETS", "drawn_weights.*")
    outcome: Outcome = small_trial("trainer.callbacks=[{_target_: drawn_weights.Weights, every: 2}]")
    run = RunFolder(outcome.folder)
    assert recorded(run)["norm/first"][0] == [1, 2, 3, 4]
    assert {path.name for path in run.artifacts.glob("weights-*")} == {"weights-2.png", "weights-4.png"}
    stopped: Outcome = small_trial("trainer.callbacks=[{_target_: drawn_weights.Weights, largest: 0.01}]")
    assert stopped.n_epochs == 1


@pytest.mark.process
def test_a_run_has_a_callbacks_curves_and_artifacts(small_trial: Any) -> None:
    outcome: Outcome = small_trial(with_callbacks(node("Image"), node("Norm"), node("StopsAfter", n=3)))
    run = RunFolder(outcome.folder)
    curves = recorded(run)
    assert curves["norm"][0] == curves["val/loss"][0] == [1, 2, 3]
    files = sorted(run.artifacts.glob("outputs-*.txt"))
    assert [float(file.read_text()) for file in files] == curves["val/loss"][1]
    weights = checkpoint.load(run.best)["model"]
    assert {*weights} == {*make_loop().model.state_dict()}
