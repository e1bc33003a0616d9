"""The check of a training function."""

from collections.abc import Callable
from pathlib import Path

from sweep.testing.trial import TrialInMemory
from sweep.training.trial import Trial
from sweep.utils.errors import Interrupted, Pruned


def check_training_function(train: Callable[[Trial], object], folder: Path) -> None:
    """Check that a training function reports, can be pruned, and resumes with the same results after a stop.

    The function is called four times: once to the end, once with a trial that is pruned at its first report, once with
    a trial that is stopped after its first report, and once to resume that trial. Each time, torch's, Python's and
    numpy's random generators are seeded alike before.

    Args:
        train: trains the trial for two epochs or more, with the same results each time. For a function that also takes
            a config, as `trainer.call` names, give `functools.partial(mypkg.train, config)`.
        folder: an empty folder. It gets a folder for each trial.

    Raises:
        AssertionError: the message says which of these fails.
    """

    def trial(name: str, **more: int) -> TrialInMemory:
        (folder / name).mkdir(parents=True, exist_ok=True)
        return TrialInMemory(folder / name, **more)

    train = _seeded(train)
    complete = trial("complete")
    train(complete)
    assert len(complete.reports) > 1, f"{len(complete.reports)} epochs are reported; a study can judge no trial by that"
    names = {frozenset(metrics) for metrics in complete.reports.values()}
    assert len(names) == 1, "not every epoch reports the same metrics"

    pruned = trial("pruned", prune_at=1)
    try:
        train(pruned)
    except Pruned:
        pass
    else:
        raise AssertionError("Pruned, which `report` raises, must not be caught")
    assert len(pruned.reports) == 1, "a pruned trial must stop"

    stopped = trial("stopped", stop_at=1)
    try:
        train(stopped)
    except Interrupted:
        pass
    else:
        raise AssertionError(
            "the trial did not stop when it was asked to; check `should_save` after each report, and save"
        )
    resumed = trial("stopped")
    assert resumed.checkpoint.exists(), "nothing is saved"
    train(resumed)
    assert not stopped.reports.keys() & resumed.reports.keys(), "an epoch that was saved is trained again"
    assert {**stopped.reports, **resumed.reports} == complete.reports, "a resumed trial reports other numbers"
    assert resumed.values == complete.values, "a resumed trial ends with other values"


def _seeded(train: Callable[[Trial], object]) -> Callable[[Trial], object]:
    """Return the function with seeded random generators, which are restored after each call."""
    import torch

    from sweep.training.runtime import reproducible, seed_generators

    def seeded(trial: Trial) -> object:
        with reproducible(torch.device("cpu")):
            seed_generators(0, "train")
            return train(trial)

    return seeded
