"""sweep/config/task_node.py: a task's metrics and their goals, as the config states them."""

from typing import Any

import pytest

from sweep import ConfigError, compose, tasks
from sweep.config.metrics import KINDS
from sweep.config.schema import validate
from sweep.config.task_node import AUTO_TASK, data_node, direction_of, metrics_of, names_of, task_for


def node_of(*overrides: str) -> dict[str, Any]:
    return validate(compose(overrides)).task


@pytest.mark.parametrize("kind", KINDS)
def test_auto_is_the_option_that_the_data_name(kind: str) -> None:
    assert node_of() == AUTO_TASK
    assert task_for(kind, AUTO_TASK) == node_of(f"task={kind}")


def test_auto_takes_another_loss_arguments_for_its_own_and_further_metrics() -> None:
    huber = task_for("regression", node_of("task/loss=huber", "task/metrics=[mape]"))
    assert huber["loss"] == {"_target_": "torch.nn.HuberLoss", "delta": 1.0}
    assert list(huber["metrics"]) == ["mse", "mae", "r2", "mape"]
    smooth = task_for("classification", node_of("+task.loss.label_smoothing=0.1"))
    assert smooth["loss"] == {"_target_": "torch.nn.CrossEntropyLoss", "weight": None, "label_smoothing": 0.1}


def test_a_named_task_has_the_metrics_that_are_listed() -> None:
    assert list(metrics_of(node_of("task=regression", "task/metrics=[mae]"))) == ["mae"]
    names = names_of(node_of("task=binary", "task/metrics=[auroc]"))
    assert names == ["val/loss", "val/auroc", "test/loss", "test/auroc"]


@pytest.mark.parametrize(
    ("metric", "overrides", "direction"),
    [
        ("val/loss", (), "minimize"),
        ("test/r2", (), "maximize"),
        ("val/accuracy", ("data=digits",), "maximize"),
        ("val/f1", ("task/metrics=[f1]",), "maximize"),
        ("val/x", ("+task.metrics.x={_target_: torchmetrics.SpearmanCorrCoef}",), "maximize"),
        ("val/x", ("+task.metrics.x={_target_: torchmetrics.MeanAbsolutePercentageError}",), "minimize"),
        ("val/x", ("+task.metrics.x={_target_: torchmetrics.F1Score, goal: maximize}",), "maximize"),
    ],
)
def test_each_metric_has_a_goal(metric: str, overrides: tuple[str, ...], direction: str) -> None:
    assert direction_of(metric, node_of(*overrides)) == direction


@pytest.mark.parametrize(
    ("node", "key", "says"),
    [
        ({"_target_": "torchmetrics.F1Score"}, "task.metrics.x.goal", "add +task.metrics.x.goal=minimize or"),
        ({"_target_": "torchmetrics.F1Score", "goal": "up"}, "task.metrics.x.goal", "is 'up'; write"),
        ({"_target_": "torchmetrics.Nope"}, "task.metrics.x._target_", "cannot load 'torchmetrics.Nope'"),
        ({"_target_": "os.system"}, "task.metrics.x._target_", "is not an allowed target"),
        ({"average": "macro"}, "task.metrics.x", "needs a _target_"),
    ],
)
def test_a_metric_without_a_goal_that_is_asked_for_is_refused(node: dict[str, str], key: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        direction_of("val/x", {**AUTO_TASK, "metrics": {"x": node}})
    assert caught.value.key == key
    assert says in caught.value.problem


@pytest.mark.parametrize(
    "kind", [tasks.Regression, tasks.Quantile, tasks.Classification, tasks.Binary, tasks.Multilabel]
)
def test_a_task_says_how_a_table_reads_its_targets(kind: type[tasks.TensorTask]) -> None:
    table = {"_target_": "sweep.data.table.table", "task": "regression", "target": "y"}
    task = {"_target_": f"sweep.tasks.{kind.__name__}"}
    assert (data_node(table, task)["task"],) == kind.kinds  # pyright: ignore[reportAttributeAccessIssue]
    for other in (AUTO_TASK, {"_target_": "mypkg.Task"}, {"_target_": "sweep.tasks.Segmentation"}):
        assert data_node(table, other) == table
    images = {"_target_": "sweep.data.image_folder.image_folder", "path": "pets"}
    assert data_node(images, task) == images
