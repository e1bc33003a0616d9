"""sweep/config/callback_node.py: the metrics that callbacks declare, and what they may be followed for."""

from typing import Any, ClassVar

import pytest

from sweep import ConfigError, compose
from sweep.config.callback_node import declared
from sweep.config.composition import load_multirun, own_hydra
from sweep.config.metrics import is_curve
from sweep.config.schema import validate
from sweep.config.task_node import AUTO_TASK, direction_of
from sweep.search.settings import StudySettings, directions_of, settings_of
from sweep.trial.checks import check_data
from sweep.trial.prepare import load_data

pytestmark = pytest.mark.targets(f"{__name__}.*")


class Gap:
    metrics: ClassVar = {"val/gap": "minimize", "calm": "maximize", "test/gap": "minimize"}

    def on_epoch_end(self, trial: Any, model: Any, metrics: Any) -> Any: ...


class Attack:
    metrics: ClassVar = {"attack/loss": "maximize"}


class Unsure:
    metrics: ClassVar = {"norm": None}


class Min:
    metrics: ClassVar = {"norm": "min"}


class Names:
    metrics: ClassVar = ["norm"]


class OfTheTask:
    metrics: ClassVar = {"val/accuracy": "maximize"}


class OfSweep:
    metrics: ClassVar = {"time/train_s": "minimize"}


class Silent:
    """Declares nothing itself."""


def node(name: str, **metrics: Any) -> dict[str, Any]:
    return {"_target_": f"{__name__}.{name}", **({"metrics": metrics} if metrics else {})}


def override(*names: str) -> str:
    return f"trainer.callbacks=[{','.join(f'{{_target_: {__name__}.{name}}}' for name in names)}]"


def test_goals_stand_in_the_class_or_in_the_config() -> None:
    callbacks = [node("Gap"), node("Silent", norm="maximize"), node("Unsure", norm="minimize", other="maximize")]
    assert declared(callbacks[:2]) == {**Gap.metrics, "norm": "maximize"}
    assert declared(callbacks[2:]) == {"norm": "minimize", "other": "maximize"}
    for name, goal in Gap.metrics.items():
        assert direction_of(name, AUTO_TASK, callbacks[:2]) == goal
    assert directions_of(["calm", "val/accuracy", "test/gap"], AUTO_TASK, callbacks[:2]) == [
        "maximize",
        "maximize",
        "minimize",
    ]


@pytest.mark.parametrize(
    ("callbacks", "says"),
    [
        ([node("Unsure")], "trainer.callbacks.0.metrics.norm: is not known; add minimize or maximize, in the class or"),
        ([node("Gap"), node("Min")], "trainer.callbacks.1.metrics.norm: is 'min'; write minimize or maximize, in the"),
        ([node("Names")], "trainer.callbacks.0.metrics: must map names to goals, such as {val/gap: minimize}; got ["),
        ([node("Gap"), node("Gap")], "trainer.callbacks.1.metrics: 'val/gap' is declared by two callbacks; choose"),
        (
            [node("OfSweep")],
            "trainer.callbacks.0.metrics: 'time/train_s' is taken: sweep or one of its tasks records it",
        ),
        ([node("Missing")], f"trainer.callbacks.0._target_: cannot load '{__name__}.Missing': "),
        ([{"_target_": "os.system"}], "trainer.callbacks.0._target_: 'os.system' is not an allowed target"),
        ([3], "trainer.callbacks.0: needs a _target_, such as {_target_: mypkg.Images}"),
    ],
)
def test_a_declaration_that_cannot_be_used_is_one_line(callbacks: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        declared(callbacks)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


def test_a_monitor_may_be_what_a_callback_declares() -> None:
    config = validate(compose([override("Gap"), "trainer.monitor=calm"]))
    assert config.monitor_direction == "maximize"
    with pytest.raises(ConfigError) as caught:
        validate(compose([override("Gap"), "trainer.monitor=rough"]))
    says = str(caught.value)
    assert says.startswith("trainer.monitor: 'rough' is unknown; choose one of train/loss, val/loss, ")
    assert says.endswith(", val/gap, calm; a callback declares its own: metrics = {name: goal} (docs/recipe.md)")
    with pytest.raises(ConfigError, match=r"^trainer\.monitor: 'test/gap' is unknown"):
        validate(compose([override("Gap"), "trainer.monitor=test/gap"]))


def settings_for(objective: str) -> StudySettings:
    with own_hydra() as loader:
        return settings_of(load_multirun(loader, "config", [override("Gap"), f"hydra.sweeper.objective={objective}"]))


def test_a_goal_holds_for_a_name_that_ends_in_loss() -> None:
    assert direction_of("attack/loss", AUTO_TASK, [node("Attack")]) == "maximize"


def test_an_objective_may_be_what_a_callback_declares() -> None:
    settings = settings_for("calm")
    assert (settings.direction, settings.prunes) == (["maximize"], True)
    settings = settings_for("test/gap")
    assert (settings.direction, settings.prunes) == (["minimize"], False)
    with pytest.raises(ConfigError) as caught:
        settings_for("rough")
    assert str(caught.value).startswith("hydra.sweeper.objective: 'rough' is unknown; choose one of: val/loss, ")
    assert "val/gap, calm, test/gap; task/metrics=[...] adds others, and so does a callback's" in str(caught.value)


def test_a_name_that_the_task_has_is_refused_with_the_data() -> None:
    config = validate(compose([override("OfTheTask"), "data=digits", "split.max_samples=100"]))
    with pytest.raises(ConfigError) as caught:
        check_data(load_data(config), config)
    assert str(caught.value) == (
        "trainer.callbacks.0.metrics: 'val/accuracy' is taken: sweep or one of its tasks records it; choose another "
        "name"
    )


def test_a_metric_is_a_curve_unless_it_is_one_of_a_whole_run() -> None:
    names = ("val/loss", "train/loss", "norm", "norm/first", "test/loss", "time/train_s", "model/n_weights")
    assert [is_curve(name) for name in names] == [True, True, True, True, False, False, False]
