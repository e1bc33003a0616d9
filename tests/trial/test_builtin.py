"""sweep/trial/builtin.py: what a run says of its data before it trains."""

import logging
from pathlib import Path

import pytest
from trained import trained

from sweep import run_study
from sweep.training import tensors
from sweep.trial import checks

MEANS = ("task=regression", "task/metrics=[mse,mae]")


@pytest.mark.parametrize(
    ("overrides", "in_study", "warns"),
    [(("task=regression",), False, True), (("task=regression",), True, False), (MEANS, False, False)],
    ids=["r2", "in a study", "means"],
)
def test_a_run_warns_of_metrics_that_need_many_outputs_at_once(
    overrides: tuple[str, ...],
    in_study: bool,
    warns: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for module in (checks, tensors):
        monkeypatch.setattr(module, "MOST_OUTPUTS", 10)
    with caplog.at_level(logging.WARNING, "sweep"):
        trained(tmp_path, "data.n=90", *overrides, in_study=in_study)
    message = [record.getMessage() for record in caplog.records if "at once" in record.getMessage()]
    says = "warning: task.metrics.r2: takes the outputs of the whole val split at once, 0.0 GiB; a class with update, "
    assert [line.startswith(says) for line in message] == [True] * warns


@pytest.mark.process
def test_a_study_warns_of_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "MOST_OUTPUTS", 10)
    monkeypatch.chdir(tmp_path)
    few = {"n_trials": 2, "sampler": "random", "pruner": "none", "study_name": "s"}
    run_study(["data.n=90", "task=regression", "trainer.epochs=1", "tracking=off"], show=True, **few)
    (line,) = [line for line in "".join(capfd.readouterr()).splitlines() if "at once" in line]
    assert line.startswith("warning: task.metrics.r2: takes the outputs of the whole val split at once, 0.0 GiB")
