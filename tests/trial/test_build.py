import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from refusals import refusal
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sweep import Samples
from sweep.config.options import CONF_DIR
from sweep.models import MLP
from sweep.trial import build

OPTIMIZERS = sorted(path.stem for path in (CONF_DIR / "optimizer").glob("*.yaml"))
ROWS = Samples(name="rows", task="regression", x=np.eye(6)[:, :3], y=np.arange(12.0).reshape(6, 2))
IMAGES = Samples(
    name="images", task="classification", x=np.random.default_rng(0).normal(size=(6, 2, 4, 4)), y=np.zeros(6, int)
)
ADAM = {"_target_": "torch.optim.Adam", "lr": 1e-3}


def make_optimizer(node: dict[str, Any], model: nn.Module | None = None) -> Optimizer:
    return build.optimizer(node, model or MLP(in_features=3, out_features=2))


def make_scheduler(node: dict[str, Any], steps_per_epoch: int = 5, epochs: int = 4) -> LRScheduler:
    return build.scheduler(node, steps_per_epoch, epochs)(make_optimizer(ADAM))


def loss_falls(node: dict[str, Any]) -> bool:
    torch.manual_seed(0)
    model = MLP(in_features=3, out_features=2, widths=[8])
    optimizer = make_optimizer(node, model)
    x, y = torch.from_numpy(ROWS.x).float(), torch.from_numpy(ROWS.y).float()
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[-1] < losses[0]


# Optimizers


@pytest.mark.parametrize("option", OPTIMIZERS)
def test_every_optimizer_option_trains(option: str):
    file: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "optimizer" / f"{option}.yaml"))
    node = file["optimizer"]
    assert loss_falls(node)
    group = make_optimizer(node).param_groups[0]
    for name, value in node.items():  # nothing that the file says is lost on the way
        if name != "_target_":
            assert group[name] == (tuple(value) if isinstance(group[name], tuple) else value)


@pytest.mark.parametrize("name", ["ASGD", "Adadelta", "Adafactor", "Adamax", "Rprop"])
def test_any_other_optimizer_of_torch_trains_by_its_target(name: str):
    assert loss_falls({"_target_": f"torch.optim.{name}", "lr": 0.01})


def test_an_optimizer_for_matrices_trains_a_model_without_biases():
    model = nn.Linear(3, 2, bias=False)
    assert type(make_optimizer({"_target_": "torch.optim.Muon", "lr": 0.01}, model)).__name__ == "Muon"


def test_an_optimizer_that_calls_the_loss_itself_is_refused():
    error = refusal(lambda: make_optimizer({"_target_": "torch.optim.LBFGS", "lr": 0.01}))
    assert error.key == "optimizer._target_"
    assert "evaluates the loss itself" in error.problem


@pytest.mark.parametrize(
    ("changes", "key", "says"),
    [
        ({"momentum": 0.9}, "optimizer.momentum", "Adam takes no such argument; it takes: lr, betas, eps, "),
        ({"params": []}, "optimizer.params", "takes no such argument"),  # the model's, not the config's
        ({"lr": "abc"}, "optimizer.lr", "must be a number, got 'abc'"),
        ({"eps": True}, "optimizer.eps", "must be a number, got True"),
        ({"fused": "yes"}, "optimizer.fused", "must be true or false or null, got 'yes'"),
        ({"betas": 0.9}, "optimizer.betas", "got 0.9"),
        ({"betas": [0.9]}, "optimizer.betas", "got [0.9]"),
        ({"betas": [0.9, 0.99, 0.999]}, "optimizer.betas", "got [0.9, 0.99, 0.999]"),
        ({"betas": [0.9, "high"]}, "optimizer.betas", "got [0.9, 'high']"),
        ({"betas": [0.9, 1.5]}, "optimizer.betas", "Invalid beta parameter at index 1: 1.5"),
        ({"weight_decay": -1.0}, "optimizer.weight_decay", "Invalid weight_decay value: -1.0"),
        ({"fused": True, "foreach": True}, "optimizer", "`fused` and `foreach` cannot be `True` together"),
        ({"_target_": "torch.optim.Adma"}, "optimizer._target_", "cannot load 'torch.optim.Adma'"),
        ({"_target_": "torch.optim.lr_scheduler"}, "optimizer._target_", "Expected a callable"),
        ({"_target_": "torch.nn.ParameterList", "lr": None}, "optimizer.lr", "takes no such argument"),
    ],
)
def test_an_argument_that_the_optimizer_cannot_take_is_named(changes: dict[str, Any], key: str, says: str):
    error = refusal(lambda: make_optimizer({**ADAM, **changes}))
    assert error.key == key
    assert says in error.problem


def test_what_is_no_optimizer_is_refused():
    error = refusal(lambda: make_optimizer({"_target_": "torch.nn.ParameterList"}))
    assert str(error) == (
        "optimizer._target_: torch.nn.ParameterList returned ParameterList, not a torch.optim.Optimizer"
    )


