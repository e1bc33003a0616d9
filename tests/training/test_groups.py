"""optimizer.groups, optimizer.freeze and optimizer.no_decay: which weights are trained with which values."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RecordingTrial, make_loop
from packs import member_of, pack_of, tensor_data, together
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, Optimizer

from sweep import ConfigError, compose, run_trial
from sweep.config.schema import validate
from sweep.study.identity import differences
from sweep.tracking.description import hyperparameters
from sweep.training import checkpoint
from sweep.training.groups import parameter_groups
from sweep.training.loop import TrainingLoop
from sweep.training.packed.parameters import Unpackable
from sweep.training.tensors import epoch_order
from sweep.trial import build
from sweep.trial.pack_scheduler import PackScheduler
from sweep.trial.prepare import load_data

pytestmark = pytest.mark.targets(f"{__name__}.*")

FIRST = "layers.0.*"  # of the MLP: layers.0 and layers.2, with weights and biases
GROUPS = "optimizer.groups={*.bias: {weight_decay: 0, lr_scale: 3}, layers.0.*: {lr_scale: 0.1}}"
NODE: dict[str, Any] = {"_target_": "torch.optim.AdamW", "lr": 1e-2, "weight_decay": 0.1}
TORCH_ONECYCLE = ("scheduler=onecycle", "scheduler._target_=torch.optim.lr_scheduler.OneCycleLR")
TORCH_ONECYCLE = (*TORCH_ONECYCLE, "scheduler.max_lr=0.1")
SCHEDULES = {
    "constant": ("scheduler=constant",),
    "cyclic": ("scheduler=cyclic", "scheduler.cycle_epochs=2"),
    "cosine": ("scheduler=cosine", "scheduler.min_lr=1e-4"),
    "onecycle": ("scheduler=onecycle",),
    "torch's onecycle": (*TORCH_ONECYCLE, "+scheduler.cycle_momentum=false"),
    "plateau": ("scheduler=plateau", "scheduler.patience=0", "++scheduler.threshold=0.9"),
}


def trained(*overrides: str) -> tuple[TrainingLoop, RecordingTrial]:
    fit, observed = make_loop(*overrides), RecordingTrial()
    fit.run(observed)
    return fit, observed


def weights(fit: TrainingLoop) -> dict[str, Tensor]:
    return dict(fit.model.state_dict())


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_groups_train_as_in_a_plain_loop_and_follow_the_schedule_in_proportion(schedule: tuple[str, ...]) -> None:
    overrides = ("optimizer=sgd", "optimizer.weight_decay=0.1", *schedule)
    fit = make_loop(*overrides, GROUPS)
    model, observed = copy.deepcopy(fit.model), RecordingTrial()
    fit.run(observed)
    named = dict(model.named_parameters())
    by_hand = SGD(
        [
            {"params": [named["layers.2.weight"]], "weight_decay": 0.1, "scale": 1},
            {"params": [named["layers.0.bias"], named["layers.2.bias"]], "weight_decay": 0.0, "scale": 3},
            {"params": [named["layers.0.weight"]], "weight_decay": 0.1, "scale": 0.1},
        ]
    )
    train, step = tensor_data(fit).train, 0
    for epoch in range(1, 5):
        for rows in epoch_order(0, epoch, 68).split(16):
            step += 1
            for group in by_hand.param_groups:
                group["lr"] = observed.points[step][1] * group["scale"]
            by_hand.zero_grad()
            functional.mse_loss(model(train.x[rows]), train.y[rows]).backward()
            by_hand.step()
    torch.testing.assert_close(weights(fit), dict(model.state_dict()))
    if "plateau" not in schedule[0]:  # that one follows the losses, which differ
        assert observed.curve("lr") == trained(*overrides)[1].curve("lr"), "the recorded rate is the schedule's own"
    assert len(set(observed.curve("lr"))) > 1 or "constant" in schedule[0]


def test_no_decay_spares_biases_and_norms_and_a_pattern_may_decide_otherwise() -> None:
    layers: list[nn.Module] = [nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)]
    model = nn.Sequential(*layers)
    node = {**NODE, "no_decay": "norm_and_bias", "groups": {"0.*": {"lr_scale": 0.5}, "1.bias": {"weight_decay": 0.2}}}
    made = build.optimizer(node, model)
    names = {id(weight): name for name, weight in model.named_parameters()}
    found = {
        names[id(weight)]: (group["weight_decay"], group.get("lr_scale", 1.0))
        for group in made.param_groups
        for weight in group["params"]
    }
    assert found == {
        "0.weight": (0.1, 0.5),
        "0.bias": (0.0, 0.5),
        "1.weight": (0.0, 1.0),
        "1.bias": (0.2, 1.0),
        "2.weight": (0.1, 1.0),
        "2.bias": (0.0, 1.0),
    }


def test_no_decay_changes_what_is_trained() -> None:
    common = ("optimizer=adamw", "optimizer.weight_decay=0.5")
    fit, spared = trained(*common)[0], trained(*common, "optimizer.no_decay=norm_and_bias")[0]
    same = trained(*common, "optimizer.groups={*.bias: {weight_decay: 0}}")[0]
    assert not torch.equal(weights(fit)["layers.0.bias"], weights(spared)["layers.0.bias"])
    assert all(torch.equal(weight, weights(same)[name]) for name, weight in weights(spared).items())


def test_the_first_matching_pattern_wins() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    groups = parameter_groups(model, {"*.bias": {"a": 1}, "1.*": {"b": 2}}, spares_norms_and_biases=False)
    assert [(group.pattern, group.names) for group in groups] == [
        (None, ("0.weight",)),
        ("*.bias", ("0.bias", "1.bias")),
        ("1.*", ("1.weight",)),
    ]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"groups": {"backbone.*": {"lr_scale": 0.1}}}, "optimizer.groups: 'backbone.*' matches no weight; the model"),
        (
            {"groups": {"*": {"lr_scale": 2}, "*bias": {"weight_decay": 0}}},
            "optimizer.groups: '*bias' matches only weights of patterns before it; move it up",
        ),
        ({"groups": {"*": {"decay": 0}}}, "optimizer.groups.*.decay: torch.optim.AdamW has no decay in its groups; "),
        ({"groups": {"*": {"weight_decay": "x"}}}, "optimizer.groups.*.weight_decay: must be a number, got 'x'"),
        ({"groups": {"*": {"weight_decay": -1}}}, "optimizer.groups.*.weight_decay: Invalid weight_decay value: -1"),
        ({"groups": {"*": {"betas": [0.9]}}}, "optimizer.groups.*.betas: must be a list of 2"),
        (
            {"_target_": "torch.optim.Rprop", "lr": 0.1, "no_decay": "norm_and_bias"},
            "optimizer.no_decay: torch.optim.Rprop has no weight_decay in its groups; they have: ",
        ),
    ],
)  # fmt: skip
def test_a_group_that_cannot_be_is_refused_in_one_line(changes: dict[str, Any], says: str) -> None:
    node = {**NODE, **changes}
    if "Rprop" in node["_target_"]:
        del node["weight_decay"]
    with pytest.raises(ConfigError) as caught:
        build.optimizer(node, nn.Linear(2, 1))
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optimizer.groups=3", "optimizer.groups: must map patterns of names to values, got 3"),
        ("optimizer.groups={a: 3}", "optimizer.groups.a: must map names to values"),
        ("optimizer.groups={a: {lr: 0.1}}", "optimizer.groups.a.lr: a group cannot set it; set lr_scale"),
        ("optimizer.groups={a: {lr_scale: 0}}", "optimizer.groups.a.lr_scale: must be a finite number > 0, got 0"),
        ("optimizer.groups={a: {lr_scale: yes}}", "optimizer.groups.a.lr_scale: must be a finite number > 0"),
        ("optimizer.freeze=layers", "optimizer.freeze: must be a list of patterns"),
        ("optimizer.no_decay=bias", "optimizer.no_decay: 'bias' is unknown; choose one of norm_and_bias"),
    ],
)
def test_a_value_of_the_wrong_form_is_refused_before_torch_is_loaded(override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(compose([override]))
    assert str(caught.value).startswith(says)


def test_a_group_cannot_set_what_the_schedule_cycles() -> None:
    with pytest.raises(
        ConfigError, match=r"optimizer\.groups\.\*\.bias\.momentum: the schedule sets it for all groups"
    ):
        make_loop("optimizer=momentum", *TORCH_ONECYCLE, "optimizer.groups={*.bias: {momentum: 0.5}}")


# Freezing


@pytest.mark.process
def test_frozen_weights_stay_and_the_others_train(tmp_path: Path) -> None:
    quick = ("experiment=debug", "tracking=off", f"output_dir={tmp_path}")
    outcome = run_trial(compose([*quick, f"optimizer.freeze=[{FIRST}]", "model.widths=[8]", "optimizer=adamw"]))
    initial = checkpoint.load(outcome.folder / "best.pt")["model"]
    again = run_trial(compose([*quick, "model.widths=[8]", "optimizer=adamw", "trainer.epochs=1"]))
    free = checkpoint.load(again.folder / "best.pt")["model"]
    fresh = make_loop("model.widths=[8]").model.state_dict()
    assert torch.equal(initial["layers.0.weight"], fresh["layers.0.weight"])
    assert not torch.equal(initial["layers.2.weight"], fresh["layers.2.weight"])
    assert not torch.equal(free["layers.0.weight"], fresh["layers.0.weight"])


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("backbone.*", "optimizer.freeze: 'backbone.*' matches no weight; the model has layers.0.weight, "),
        ("*", "optimizer.freeze: leaves no weight to train; freeze fewer"),
    ],
)
@pytest.mark.process
def test_freezing_nothing_or_everything_is_refused(pattern: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run_trial(compose(["tracking=off", f"output_dir={tmp_path}", f"optimizer.freeze=[{pattern}]"]))
    assert str(caught.value).startswith(says)
    assert not [*tmp_path.glob("runs/*/journal.jsonl")]


# Optimizers that ask for more than weights


class Named(Adam):
    """Asks for the names of the weights."""

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], lr: float = 1e-3) -> None:
        named = [*named_parameters]
        biases = [weight for name, weight in named if name.endswith("bias")]
        others = [weight for name, weight in named if not name.endswith("bias")]
        super().__init__([{"params": others}, {"params": biases, "eps": 1.0}], lr)


def of_the_model(model: nn.Module, lr: float) -> Optimizer:
    """Asks for the model."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return SGD([{"params": [*layer.parameters()]} for layer in linear], lr)


