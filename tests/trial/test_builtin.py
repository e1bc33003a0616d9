"""sweep/trial/builtin.py: what a run says of its data before it trains."""

import logging
from pathlib import Path

import pytest
from trained import trained

from sweep.training import tensors

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
    monkeypatch.setattr(tensors, "MOST_OUTPUTS", 10)
    with caplog.at_level(logging.WARNING, "sweep"):
        trained(tmp_path, "data.n=90", *overrides, in_study=in_study)
    told = [record.getMessage() for record in caplog.records if "at once" in record.getMessage()]
    says = "warning: task.metrics.r2: takes the outputs of the whole val split at once, 0.0 GiB; a class with update, "
    assert [line.startswith(says) for line in told] == [True] * warns
