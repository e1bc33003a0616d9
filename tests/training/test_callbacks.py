"""sweep/training/callbacks.py: your own code while a trial trains."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Heard, make_fit
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


@pytest.fixture(autouse=True)
def _vouched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEP_TARGETS", f"{__name__}.*")


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


class Image:
    """Keeps a file of each epoch."""

    def on_epoch_end(self, trial: Trial, model: nn.Module, metrics: Mapping[str, float]) -> None:
        path = trial.folder / f"outputs-{len([*trial.folder.glob('outputs-*')])}.txt"
        path.write_text(f"{metrics['val/loss']}")
        trial.log_artifact(path)


class Nothing:
    pass


def with_callbacks(*nodes: str) -> str:
    return f"trainer.callbacks=[{','.join(nodes)}]"


def node(name: str, **arguments: Any) -> str:
    more = "".join(f", {key}: {value}" for key, value in arguments.items())
    return f"{{_target_: {__name__}.{name}{more}}}"


def trained(*overrides: str) -> tuple[TrainingLoop, Heard]:
    fit, heard = make_fit(*overrides, "model.dropout=0.2"), Heard()
    fit.run(heard)
    return fit, heard


def test_a_callback_adds_curves_and_changes_no_number() -> None:
    _, heard = trained(with_callbacks(node("Norm"), node("Watches")))
    _, plain = trained()
    assert heard.points == plain.points
    for epoch, metrics in heard.epochs.items():
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
    fit, heard = trained(with_callbacks(node("StopsAfter", n=2), node("Norm")))
    assert list(heard.epochs) == [1, 2]
    assert "norm" in heard.epochs[2], "callbacks after it are called"
    assert fit.best is not None
    assert fit.is_over


def test_a_resumed_trial_has_the_callbacks_state_and_stays_stopped() -> None:
    saved: list[bytes] = []

    def save(state: Mapping[str, Any]) -> None:
        file = io.BytesIO()
        torch.save(dict(state), file)
        saved.append(file.getvalue())

    overrides = (with_callbacks(node("StopsAfter", n=3)), "model.dropout=0.2")
    whole = Heard(saves=True, on_save=save)
    make_fit(*overrides).run(whole)
    assert list(whole.epochs) == [1, 2, 3]
    for state in saved:
        fit, heard = make_fit(*overrides), Heard()
        fit.load_state_dict(torch.load(io.BytesIO(state), weights_only=True))
        fit.run(heard)
        assert heard.points.items() <= whole.points.items()
        assert heard.epochs.items() <= whole.epochs.items()
        assert fit.epoch == 3


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Fails", "training failed at step 5: in callback Fails: RuntimeError: no such image"),
        ("Repeats", "training failed at step 5: in callback Repeats: ValueError: it returned 'val/loss', which the"),
    ],
)
def test_a_callback_that_fails_fails_the_trial_in_one_line(name: str, says: str) -> None:
    with pytest.raises(TrainingFailed) as caught:
        trained(with_callbacks(node(name)))
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


def test_what_is_no_callback_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        make_fit(with_callbacks(node("Norm"), node("Nothing")))
    assert str(caught.value).startswith(
        f"trainer.callbacks.1._target_: {__name__}.Nothing returned Nothing, which has none of on_train_start, "
    )
    with pytest.raises(
        ConfigError, match=r"^trainer\.callbacks\.0\.size: Norm takes no such argument; it takes: order"
    ):
        make_fit(with_callbacks(node("Norm", size=3)))


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
    assert {*weights} == {*make_fit().model.state_dict()}