def test_values_that_fit_an_annotation_loosely_are_taken():
    optimizer = make_optimizer({**ADAM, "weight_decay": 1, "betas": (0.5, 0.5), "fused": None})
    assert optimizer.param_groups[0]["weight_decay"] == 1


# The whitelist


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "torch.load",
        "torch.nn.parallel.distributed.os.system",  # an allowed beginning, another module's function
        "torch.optim.sgd.torch.load",
    ],
)
def test_a_target_outside_the_whitelist_is_never_called(target: str, tmp_path: Path):
    error = refusal(lambda: build.samples({"_target_": target, "command": f"touch {tmp_path}/called"}))
    assert error.key == "data._target_"
    assert list(tmp_path.iterdir()) == []


def test_a_config_cannot_widen_the_whitelist():
    node = {"_target_": "os.system", "command": "true", "_execution_whitelist_": "os.*"}
    assert refusal(lambda: build.samples(node)).key == "data._target_"


# Models


def test_a_model_gets_its_sizes_from_the_data_where_it_asks_for_them():
    mlp = build.model({"_target_": "sweep.models.MLP", "widths": [5]}, IMAGES)
    assert mlp(torch.zeros(3, 2, 4, 4)).shape == (3, 1)
    convnet = build.model({"_target_": "sweep.models.ConvNet", "channels": [4]}, IMAGES)
    assert convnet(torch.zeros(3, 2, 4, 4)).shape == (3, 1)
    linear = build.model({"_target_": "torch.nn.Linear", "bias": False}, ROWS)
    assert isinstance(linear, nn.Linear)
    assert (linear.in_features, linear.out_features, linear.bias) == (3, 2, None)


def test_a_model_that_does_not_ask_for_sizes_gets_none():
    assert isinstance(build.model({"_target_": "torch.nn.Flatten"}, ROWS), nn.Flatten)


def test_a_size_that_the_config_sets_is_kept():
    linear = build.model({"_target_": "torch.nn.Linear", "in_features": 7}, ROWS)
    assert isinstance(linear, nn.Linear)
    assert (linear.in_features, linear.out_features) == (7, 2)


