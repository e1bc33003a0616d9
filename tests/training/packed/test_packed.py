"""sweep/training/packed/pack.py: a trial in a pack comes to what it comes to alone."""

import copy
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import OVERSHOOTING, SMALL, RecordingTrial, make_loop
from packs import (
    CYCLIC,
    Odd,
    Stop,
    alone,
    assert_close,
    both_ways,
    cycling_momentum,
    half_trained,
    in_float64,
    member_of,
    pack_of,
    seeded,
    stop_after_2,
    together,
    weighted,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LRScheduler

from sweep import Samples, compose
from sweep.training import checkpoint, tensors
from sweep.training.loop import TrainingLoop
from sweep.training.packed import pack
from sweep.training.packed.parameters import Unpackable
from sweep.utils.errors import ConfigError, Diverged, Pruned

pytestmark = pytest.mark.slow

RULES = {
    "sgd": ("optimizer=sgd",),
    "momentum": ("optimizer=momentum", "+optimizer.dampening=0.2", "optimizer.weight_decay=1e-3"),
    "nesterov": ("optimizer=nesterov",),
    "adam": ("optimizer=adam", "optimizer.weight_decay=1e-3"),
    "adam-amsgrad": ("optimizer=adam", "+optimizer.amsgrad=true"),
    "adamw": ("optimizer=adamw",),
    "rmsprop": ("optimizer=rmsprop", "optimizer.momentum=0.5", "+optimizer.centered=true"),
    "adagrad": ("optimizer=adagrad", "+optimizer.lr_decay=1e-3", "+optimizer.initial_accumulator_value=0.1"),
    "nadam": ("optimizer=nadam", "+optimizer.decoupled_weight_decay=true", "optimizer.weight_decay=1e-2"),
    "radam": ("optimizer=radam",),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rule", RULES)
def test_200_steps_in_float64_are_those_of_each_trial_alone(rule: str) -> None:
    differing = [("2e-2",), ("1e-2", "trainer.epochs=20"), ("5e-3", "trainer.epochs=7"), ("3e-2",)]
    overrides = [
        (*RULES[rule], *CYCLIC, "trainer.epochs=40", f"seed={seed}", f"scheduler.max_lr={lr}", *more)
        for seed, (lr, *more) in enumerate(differing)
    ]
    expected = [alone(in_float64(*o)) for o in overrides]
    fits = [in_float64(*o) for o in overrides]
    members = [member_of(fit) for fit in fits]
    ended = together(pack_of(fits[0]), [member for member, _ in members], width=3)  # the last takes the third's row
    assert set(ended.values()) == {None}
    for (_, observed), one in zip(members, expected, strict=True):
        assert_close(observed, one, rtol=1e-9)


def labels() -> Samples:
    x = np.random.default_rng(0).normal(size=(96, 4))
    return Samples(name="labels", task="multilabel", x=x, y=(x[:, :3] + x[:, 3:] > 0.2).astype(int))


def pixels() -> Samples:
    x = np.random.default_rng(0).normal(size=(96, 2, 4, 5))
    return Samples(name="pixels", task="segmentation", x=x, y=x.argmax(axis=1))


def tokens() -> Samples:
    x = np.random.default_rng(0).integers(0, 6, size=(96, 5))
    return Samples(name="tokens", task="language_model", x=x, y=(x + 1) % 6)


class Pixelwise(nn.Module):
    """Works on the channels of each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.movedim(1, -1)).movedim(-1, 1)


def tokenwise() -> nn.Module:
    return nn.Sequential(nn.Embedding(6, 8), nn.Linear(8, 6))


TASKS = {
    **{
        f"regression-{loss}": (f"task/loss={loss}", "task/metrics=[rmse,mape]")
        for loss in ("mse", "mae", "huber", "smooth_l1")
    },
    "counts": ("task/loss=poisson", "split.normalize=false"),
    "quantile": ("task=quantile",),
    "classification": (
        "data=digits",
        "+task.loss.weight=balanced",
        "+task.loss.label_smoothing=0.1",
        "split.max_samples=500",
    ),
    "classification-metrics": ("data=digits", "task/metrics=[f1,precision,recall,mcc]", "split.max_samples=500"),
    "binary": ("data=breast_cancer", "task=binary", "task.loss.pos_weight=[0.5]", "task/metrics=[auroc,accuracy,f1]"),
    "multilabel": (f"data._target_={__name__}.labels", "+task.loss.pos_weight=balanced"),
    "segmentation": (f"data._target_={__name__}.pixels",),
    "language_model": (f"data._target_={__name__}.tokens",),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("has_weights", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_and_loss_packs(task: str, has_weights: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEP_TARGETS", f"{__name__}.*")
    overrides = TASKS[task]
    if overrides[0].startswith("data._target_"):
        overrides = (*overrides, *(f"~data.{key}" for key in compose([]).data if key != "_target_"))
    model = {"segmentation": Pixelwise, "language_model": tokenwise}.get(task)
    base = ("data.n=96", *SMALL[1:]) if "data" not in overrides[0] else SMALL[1:]

    def made(*own: str) -> TrainingLoop:
        few = ("split.max_samples=300",) if has_weights else ()
        fit = in_float64(*own, *few, base=base, make_model=model)
        return weighted(fit) if has_weights else fit

    both_ways(*seeded(*overrides, "trainer.epochs=2"), make=made, rtol=1e-9)


@pytest.mark.usefixtures("float64")
def test_dropout_masks_are_those_of_each_trial_alone() -> None:
    _, _, expected = both_ways(
        *seeded("model.dropout=0.3", "model.widths=[8,8]", lrs=(1e-2, 1e-2, 1e-2, 1e-2)),
        make=in_float64,
        rtol=1e-9,
        width=3,  # the last trial comes later, and draws its masks from the start
    )
    undropped = alone(in_float64(*seeded("model.widths=[8,8]")[0]))
    assert expected[0].points != undropped.points, "the case needs dropout that matters"


@pytest.mark.usefixtures("float64")
def test_gradients_are_clipped_trial_by_trial() -> None:
    overrides = [(*own, f"trainer.clip_norm={norm}") for own, norm in zip(seeded(), (0.05, 0.5, 1e9), strict=True)]
    overrides = [("optimizer=momentum", *own) for own in overrides]
    _, _, expected = both_ways(*overrides, make=in_float64, rtol=1e-9)
    unclipped = [alone(in_float64(*own, "trainer.clip_norm=null")) for own in overrides]
    alike = [one.points == other.points for one, other in zip(expected, unclipped, strict=True)]
    assert alike == [False, False, True], "the case needs norms that matter, but for the last"


@pytest.mark.parametrize("rest", [(), ("model.dropout=0.2", "trainer.clip_norm=1.0")], ids=["plain", "dropout-clipped"])
def test_a_trial_that_diverges_leaves_its_neighbours_as_they_are_bit_for_bit(rest: tuple[str, ...]) -> None:
    def trained(middle: str) -> tuple[list[RecordingTrial], Exception | None]:
        """Of three; the one in the middle has one epoch only."""
        common = ("optimizer=sgd", "scheduler=constant", *rest)
        fits = [
            make_loop(*common, "optimizer.lr=0.05"),
            make_loop(*common, f"optimizer.lr={middle}", "seed=1", "trainer.epochs=1"),
            make_loop(*common, "optimizer.lr=0.1", "seed=2"),
        ]
        placed = [member_of(fit) for fit in fits]
        ended = together(pack_of(fits[0]), [member for member, _ in placed])
        assert ended[placed[0][0]] is ended[placed[2][0]] is None
        return [observed for _, observed in placed], ended[placed[1][0]]

    calm, error = trained("0.01")
    assert error is None
    wild, error = trained("1e30")
    assert isinstance(error, Diverged)
    for i in (0, 2):
        assert (wild[i].points, wild[i].epochs) == (calm[i].points, calm[i].epochs)
    assert wild[1].epochs == {}


@pytest.mark.parametrize(("lr", "batch_size"), [("100", 4), ("1e25", 68)], ids=["in training", "in validation"])
def test_a_trial_diverges_as_it_does_alone(lr: str, batch_size: int) -> None:
    common = ("optimizer=sgd", "scheduler=constant", "model.widths=[]", f"trainer.batch_size={batch_size}")
    fit, expected = make_loop(*common, f"optimizer.lr={lr}"), RecordingTrial()
    with pytest.raises(Diverged) as caught:
        fit.run(expected)
    fits = [make_loop(*common, "optimizer.lr=0.01"), make_loop(*common, f"optimizer.lr={lr}")]
    (good, _), (bad, observed) = [member_of(fit) for fit in fits]
    ended = together(pack_of(fits[0]), [good, bad])
    error = ended[bad]
    assert ended[good] is None
    assert isinstance(error, Diverged)
    assert (error.metric, error.step, error.lr) == (caught.value.metric, caught.value.step, caught.value.lr)
    assert list(observed.points) == list(expected.points)
    for step, (loss, _) in expected.points.items():
        assert observed.points[step][0] == pytest.approx(loss, rel=1e-4)


def test_patience_ends_each_trial_where_it_ends_alone() -> None:
    overrides = [
        (
            *OVERSHOOTING,
            "optimizer.lr=0.8",
            f"trainer.patience={patience}",
            f"trainer.min_delta={min_delta}",
            f"seed={seed}",
        )
        for patience, min_delta, seed in [(1, 0.0, 0), (2, 0.05, 1), (4, 0.2, 0), ("null", 0.0, 0), (2, 0.0, 1)]
    ]
    _, _, expected = both_ways(*overrides, make=in_float64, rtol=1e-7, width=2)
    lengths = [len(one.epochs) for one in expected]
    assert len(set(lengths)) > 2, "the case needs trials that stop at different epochs"


def test_a_row_is_free_for_another_trial_as_soon_as_one_ends() -> None:
    n_epochs = (3, 1, 2, 4, 1)
    fits = [make_loop(f"trainer.epochs={n}", f"seed={i}") for i, n in enumerate(n_epochs)]
    placed = [member_of(fit) for fit in fits]
    waiting, pack, widths = [member for member, _ in placed], pack_of(fits[0]), []
    while waiting or pack.members:
        while waiting and len(pack.members) < 2:
            pack.admit(waiting.pop(0))
        widths.append(len(pack.members))
        for member in pack.train_epoch():
            pack.release(member)
    assert widths == [2, 2, 2, 2, 1, 1, 1]
    for (_, observed), n, i in zip(placed, n_epochs, range(5), strict=True):
        assert_close(observed, alone(make_loop(f"trainer.epochs={n}", f"seed={i}")), rtol=1e-4)


def test_a_report_that_ends_a_trial_ends_no_other() -> None:
    fits = [make_loop(f"seed={i}") for i in range(3)]
    placed = [member_of(fit) for fit in fits]

    def prune(epoch: int) -> None:
        if epoch == 2:
            raise Pruned(epoch)

    placed[1][0].trial = pruned = RecordingTrial(prune)
    ended = together(pack_of(fits[0]), [member for member, _ in placed])
    assert [type(ended[member]) for member, _ in placed] == [type(None), Pruned, type(None)]
    assert list(pruned.epochs) == [1, 2]
    for i in (0, 2):
        assert_close(placed[i][1], alone(make_loop(f"seed={i}")), rtol=1e-4)


DIGITS = ("data=digits", "split.max_samples=50", "trainer.batch_size=16", "trainer.epochs=2")


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "model",
    [
        ("model.widths=[8]",),
        ("model=convnet", "model.channels=[2]", "model.dropout=0.2"),
        ("model=resnet", "model.widths=[2,4]", "model.n_blocks=1"),
    ],
)
def test_classification_is_that_of_each_trial_alone(model: tuple[str, ...]) -> None:
    _, _, expected = both_ways(*seeded(*model), make=partial(in_float64, base=DIGITS), rtol=1e-9)
    assert len(expected[0].points) == 2 * 3, "the last batch is of 2"
    assert "val/accuracy" in expected[0].epochs[1]


@pytest.mark.usefixtures("float64")
def test_a_transformer_on_text_is_that_of_each_trial_alone(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(bytes(i * i % 251 for i in range(400)))
    model = ("model=transformer", "model.width=8", "model.n_layers=1", "model.n_heads=2", "model.dropout=0.2")
    text = ("data=text", f"data.path={tmp_path}/t.txt", "data.block_size=8", "trainer.batch_size=8", "trainer.epochs=2")
    both_ways(*seeded(*model), make=partial(in_float64, base=text), rtol=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("optimizer", "scheduler", "lr"),
    [
        (("momentum",), ("plateau", "scheduler.patience=0"), "optimizer.lr"),
        (("momentum",), ("onecycle",), "scheduler.max_lr"),  # which cycles momentum, too
        (("rmsprop", "optimizer.momentum=0.5"), ("onecycle",), "scheduler.max_lr"),
        (("adam",), ("onecycle",), "scheduler.max_lr"),  # or betas
        (("adam",), ("cosine_restarts",), "optimizer.lr"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_each_trial_has_a_schedule_of_its_own(optimizer: tuple[str, ...], scheduler: tuple[str, ...], lr: str) -> None:
    common = (f"optimizer={optimizer[0]}", f"scheduler={scheduler[0]}", *optimizer[1:], *scheduler[1:])
    overrides = [
        (*common, f"{lr}={value}", f"seed={seed}", "trainer.epochs=8") for seed, value in enumerate((0.3, 0.03, 0.1))
    ]
    _, _, expected = both_ways(*overrides, make=in_float64, rtol=1e-8)
    shapes = {tuple(lr / one.curve("lr")[0] for lr in one.curve("lr")) for one in expected}
    assert shapes != {(1.0,) * 8}, "the case needs learning rates that change"
    if scheduler[0] == "plateau":
        assert len(shapes) == 3, "the case needs trials whose rates fall at different epochs"


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("optimizer", ["momentum", "nesterov", "rmsprop"])
def test_a_momentum_that_reaches_0_skips_the_buffer_in_each_trial_by_itself(optimizer: str) -> None:
    rest = ("optimizer.momentum=0.9",)
    overrides = [cycling_momentum(optimizer, step_size, *rest) for step_size in (2, 3, 5)]
    both_ways(*overrides, make=in_float64, rtol=1e-9)


@pytest.mark.process
def test_a_compiled_pack_skips_the_buffer_where_the_momentum_is_0() -> None:
    overrides = [cycling_momentum("momentum", step_size, "model.widths=[4]") for step_size in (2, 3)]
    expected = [alone(make_loop(*own)) for own in overrides]
    fits = [make_loop(*own, "trainer.compile=true") for own in overrides]
    placed = [member_of(fit) for fit in fits]
    together(pack_of(fits[0]), [member for member, _ in placed])
    for (_, observed), one in zip(placed, expected, strict=True):
        assert_close(observed, one, rtol=1e-4)


class DecayingLater(LRScheduler):
    """A scheduler of one's own: momentum and weight decay begin at 0, and set in after the first epoch."""

    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        for group in self.optimizer.param_groups:
            group["momentum"] = 0.0 if self.last_epoch < 7 else 0.8
            group["weight_decay"] = 0.0 if self.last_epoch < 7 else 0.3

    def get_lr(self) -> list[float | Tensor]:
        return self.base_lrs


@pytest.mark.usefixtures("float64")
def test_whatever_a_scheduler_of_ones_own_sets_reaches_the_trial_alone_and_in_a_pack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SWEEP_TARGETS", f"{__name__}.*")
    own = ("optimizer=sgd", "scheduler=constant", f"scheduler._target_={__name__}.DecayingLater")
    overrides = [
        (*own, "scheduler.interval=step", f"optimizer.lr={lr}", f"seed={seed}") for seed, lr in enumerate((0.05, 0.02))
    ]
    _, _, expected = both_ways(*overrides, make=in_float64, rtol=1e-9)
    plain = alone(in_float64("optimizer=sgd", "scheduler=constant", "optimizer.lr=0.05"))
    changed = [step for step, point in expected[0].points.items() if point != plain.points[step]]
    assert changed[0] == 9, "the case needs an update that differs: the eighth"


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("optimizer", ["adam", "momentum", "adagrad"])
def test_weights_may_be_frozen_tied_or_unused_and_buffers_differ(optimizer: str) -> None:
    overrides = [(f"optimizer={optimizer}", *own) for own in seeded("optimizer.weight_decay=0.01")]
    _, members, _ = both_ways(*overrides, make=partial(in_float64, make_model=Odd), rtol=1e-9, width=2)
    weights = [member.best.weights for member in members if member.best is not None]
    assert torch.equal(weights[0]["again.weight"], weights[0]["tied.weight"])
    assert not torch.equal(weights[0]["frozen.weight"], weights[1]["frozen.weight"])
    assert not torch.equal(weights[0]["scale"], weights[1]["scale"])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_bf16_is_as_rough_as_it_is_alone(dropout: float) -> None:
    common = ("trainer.precision=bf16", f"model.dropout={dropout}", "trainer.epochs=6")
    _, members, _ = both_ways(*seeded(*common), rtol=0.03)
    exact = alone(make_loop(*seeded(*common, "trainer.precision=float32")[0]))
    assert members[0].best is not None
    assert {weight.dtype for weight in members[0].best.weights.values()} == {torch.float32}
    observed = members[0].trial
    assert isinstance(observed, RecordingTrial)
    assert observed.points[1][0] != exact.points[1][0], "the case needs rounding that shows"


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("most", [100, 10])  # the validation split has 14 outputs
def test_a_pack_keeps_only_so_many_outputs_at_once(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [alone(in_float64(*own)) for own in seeded(lrs=[1e-3] * 8)]
    monkeypatch.setattr(tensors, "MOST_OUTPUTS", most)
    fits = [in_float64(*own) for own in seeded(lrs=[1e-3] * 8)]
    placed = [member_of(fit) for fit in fits]
    together(pack_of(fits[0]), [member for member, _ in placed])
    for (_, observed), one in zip(placed, expected, strict=True):
        assert_close(observed, one, rtol=1e-9)


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


class Dropping(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(functional.dropout(input, 0.1, self.training))


class Deciding(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        outputs = super().forward(input)
        return outputs if outputs.sum() > 0 else -outputs


class Counting(nn.Linear):
    n: Tensor

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.register_buffer("n", torch.zeros(()))

    def forward(self, input: Tensor) -> Tensor:
        self.n += self.training
        return super().forward(input)


class DroppingTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(1, 1), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.layer(self.dropout(x)))


def mixed() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 1).double())


@pytest.mark.parametrize(
    ("make_model", "message"),
    [
        (normed, r"BatchNorm1d \('1'\) keeps running statistics"),
        (lambda: Dropping(1, 1), r"torch.func cannot stack the model \(.*random"),
        (lambda: nn.Sequential(nn.Linear(1, 1), nn.AlphaDropout(0.1)), r"torch.func cannot stack the model \(.*random"),
        (lambda: Deciding(1, 1), r"torch.func cannot stack the model \(.*control flow"),
        (lambda: Counting(1, 1), r"the model changes its buffers while it trains"),
        (DroppingTwice, r"the model draws from one dropout layer several times"),
    ],
    ids=["BatchNorm", "functional dropout", "other dropout", "control flow", "buffer", "dropout used twice"],
)
def test_what_cannot_be_stacked_is_refused_and_told_why(make_model: Callable[[], nn.Module], message: str) -> None:
    fit = make_loop(make_model=make_model)
    before = copy.deepcopy(fit.model.state_dict())
    random = torch.random.get_rng_state()
    with pytest.raises(Unpackable, match=message) as caught:
        pack_of(fit)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(weight, before[name]) for name, weight in fit.model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)


DROPPING = ("model.dropout=0.3",)
RESUMED = [
    (cycling_momentum("momentum", 10), None),
    (("optimizer=sgd", *DROPPING), None),
    (("optimizer=momentum", "scheduler=onecycle", *DROPPING), None),
    (("optimizer=nadam", "scheduler=plateau", "scheduler.patience=0", *DROPPING), None),
    (("optimizer=adam", "+optimizer.amsgrad=true"), Odd),
    (("optimizer=adagrad", "scheduler=constant"), Odd),
    (("optimizer=rmsprop", "optimizer.momentum=0.5", "+optimizer.centered=true"), Odd),
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("kind", "model"), RESUMED, ids=[kind[0] for kind, _ in RESUMED])
def test_a_trial_moves_out_of_a_pack_and_into_another_at_a_checkpoint(
    kind: tuple[str, ...], model: Callable[[], nn.Module] | None, tmp_path: Path
) -> None:
    make = partial(in_float64, make_model=model)
    overrides = [(*kind, f"seed={seed}", "trainer.epochs=4") for seed in range(3)]
    pack, placed, expected = half_trained(overrides, make)
    for i, (member, observed) in enumerate(placed):  # goes on alone
        checkpoint.save(tmp_path / f"{i}.pt", pack.state_dict(member))
        fit = make(*overrides[i])
        fit.load_state_dict(checkpoint.load(tmp_path / f"{i}.pt"))
        fit.run(observed)
        assert_close(observed, expected[i], rtol=1e-9)

    placed = []
    for i, own in enumerate(overrides):  # from alone into a pack
        fit, observed = make(*own), RecordingTrial(stop_after_2)
        with pytest.raises(Stop):
            fit.run(observed)
        checkpoint.save(tmp_path / f"{i}.pt", fit.state_dict())
        member, later = member_of(make(*own))
        later.points, later.epochs = observed.points, observed.epochs
        pack.load_state_dict(member, checkpoint.load(tmp_path / f"{i}.pt"))
        placed.append((member, later))
    together(pack_of(make(*overrides[0])), [member for member, _ in placed], width=2)
    for (_, observed), one in zip(placed, expected, strict=True):
        assert_close(observed, one, rtol=1e-9)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("model.widths=[16]", "another model than the config (layers.0.weight has the shape [16, 1], not [8, 1])"),
        ("optimizer=sgd", "another optimizer than the config (SGD, not Adam)"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(other: str, message: str) -> None:
    fit, another = make_loop(), make_loop(other)
    member, _ = member_of(fit)
    with pytest.raises(ConfigError, match=re.escape(message)):
        pack_of(fit).load_state_dict(member, another.state_dict())


def test_a_compiled_pack_is_compiled_once_whatever_its_width_and_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch import _inductor  # it takes a second to load

    monkeypatch.setattr(pack, "_BLOCK", {"cpu": 3})  # four rows are a block of three and one of one
    small = ("data.n=50", "split.val=0.24", "split.test=0.26", "trainer.batch_size=4", "model.widths=[4]")
    overrides = [
        (*small, f"trainer.epochs={n}", f"seed={n}", "scheduler=constant", f"optimizer.lr={0.01 * n}")
        for n in (5, 4, 2, 1, 3)
    ]
    expected = [alone(make_loop(*own)) for own in overrides]
    fits = [make_loop(*own, "trainer.compile=true") for own in overrides]
    assert fits[0].data.n_train % 4 == 1, "the case needs a last batch of one sample"
    placed = [member_of(fit) for fit in fits]
    calls = []
    compile_it = _inductor.standalone_compile
    monkeypatch.setattr(_inductor, "standalone_compile", lambda *a, **k: calls.append(a) or compile_it(*a, **k))
    together(pack_of(fits[0]), [member for member, _ in placed], width=4)  # then 3, 2 and 1
    assert len(calls) == 1
    for (_, observed), one in zip(placed, expected, strict=True):
        assert_close(observed, one, rtol=1e-4)


def test_64_learning_rates_in_float32_rank_as_they_do_alone() -> None:
    def with_lr(lr: str) -> TrainingLoop:
        """Without a config of its own, which takes longer to compose than the trial to train."""
        fit = make_loop("scheduler=constant", "trainer.epochs=10")
        for optimizer in (fit.optimizer, fit.schedule.optimizer):
            optimizer.param_groups[0]["lr"] = float(lr)
        return fit

    lrs = [(f"{10 ** (-4 + i / 21):.6g}",) for i in range(64)]
    _, members, expected = both_ways(*lrs, make=with_lr, rtol=2e-3, width=64)
    values = [min(one.curve("val/loss")) for one in expected]
    best = [member.best.value for member in members if member.best is not None]
    assert best == pytest.approx(values, rel=1e-4)
    assert sorted(range(64), key=best.__getitem__) == sorted(range(64), key=values.__getitem__)
    assert len(set(values)) == 64
    assert min(values) < max(values) / 2, "the case needs values that differ"


def test_a_scheduler_that_raises_ends_its_own_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "_BLOCK", {})  # as on a GPU, where all rows are one block
    fits = [make_loop(f"seed={i}") for i in range(2)]
    (good, observed), (bad, _) = [member_of(fit) for fit in fits]

    def fail(n_updates: int, begun: Sequence[int]) -> None:
        raise ValueError("a scheduler of the user's")

    monkeypatch.setattr(bad.schedule, "start_epoch", fail)
    ended = together(pack_of(fits[0]), [bad])
    assert isinstance(ended[bad], ValueError)
    (bad, _) = member_of(make_loop("seed=1"))
    monkeypatch.setattr(bad.schedule, "start_epoch", fail)
    ended = together(pack_of(fits[0]), [bad, good])
    assert (type(ended[bad]), ended[good]) == (ValueError, None)
    assert_close(observed, alone(make_loop("seed=0")), rtol=1e-4)


def test_a_trial_that_was_over_when_it_was_saved_is_not_trained_on() -> None:
    """Its worker was killed after the last checkpoint, and before the end of its record."""
    saved: list[dict[str, Any]] = []
    fit = make_loop("scheduler=onecycle", "trainer.checkpoint_interval_s=0")
    fit.run(RecordingTrial(saves=True, on_save=lambda state: saved.append(copy.deepcopy({**state}))))
    fits = [make_loop("scheduler=onecycle", f"seed={seed}") for seed in range(2)]
    (over, observed), (other, others) = [member_of(one) for one in fits]
    pack = pack_of(fits[0])
    pack.load_state_dict(over, saved[-1])
    assert together(pack, [over, other]) == {over: None, other: None}
    assert (observed.points, observed.epochs, over.epoch) == ({}, {}, 4)
    assert_close(others, alone(make_loop("scheduler=onecycle", "seed=1")), rtol=1e-4)
