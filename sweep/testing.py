"""Conformance checks for what you add to sweep: a training function, a data option, or a rule for packed trials.

Call them from your own tests. Each raises an AssertionError that says what is wrong:

    def test_my_training(tmp_path):
        sweep.testing.check_training_function(mypkg.train, tmp_path)
"""

import math
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sweep.config.nodes import Split
from sweep.data import Datasets, Samples
from sweep.data.samples import PARTS
from sweep.data.split import divide
from sweep.training.trial import Trial, UnrecordedTrial
from sweep.utils.errors import Interrupted, Pruned

_EPOCHS = (5, 4, 3)  # updates in each epoch; a pack computes a rule's coefficients for one epoch at a time


class TrialInMemory(UnrecordedTrial):
    """A trial without a run or a study. It keeps what a training function reports, and can be pruned and stopped.

    `log`, `describe` and `log_artifact` do nothing.

    Attributes:
        folder: the trial's own folder.
        number: the trial's number in its study.
        reports: the reported metrics, by epoch.
        values: the values that `finish` got, by name.
        checkpoint: the file that `save` writes.
    """

    def __init__(
        self, folder: Path, *, number: int = 0, prune_at: int | None = None, stop_at: int | None = None
    ) -> None:
        """Begin a trial, or resume one that saved its state in the same folder.

        Args:
            folder: the trial's own folder. It must exist.
            number: the trial's number in its study.
            prune_at: the report at which the trial is pruned, counted from 1; None never prunes it.
            stop_at: the report after which a stop is requested, counted from 1; None never requests one.
        """
        self.folder, self.number = folder, number
        self.reports: dict[int, dict[str, float]] = {}
        self.values: dict[str, float] = {}
        self.checkpoint = folder / "checkpoint.pt"
        self._prune_at, self._stop_at = prune_at, stop_at

    @property
    def epoch(self) -> int:
        """The epoch of the last checkpoint; 0 if there is none."""
        from sweep.training import checkpoint

        return checkpoint.load(self.checkpoint)["epoch"] if self.checkpoint.exists() else 0

    @property
    def should_save(self) -> bool:
        """Always True, so that every epoch is saved."""
        return True

    @property
    def should_stop(self) -> bool:
        """True once `stop_at` reports were made."""
        return self._stop_at is not None and len(self.reports) >= self._stop_at

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Keep the metrics of an epoch.

        Args:
            epoch: a whole number, larger than that of the last report or checkpoint.
            metrics: finite numbers, by name.

        Raises:
            Pruned: this is report number `prune_at`.
            AssertionError: the epoch or a metric breaks the rules above.
        """
        before = max(self.reports, default=self.epoch)
        assert isinstance(epoch, int), f"an epoch is a whole number, not {epoch!r}"
        assert epoch > before, f"epoch {epoch} is reported after epoch {before}"
        for name, value in metrics.items():
            assert math.isfinite(float(value)), f"{name} is {value} in epoch {epoch}; raise Diverged instead"
        self.reports[epoch] = {name: float(value) for name, value in metrics.items()}
        if len(self.reports) == self._prune_at:
            raise Pruned(epoch)

    def save(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint. Raise Interrupted afterwards if a stop was requested.

        Args:
            epoch: the last finished epoch.
            state: tensors, numbers, texts, and lists and mappings of them.
        """
        from sweep.training import checkpoint

        last = max(self.reports, default=-1)
        checkpoint.save(self.checkpoint, checkpoint.with_random_states({**state, "epoch": epoch}, last))
        if self.should_stop:
            raise Interrupted(signal.SIGTERM)

    def restore(self) -> dict[str, Any] | None:
        """Return the state of the checkpoint, and restore the random generators; None if there is none."""
        from sweep.training import checkpoint

        if not self.checkpoint.exists():
            return None
        return checkpoint.restored_random_states(checkpoint.load(self.checkpoint))

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Keep single values, by name."""
        self.values.update(metrics)


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
    whole = trial("whole")
    train(whole)
    assert len(whole.reports) > 1, f"{len(whole.reports)} epochs are reported; a study can judge no trial by that"
    names = {frozenset(metrics) for metrics in whole.reports.values()}
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
    assert {**stopped.reports, **resumed.reports} == whole.reports, "a resumed trial reports other numbers"
    assert resumed.values == whole.values, "a resumed trial ends with other values"


def _seeded(train: Callable[[Trial], object]) -> Callable[[Trial], object]:
    """Return the function with seeded random generators, which are restored after each call."""
    import torch

    from sweep.training.runtime import reproducible, seed_generators

    def seeded(trial: Trial) -> object:
        with reproducible(torch.device("cpu")):
            seed_generators(0, "train")
            return train(trial)

    return seeded


def check_data_option(load: Callable[[], Samples | Datasets]) -> None:
    """Check that a data option returns samples that can be divided, and the same samples each time.

    Of torch datasets, it checks that there are as many samples each time, and that the first ones make the same batch
    if what is drawn is drawn from torch, `random` or `numpy.random`.

    Args:
        load: the function that the option's `_target_` names, with its arguments bound. It is called twice.

    Raises:
        AssertionError: it returns anything but `sweep.Samples`, or other samples the second time.
        ConfigError: the arrays of the samples do not fit together, or there are too few samples to divide.
    """
    first, second = load(), load()
    if isinstance(first, Datasets) and isinstance(second, Datasets):
        _check_datasets(first, second)
        return
    kind = type(first).__name__
    assert isinstance(first, Samples), f"a data option returns sweep.Samples or sweep.Datasets, not {kind}"
    assert isinstance(second, Samples), "it returns another kind of data from one call to the next"
    for part in ("x", "y", "clean", "groups", "weights", "split"):
        one, other = getattr(first, part), getattr(second, part)
        has_nan = part == "x"  # empty cells of a table
        same = one is other or (one is not None and other is not None and np.array_equal(one, other, has_nan))
        assert same, f"{part} differs from one call to the next; draw from a seed that is an argument"
    splits = divide(first, Split(kind="random" if first.split is None else "given"))
    n = sum(len(part.x) for part in (splits.train, splits.val, splits.test))
    assert n <= len(first.x), "the split has more samples than the data"


def _check_datasets(first: Datasets, second: Datasets) -> None:
    import torch

    from sweep.training.loaders import inspected
    from sweep.training.torch_internals import leaves

    sizes = [[datasets.size(part) for part in PARTS] for datasets in (first, second)]
    assert sizes[0] == sizes[1], "the number of samples differs from one call to the next"
    batches = [leaves(inspected(datasets)[1]) for datasets in (first, second)]
    for one, other in zip(*batches, strict=True):
        same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        assert same, "a sample differs from one call to the next; draw from torch, random or numpy.random"


def check_packed_rule(
    make: Callable[..., Any],
    arguments: Sequence[Mapping[str, Any]],
    schedules: Sequence[Sequence[Mapping[str, Any]]] | None = None,
    *,
    n_weights: int = 5,
    seed: int = 0,
) -> None:
    """Check that a rule for packed trials gives the same updates as the optimizer gives each trial by itself.

    Weights and state are compared after each of 12 updates in 3 epochs, in float64, with a relative and an absolute
    tolerance of 1e-12. About half of the gradients are 0.

    Args:
        make: the class of the optimizer, for which a rule exists.
        arguments: the arguments of each trial's optimizer, without the weights. They may differ only in numbers.
        schedules: what the scheduler sets: for each trial, a mapping of hyperparameters for each of the 12 updates. By
            default a random `lr`, log-uniform from 1e-4 to 10^-0.5.
        n_weights: the number of weights of a trial.
        seed: of the weights and the gradients.

    Raises:
        AssertionError: there is no rule, the trials cannot share a pass, an update differs, or a checkpoint would lack
            some of the optimizer's state.
    """
    import torch
    from torch import nn
    from torch.testing import assert_close

    from sweep.training.packed.rules import rule_of

    rng, n_updates = np.random.default_rng(seed), sum(_EPOCHS)
    if schedules is None:
        schedules = [[{"lr": float(lr)} for lr in 10 ** rng.uniform(-4, -0.5, n_updates)] for _ in arguments]
        changing: set[str] = set()
    else:
        changing = {name for rows in schedules for name in rows[0]}
    stacked = torch.from_numpy(rng.normal(size=(len(arguments), n_weights)))
    weights = [nn.Parameter(row.clone()) for row in stacked]
    optimizers = [make([weight], **own) for weight, own in zip(weights, arguments, strict=True)]
    rules = [rule_of(optimizer, changing - {"lr"}) for optimizer in optimizers]
    rule = rules[0]
    assert rule is not None, f"there is no rule for {make.__name__} with such arguments"
    assert all(other == rule for other in rules), "the trials differ in more than numbers, and may not share a pass"
    groups = [{**optimizer.param_groups[0], **rule.scalars} for optimizer in optimizers]
    state = {
        name: torch.tensor([[rule.initial(name, group)] * n_weights for group in groups], dtype=torch.float64)
        for name in rule.state
    }
    step = 0
    for length in _EPOCHS:
        steps = np.arange(step + 1, step + length + 1, dtype=np.float64)
        tables = [
            rule.table(group, _table(rows[step : step + length]), steps)
            for group, rows in zip(groups, schedules, strict=True)
        ]
        for group, table in zip(groups, tables, strict=True):
            group.update({name: float(table[name][-1]) for name in rule.scalars})
        for i in range(length):
            gradients = torch.from_numpy(rng.normal(size=stacked.shape) * rng.integers(0, 2, size=stacked.shape))
            columns = {name: torch.tensor([[table[name][i]] for table in tables]) for name in tables[0]}
            rule.update(stacked, gradients.clone(), state, columns)
            for k, (weight, optimizer) in enumerate(zip(weights, optimizers, strict=True)):
                optimizer.param_groups[0].update(schedules[k][step])
                weight.grad = gradients[k].clone()
                optimizer.step()
                message = f"trial {k}, update {step + 1}: {{}}".format
                assert_close(stacked[k], weight.detach(), rtol=1e-12, atol=1e-12, msg=message)
                for part in rule.state:
                    own = optimizer.state[weight].get(part)  # SGD has no buffer before the first use of momentum
                    own = torch.zeros_like(weight) if own is None else own
                    assert_close(state[part][k], own.detach(), rtol=1e-12, atol=1e-12, msg=message)
            step += 1
    for group, weight, optimizer in zip(groups, weights, optimizers, strict=True):
        own = optimizer.state[weight]
        scalars = {name: group[name] for name in rule.scalars}
        loaded = rule.loaded(own)
        assert all(math.isclose(scalars[name], loaded[name], rel_tol=1e-12) for name in scalars), "its scalars differ"
        kept = {name for name, value in own.items() if value is not None} - {"step"}
        own_scalars, names = rule.kept(scalars)
        assert kept == {*own_scalars, *names}, "a checkpoint needs all of torch's state"


def _table(scheduled: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Convert what the scheduler sets to the form that `Rule.table` takes: an array of shape (n,) for each number."""
    table = {name: np.array([row[name] for row in scheduled]) for name in scheduled[0] if name != "betas"}
    if "betas" in scheduled[0]:
        table["beta1"], table["beta2"] = np.array([row["betas"] for row in scheduled]).T
    return table