def test_a_model_may_be_composed_of_nested_targets():
    layers = [{"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2}, {"_target_": "torch.nn.Tanh"}]
    model = build.model({"_target_": "torch.nn.Sequential", "_args_": layers}, ROWS)
    assert model(torch.zeros(4, 3)).shape == (4, 2)
    layer = {
        "_target_": "torch.nn.TransformerEncoderLayer",
        "d_model": 4,
        "nhead": 2,
        "layer_norm_eps": 1,
        "batch_first": True,
    }
    node = {"_target_": "torch.nn.TransformerEncoder", "encoder_layer": layer, "num_layers": 1}
    assert build.model(node, ROWS)(torch.zeros(4, 3, 4)).shape == (4, 3, 4)  # it takes a module
    layer["heads"] = layer.pop("nhead")
    error = refusal(lambda: build.model(node, ROWS))
    assert error.key == "model.encoder_layer.heads"
    assert error.problem.startswith("TransformerEncoderLayer takes no such argument; it takes: d_model, nhead, ")


@pytest.mark.parametrize(
    ("node", "key", "says"),
    [
        ({"_target_": "sweep.models.MLP", "width": 3}, "model.width", "it takes: in_features, out_features, widths, "),
        ({"_target_": "sweep.models.MLP", "widths": 64}, "model.widths", "got 64"),
        ({"_target_": "sweep.models.MLP", "widths": [64, "a"]}, "model.widths", "got [64, 'a']"),
        ({"_target_": "sweep.models.MLP", "widths": [64, 1.5]}, "model.widths", "got [64, 1.5]"),
        ({"_target_": "sweep.models.MLP", "activation": 3}, "model.activation", "must be a text, got 3"),
        ({"_target_": "sweep.models.MLP", "activation": "rleu"}, "model.activation", "choose one of relu, "),
        ({"_target_": "sweep.models.ConvNet"}, "model", "try model=mlp"),
        ({"_target_": "sweep.models.Nothing"}, "model._target_", "cannot load 'sweep.models.Nothing'"),
        ({"_target_": "torch.nn.Bilinear"}, "model.in1_features", "Bilinear needs it; set model.in1_features=..."),
        ({"_target_": "torch.nn.factory_kwargs", "kwargs": {}}, "model._target_", "returned dict, not a torch.nn."),
    ],
)
def test_a_model_that_cannot_be_built_names_the_key(node: dict[str, Any], key: str, says: str):
    error = refusal(lambda: build.model(node, ROWS))
    assert error.key == key
    assert says in error.problem


# Schedulers


def test_a_scheduler_gets_the_runs_length_where_it_asks_for_it():
    onecycle: Any = make_scheduler(
        {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.1, "interval": "step"}
    )
    assert onecycle.total_steps == 20
    exponential = make_scheduler({"_target_": "torch.optim.lr_scheduler.ExponentialLR", "gamma": 0.5})
    assert type(exponential).__name__ == "ExponentialLR"


def test_a_run_length_that_the_config_sets_is_kept():
    node = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.1, "epochs": 7}
    onecycle: Any = make_scheduler(node)
    assert onecycle.total_steps == 35


@pytest.mark.parametrize(
    ("node", "key", "says"),
    [
        ({"_target_": "torch.optim.lr_scheduler.StepLR"}, "scheduler.step_size", "set scheduler.step_size=..."),
        ({"_target_": "sweep.schedules.step", "step_size": 3}, "scheduler.step_size", "step_epochs, gamma"),
        ({"_target_": "sweep.schedules.step", "gamma": "low"}, "scheduler.gamma", "must be a number, got 'low'"),
        ({"_target_": "sweep.schedules.onecycle", "max_lr": 0.1, "div_factor": 0}, "scheduler", "ZeroDivisionError"),
        ({"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "factor": 2.0}, "scheduler", "< 1.0"),
    ],
)
def test_a_scheduler_that_cannot_be_built_names_the_key(node: dict[str, Any], key: str, says: str):
    error = refusal(lambda: make_scheduler(node))
    assert error.key == key
    assert says in error.problem


def test_an_unknown_cycle_shape_is_refused_with_the_choices():
    node = {"_target_": "sweep.schedules.cyclic", "base_lr": 1e-3, "max_lr": 1e-2, "cycle_epochs": 2, "mode": "square"}
    error = refusal(lambda: make_scheduler(node))
    assert error.key == "scheduler.mode"
    assert "one of triangular, triangular2, exp_range" in error.problem


# A user's own package

MYPKG = """
import numpy as np
from torch import nn
from functools import partial
from torch.optim.lr_scheduler import LambdaLR
from sweep import Samples

class Net(nn.Module):
    def __init__(self, in_shape, hidden: int, out_features):
        super().__init__()
        self.sizes = (in_shape, hidden, out_features)

Preset = partial(Net, hidden=3)

class Broken(nn.Module):
    def __init__(self):
        {}["key"]

def falling(optimizer, steps_per_epoch, epochs, **rest):
    return LambdaLR(optimizer, lambda step: 1 - step / (steps_per_epoch * epochs))

def line(n: int):
    x = np.arange(float(n))
    return Samples(name="line", task="regression", x=x[:, None], y=2 * x)

def arrays():
    return np.zeros((3, 1)), np.zeros(3)

def from_file():
    open("no/such/file.npz")
"""


@pytest.fixture
def mypkg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package of the user's own on the path; not vouched for yet."""
    (tmp_path / "mypkg.py").write_text(MYPKG)
    (tmp_path / "faulty.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("mypkg", "faulty"):
        sys.modules.pop(name, None)


@pytest.fixture
def trusted(mypkg: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEP_TARGETS", "mypkg.*,faulty.*")


@pytest.mark.usefixtures("mypkg")
def test_an_own_package_is_not_even_imported_before_it_is_trusted():
    error = refusal(lambda: build.model({"_target_": "mypkg.Net", "hidden": 3}, ROWS))
    assert error.key == "model._target_"
    assert "mypkg" not in sys.modules


@pytest.mark.usefixtures("trusted")
def test_an_own_model_is_built_with_the_datas_sizes():
    net: Any = build.model({"_target_": "mypkg.Net", "hidden": 3}, IMAGES)
    assert net.sizes == ((2, 4, 4), 3, 1)
    preset: Any = build.model({"_target_": "mypkg.Preset"}, IMAGES)
    assert preset.sizes == net.sizes
    assert refusal(lambda: build.model({"_target_": "mypkg.Net"}, IMAGES)).key == "model.hidden"
    assert refusal(lambda: build.model({"_target_": "mypkg.Net", "hidden": "x"}, IMAGES)).key == "model.hidden"


@pytest.mark.usefixtures("trusted")
def test_an_own_scheduler_is_built_with_the_runs_length():
    scheduler = make_scheduler({"_target_": "mypkg.falling", "interval": "step", "anything": 1})
    scheduler.optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == [pytest.approx(1e-3 * 19 / 20)]


@pytest.mark.usefixtures("trusted")
def test_own_data_are_samples():
    line = build.samples({"_target_": "mypkg.line", "n": 4})
    assert isinstance(line, Samples)
    assert line.y.tolist() == [[0], [2], [4], [6]]
    error = refusal(lambda: build.samples({"_target_": "mypkg.arrays"}))
    assert str(error) == "data._target_: mypkg.arrays returned tuple, not sweep.Samples or sweep.Datasets"


@pytest.mark.usefixtures("trusted")
def test_an_error_inside_own_code_is_told_with_the_group_it_was_in():
    assert str(refusal(lambda: build.model({"_target_": "mypkg.Broken"}, ROWS))) == "model: KeyError: 'key'"
    error = refusal(lambda: build.samples({"_target_": "mypkg.from_file"}))
    assert error.key == "data"
    assert "no/such/file.npz" in error.problem


@pytest.mark.usefixtures("trusted")
def test_an_own_module_that_cannot_be_imported_says_what_is_missing():
    error = refusal(lambda: build.model({"_target_": "faulty.Net"}, ROWS))
    assert error.key == "model._target_"
    assert "no_such_dependency" in error.problem
