"""The trial that a training function of the user's own gets. It checks what the function gives it."""

import itertools
import math
import operator
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from sweep.config.metrics import is_own
from sweep.training.trial import Trial
from sweep.utils.errors import Diverged, FunctionFailed

T = TypeVar("T")

_METRIC = re.compile(r"[\w\-. /:]+")  # the names that MLflow takes
_BY_STEP = "step/"  # names that a function may log, but not report
_LONGEST_SHOWN = 60  # characters of a value in a message


class CheckedTrial:
    """Passes calls on to a trial, after checking their arguments. It implements `sweep.Trial`.

    What ends the trial is raised again by each later call, so that a function that catches it still ends. A checkpoint
    has the states of the random generators, too.

    Attributes:
        ended: what ended the trial, such as Pruned; None if it goes on.
        has_values: whether the function has reported or finished anything.
    """

    def __init__(self, trial: Trial, call: str, first_as: str | None = None, rank: int | None = None) -> None:
        """Wrap `trial`.

        Args:
            trial: gets what was checked.
            call: the dotted path of the function, for errors.
            first_as: report the first metric of each epoch under this name, too.
            rank: of this process among those that train the trial together; None if it trains the trial alone. Above
                0, only epochs count: metrics, states and files are neither checked nor passed on.
        """
        self._trial, self._call, self._first_as, self._rank = trial, call, first_as, rank
        self._reported: tuple[int, set[str]] = -1, set()  # the last epoch, and the metrics reported in it
        self._logged: dict[str, int] = {}  # the last step of each metric
        self.ended: BaseException | None = None
        self.has_values = False
        self.finished: dict[str, float] = {}  # the single values that it was given
        self._process = os.getpid()

    @property
    def number(self) -> int | None:
        return self._trial.number

    @property
    def params(self) -> Mapping[str, Any]:
        return self._trial.params

    @property
    def folder(self) -> Path:
        return self._trial.folder

    @property
    def epoch(self) -> int:
        return self._trial.epoch

    @property
    def should_save(self) -> bool:
        return self._trial.should_save

    @property
    def should_stop(self) -> bool:
        return self._trial.should_stop

    def describe(self, *, dataset: Mapping[str, Any] | None = None, device: str | None = None) -> None:
        self._counted(lambda: self._trial.describe(dataset=dataset, device=device))

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Report the metrics of a finished epoch. Of metrics that were reported in that epoch, the first value stands.

        Args:
            epoch: any whole number that does not fall, from 0.
            metrics: finite numbers by name.

        Raises:
            FunctionFailed: the epoch or a metric is none.
            Diverged: a value is infinite or not a number.
            Pruned, Interrupted: as `Trial.report` says.
        """

        def report() -> None:
            step = self._whole("reported", epoch)
            last, names = self._reported
            if step < last:
                self._refuse(f"reported epoch {step} after epoch {last}; report them in order")
            values = {} if self._rank else self._reportable(step, metrics)
            if step == last:
                values = {name: value for name, value in values.items() if name not in names}
            self._reported = step, {*values} | (names if step == last else set())
            self.has_values = True
            if values or self._rank is not None:  # all ranks pass on the same reports, whatever is in them
                self._trial.report(step, values)

        self._passed(report)

    def log(self, metrics: Mapping[str, float | Sequence[float]], step: int | Sequence[int]) -> None:
        """Record points of further curves. Raise FunctionFailed if a step falls, or a value is no number."""

        def log() -> None:
            given = step if isinstance(step, Sequence) else [step]
            steps = [self._whole("logged", one) for one in given]
            if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
                self._refuse("logged steps that do not grow; log them in order")
            for name, values in metrics.items():
                column = values if given is step and isinstance(values, Sequence) else [values]
                if len(column) != len(steps):
                    self._refuse(f"logged {len(column)} values of {name} for {len(steps)} steps; give one for each")
                self._log(name, steps, column)

        self._counted(log)

    def save(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint, with the states of torch's, Python's and numpy's random generators.

        Raises:
            FunctionFailed: the state has something that could not be loaded again.
            Interrupted, OSError: as `Trial.save` says.
        """

        def save() -> None:
            from sweep.training import checkpoint

            step = self._whole("saved", epoch)
            if self._rank:
                return self._trial.save(step, {})
            if not isinstance(state, Mapping):
                self._refuse(f"saved {_shown(state)}; give a mapping of names to tensors, numbers and texts")
            if (problem := checkpoint.unloadable(state)) is not None:
                self._refuse(
                    f"saved {problem}, which cannot be loaded again; save tensors, numbers, texts, and lists "
                    "and dicts of them, such as model.state_dict()"
                )
            self._trial.save(step, checkpoint.with_random_states(state, self._reported[0]))

        self._passed(save)

    def restore(self) -> dict[str, Any] | None:
        """Return the state that was saved last, and restore the random generators; None if there is none."""
        from sweep.training import checkpoint

        state = self._passed(self._trial.restore)
        return None if state is None else checkpoint.restored_random_states(state)

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Give single values, such as test metrics. Raise FunctionFailed or Diverged as `report` does."""

        def finish() -> None:
            values = self._numbers("returned", metrics, self._reported[0])
            if owned := next(filter(is_own, values), None):
                self._refuse(f"returned '{owned}', a name that only sweep itself uses; choose another")
            self.has_values = self.has_values or bool(values)
            self.finished |= values
            self._trial.finish(values)

        self._counted(finish)

    def log_artifact(self, path: Path) -> None:
        self._counted(lambda: self._trial.log_artifact(Path(path)))

    def _reportable(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics of a report as numbers. Raise as `report` does."""
        values = self._numbers(f"reported in epoch {step}", metrics, step)
        if not values:
            self._refuse(f"reported no metrics in epoch {step}")
        if owned := next(filter(is_own, values), None):
            self._refuse(f"reported '{owned}', a name that only sweep itself uses; choose another")
        if self._first_as is not None:
            values[self._first_as] = next(iter(values.values()))
        return values

    def _log(self, name: str, steps: Sequence[int], column: Sequence[Any]) -> None:
        """Log one curve. A step that was logged before keeps its value."""
        last = self._logged.get(name, -1)
        if steps and steps[0] < last:
            self._refuse(f"logged step {steps[0]} of {name} after step {last}; log them in order")
        values = [
            self._numbers(f"logged at step {at}", {name: value}, at)[name]
            for at, value in zip(steps, column, strict=True)
        ]
        if is_own(name) and not name.startswith(_BY_STEP):
            self._refuse(f"logged '{name}', a name that only sweep itself uses; choose another")
        n_known = sum(at <= last for at in steps)
        if n_known < len(steps):
            self._logged[name] = steps[-1]
            self._trial.log({name: values[n_known:]}, steps[n_known:])

    def _counted(self, call: Callable[[], None]) -> None:
        """Make a call that only counts in rank 0. If the trial has ended, raise again what ended it."""
        self._passed((lambda: None) if self._rank else call)

    def _passed(self, call: Callable[[], T]) -> T:
        """Return what `call` returns. If the trial has ended, raise again what ended it."""
        if self.ended is not None:
            raise self.ended
        if os.getpid() != self._process:
            self._refuse("used its trial in a process that it forked; use it in the process that was called")
        try:
            return call()
        except BaseException as error:
            self.ended = error
            raise

    def _refuse(self, what: str) -> NoReturn:
        raise FunctionFailed(self._call, what)

    def _whole(self, what: str, epoch: Any) -> int:
        """Return the epoch as an int, at least 0. Raise FunctionFailed for anything else."""
        try:
            step = -1 if isinstance(epoch, bool) else operator.index(epoch)
        except TypeError:
            step = -1
        if step < 0:
            self._refuse(f"{what} epoch {_shown(epoch)}; give a whole number, from 0")
        return step

    def _numbers(self, what: str, metrics: Any, step: int) -> dict[str, float]:
        """Return metrics as floats. Raise FunctionFailed if one is no number, Diverged if it is not finite."""
        if not isinstance(metrics, Mapping):
            self._refuse(f"{what}: {_shown(metrics)}, where names and numbers belong, such as {{'val/loss': 0.1}}")
        numbers = {}
        for name, value in metrics.items():
            if not isinstance(name, str) or not _METRIC.fullmatch(name):
                self._refuse(f"{what}: the name {_shown(name)}; use letters, digits, spaces and any of _ - . / :")
            number = as_number(value)
            if number is None:
                self._refuse(f"{what}: {name} = {_shown(value)}, which is not a number")
            if not math.isfinite(number):
                self._trial.describe()  # begin the record, if it has not begun, so that it says so
                raise Diverged(name, number, max(step, 0), advice="lower the learning rate, or leave such values out")
            numbers[name] = number
        return numbers


def as_number(value: Any) -> float | None:
    """Return a number, a scalar of numpy or a tensor of one element as a float; None for anything else."""
    if isinstance(value, str | bytes):
        return None
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 1]}…"