def of_both(params: Any, model: nn.Module, lr: float) -> Optimizer:
    assert len([*model.parameters()]) == 4
    return SGD(params, lr)


@pytest.mark.parametrize(("target", "n_groups"), [("Named", 2), ("of_the_model", 2), ("of_both", 1)])
def test_an_optimizer_gets_names_or_the_model_where_it_asks_for_them(target: str, n_groups: int) -> None:
    keys = compose(["optimizer=sgd"]).optimizer
    only = [f"~optimizer.{key}" for key in keys if key not in ("_target_", "lr", "groups")]
    overrides = ("optimizer=sgd", f"optimizer._target_={__name__}.{target}", *only)
    fit, observed = trained(*overrides, "scheduler=cosine")
    assert len(fit.optimizer.param_groups) == len(fit.schedule.optimizer.param_groups) == n_groups
    held = {id(weight) for group in fit.optimizer.param_groups for weight in group["params"]}
    assert held == {id(weight) for weight in fit.model.parameters()}
    shadows = {id(weight) for group in fit.schedule.optimizer.param_groups for weight in group["params"]}
    assert not held & shadows
    assert observed.curve("val/loss")[-1] < observed.curve("val/loss")[0]
    if target != "of_both":
        with pytest.raises(ConfigError, match=r"takes the model or the weights' names, and makes its own groups"):
            make_loop(*overrides, "optimizer.groups={*.bias: {eps: 1}}")


