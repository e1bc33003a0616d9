"""Optimizers of torch, pytorch-optimizer and schedulefree: which ones train and resume, as docs/recipe.md says."""

import io
import re
from pathlib import Path

import pytest
import torch
from conftest import RecordingTrial, as_file, make_loop
from packs import tensor_data, tensor_task

from sweep import ConfigError, compose
from sweep.utils.errors import SweepError

DOCS = (Path(__file__).parents[2] / "docs" / "recipe.md").read_text()
# What the documentation says of torch's optimizers that do not work: the message, by name.
REFUSED = dict(re.findall(r"^\| `torch\.optim\.(\w+)` \|[^|]*\| `([^`]+)` \|$", DOCS, re.MULTILINE))
TORCHS = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
)
PACKAGED = (
    "pytorch_optimizer.AdaBelief",
    "pytorch_optimizer.ADOPT",
    "pytorch_optimizer.Lion",
    "pytorch_optimizer.Lamb",
    "pytorch_optimizer.Prodigy",
    "pytorch_optimizer.DAdaptAdam",
    "pytorch_optimizer.SOAP",
    "pytorch_optimizer.Shampoo",
    "pytorch_optimizer.MADGRAD",
    "pytorch_optimizer.RAdam",
    "pytorch_optimizer.Adan",
    "pytorch_optimizer.Tiger",
    "pytorch_optimizer.AdEMAMix",
    "pytorch_optimizer.ScheduleFreeAdamW",
    "pytorch_optimizer.ScheduleFreeSGD",
    "pytorch_optimizer.ScheduleFreeRAdam",
    "schedulefree.AdamWScheduleFree",
    "schedulefree.AdamWScheduleFreeReference",
    "schedulefree.RAdamScheduleFree",
    "schedulefree.SGDScheduleFree",
    "schedulefree.SGDScheduleFreeReference",
)


def only_lr(target: str) -> tuple[str, ...]:
    """The overrides for an optimizer with its defaults."""
    keys = compose(["optimizer=sgd"]).optimizer
    removed = [f"~optimizer.{key}" for key in keys if key not in ("_target_", "lr", "groups")]
    schedule = ("scheduler=constant", "optimizer.lr=1e-2")
    return ("optimizer=sgd", f"optimizer._target_={target}", *removed, *schedule)


@pytest.mark.parametrize("name", TORCHS)
def test_the_table_of_torchs_optimizers_is_true(name: str) -> None:
    overrides = only_lr(f"torch.optim.{name}")
    if name not in REFUSED:
        loop, observed = make_loop(*overrides), RecordingTrial()
        loop.run(observed)
        assert observed.curve("val/loss")[-1] < observed.curve("val/loss")[0]
        return
    with pytest.raises(SweepError) as caught:
        make_loop(*overrides).run(RecordingTrial())
    assert REFUSED[name] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_table_names_optimizers_that_exist() -> None:
    assert len(REFUSED) == 3
    assert REFUSED.keys() < {*TORCHS}


def assert_trains_and_resumes(overrides: tuple[str, ...], targets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEP_TARGETS", targets)
    saved: list[bytes] = []
    loop, observed = (
        make_loop(*overrides),
        RecordingTrial(saves=True, on_save=lambda state: saved.append(as_file(state))),
    )
    loop.run(observed)
    uninterrupted = RecordingTrial()
    make_loop(*overrides).run(uninterrupted)
    assert observed.points == uninterrupted.points, "saving, which happens in both modes, changes nothing"
    assert loop.best is not None
    assert loop.best.value < observed.curve("val/loss")[0]
    loop.model.load_state_dict(loop.best.weights)
    with torch.no_grad():
        outputs = loop.forward(tensor_data(loop).val.x)
    assert loop.best.value == pytest.approx(
        tensor_task(loop).loss_of(outputs, tensor_data(loop).val.y).item(), rel=1e-6
    )
    for state in (saved[6], saved[11], saved[14]):
        resumed, again = make_loop(*overrides), RecordingTrial()
        resumed.load_state_dict(torch.load(io.BytesIO(state), weights_only=True))
        resumed.run(again)
        assert again.points.items() <= observed.points.items()
        assert again.epochs.items() <= observed.epochs.items()


@pytest.mark.parametrize("target", PACKAGED)
def test_optimizers_of_packages_train_and_resume_bit_for_bit(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = target.partition(".")[0]
    pytest.importorskip(package)
    assert_trains_and_resumes(only_lr(target), f"{package}.*", monkeypatch)


def test_muon_trains_matrices_and_adam_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytorch_optimizer")
    overrides = only_lr("pytorch_optimizer.Muon")
    groups = "optimizer.groups={*.weight: {use_muon: true}, *: {use_muon: false}}"
    assert_trains_and_resumes((*overrides, groups), "pytorch_optimizer.*", monkeypatch)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("schedulefree.AdamWScheduleFreeClosure", "evaluates the loss itself"),
        ("pytorch_optimizer.AliG", "has no learning rate that a schedule could set; choose another"),
        ("pytorch_optimizer.BSAM", "BSAM needs it; set optimizer.num_data=..."),
    ],
)
def test_an_optimizer_of_a_package_that_does_not_work_is_refused_in_one_line(
    target: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = target.partition(".")[0]
    pytest.importorskip(package)
    monkeypatch.setenv("SWEEP_TARGETS", f"{package}.*")
    with pytest.raises(ConfigError) as caught:
        make_loop(*only_lr(target))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
