"""Every implementation of `sweep.Trial` that records does the same, whichever a training function gets."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL

from sweep import Trial, compose
from sweep.config.schema import validate
from sweep.testing import TrialInMemory, check_trial
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.trial.checked_trial import CheckedTrial
from sweep.trial.recorded import RecordedTrial
from sweep.utils.errors import Pruned
from sweep.utils.signals import StopRequest


@pytest.fixture
def make_recorded(tmp_path: Path) -> Iterator[Callable[..., RecordedTrial]]:
    """Makes the trial of a run, as `prune_at` and `stop_at` of `TrialInMemory` say."""
    config = validate(compose([*SMALL, "tracking=off"]))
    with ExitStack() as stack:

        def make(folder: Path, prune_at: int | None = None, stop_at: int | None = None) -> RecordedTrial:
            stop, reported = StopRequest(), []

            def report(epoch: int, metrics: Mapping[str, float]) -> None:
                reported.append(epoch)
                if len(reported) == stop_at:
                    stop.signum = 15
                if len(reported) == prune_at:
                    raise Pruned(epoch)

            run = RunFolder(folder)
            return stack.enter_context(
                RecordedTrial(run, config, output_dir=tmp_path, store=None, report=report, stop=stop)
            )

        yield make


def in_journal(trial: Trial) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for name, curve in journal.curves(RunFolder(trial.folder).journal).items():
        if not name.startswith("step/"):
            for epoch, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True):
                found.setdefault(epoch, {})[name] = value
    return found


def in_memory(trial: Trial) -> Mapping[int, Mapping[str, float]]:
    assert isinstance(trial, TrialInMemory)
    return trial.reports


def test_the_trial_of_a_run_holds_the_contract(make_recorded: Callable[..., RecordedTrial], tmp_path: Path) -> None:
    check_trial(make_recorded, in_journal, tmp_path)


def test_the_trial_of_a_function_of_the_users_own_holds_it(
    make_recorded: Callable[..., RecordedTrial], tmp_path: Path
) -> None:
    def make(folder: Path, **more: Any) -> CheckedTrial:
        return CheckedTrial(make_recorded(folder, **more), "mypkg.train")

    check_trial(make, in_journal, tmp_path)


def test_the_trial_in_memory_holds_it(tmp_path: Path) -> None:
    check_trial(TrialInMemory, in_memory, tmp_path)