# Resuming, packing, records


def test_groups_resume_bit_for_bit(tmp_path: Path) -> None:
    overrides = ("optimizer=adam", "scheduler=cyclic", "scheduler.cycle_epochs=2", GROUPS)
    complete, complete_observed = trained(*overrides)
    saved: list[Path] = []

    def save(state: Any) -> None:
        path = tmp_path / f"{len(saved)}.pt"
        checkpoint.save(path, {**state})
        saved.append(path)

    make_loop(*overrides).run(RecordingTrial(saves=True, on_save=save))
    for path in saved[3::5]:
        fit, observed = make_loop(*overrides), RecordingTrial()
        fit.load_state_dict(checkpoint.load(path))
        fit.run(observed)
        assert observed.epochs.items() <= complete_observed.epochs.items()
        assert all(torch.equal(weight, weights(complete)[name]) for name, weight in weights(fit).items())


def of_halves(params: Any, lr: float) -> Optimizer:
    """Divides the weights itself."""
    weights = [*params]
    return SGD([{"params": weights[:2]}, {"params": weights[2:], "weight_decay": 0.1}], lr)


def test_trials_with_groups_share_a_pack_unless_the_optimizer_divides_the_weights_itself() -> None:
    scheduler = PackScheduler(2, 2, load_data)

    def member(*overrides: str) -> Any:
        return scheduler.member(validate(compose(["experiment=debug", "tracking=off", *overrides])))[0]

    one, other = (member("optimizer=adamw", GROUPS, f"seed={seed}") for seed in (0, 1))
    plain = member("optimizer=adamw")
    spared = member("optimizer=adamw", "optimizer.no_decay=norm_and_bias")
    assert one is other
    assert len({id(group) for group in (one, plain, spared)}) == 3
    keys = compose(["optimizer=sgd"]).optimizer
    only = [f"~optimizer.{key}" for key in keys if key not in ("_target_", "lr", "groups", "freeze", "no_decay")]
    with pytest.raises(Unpackable, match=r"\.of_halves divides the weights into groups itself$"):
        member("optimizer=sgd", f"optimizer._target_={__name__}.of_halves", *only)


def test_one_group_of_all_weights_and_frozen_weights_are_packed() -> None:
    overrides = [("optimizer.groups={*: {lr_scale: 0.5}}", f"seed={seed}", "scheduler=cyclic") for seed in (0, 1)]
    alone = [trained(*own)[1] for own in overrides]
    fits = [make_loop(*own) for own in overrides]
    placed = [member_of(fit) for fit in fits]
    together(pack_of(fits[0]), [member for member, _ in placed])
    for (_, observed), one in zip(placed, alone, strict=True):
        assert observed.curve("val/loss") == pytest.approx(one.curve("val/loss"), rel=1e-4)
        assert observed.curve("lr") == one.curve("lr")
    unscaled = trained("seed=0", "scheduler=cyclic")[1]
    assert alone[0].curve("lr") == unscaled.curve("lr")
    assert alone[0].curve("val/loss") != unscaled.curve("val/loss")


def test_trials_that_freeze_different_weights_do_not_share_a_pack() -> None:
    scheduler = PackScheduler(2, 2, load_data)
    groups = []
    for frozen in ("", FIRST, "", FIRST):
        overrides = ["experiment=debug", "tracking=off", f"optimizer.freeze=[{frozen}]"]
        groups.append(scheduler.member(validate(compose(overrides)))[0])
    assert groups[0] is groups[2] is not groups[1] is groups[3]
    assert groups[0].n_weights > groups[1].n_weights


def test_only_what_is_set_is_recorded_under_names_that_mlflow_takes() -> None:
    before = hyperparameters(validate(compose([])))
    assert not [name for name in before if name.startswith(("optimizer.groups", "optimizer.freeze"))]
    now = hyperparameters(validate(compose([GROUPS, "optimizer.freeze=[a]", "optimizer.no_decay=norm_and_bias"])))
    assert now.keys() - before.keys() == {"optimizer.groups", "optimizer.freeze", "optimizer.no_decay"}
    assert now["optimizer.groups"] == (
        '{"*.bias": {"weight_decay": 0, "lr_scale": 3}, "layers.0.*": {"lr_scale": 0.1}}'
    )


def test_a_study_from_before_a_key_has_not_changed_if_the_key_has_its_default() -> None:
    before = {"trainer.epochs": "60", "search.optimizer.lr": "log 1 to 2"}
    assert differences(before, {**before, "optimizer.groups": "null", "optimizer.freeze": "[]"}) == []
    assert differences({**before, "optimizer.freeze": "[]"}, before) == []
    assert differences(before, {**before, "optimizer.freeze": '["a"]'}) == ['optimizer.freeze = unset, now ["a"]']
    assert differences(before, {"trainer.epochs": "60"}) == ["search.optimizer.lr = log 1 to 2, now unset"]
    assert differences({"trainer.epochs": "50"}, {"trainer.epochs": "60"}) == ["trainer.epochs = 50, now 60"]
