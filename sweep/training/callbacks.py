"""Callbacks: your own code, called while a trial trains (`trainer.callbacks`, docs/recipe.md)."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import nn

from sweep.config.metrics import is_curve, is_own
from sweep.training.checkpoint import random_states, set_random_states
from sweep.training.trial import Trial
from sweep.utils.errors import SweepError, TrainingFailed, one_line

HOOKS = ("on_train_start", "on_epoch_end", "on_train_end")


class StopTraining(Exception):
    """Raise it in `on_epoch_end` to end the training after this epoch. The trial then completes as usual."""

    def __init__(self, metrics: Mapping[str, float] | None = None) -> None:
        """Stop. metrics: further metrics of the epoch, as `on_epoch_end` would return them."""
        super().__init__()
        self.metrics = metrics


class Callback:
    """What a callback may have. Subclass it, or write a class with any of these methods: all of them are optional.

    The trial's record has begun when they are called. `trial.log_artifact` stores a file, such as an image, and
    `trial.folder` is a place for files. A callback may keep and change its own attributes. It must not train the model.
    Random numbers that it draws do not change the training.

    A callback with state that a resumed trial needs has two more methods, as optimizers have: `state_dict()`, which
    returns a mapping that `torch.load(weights_only=True)` can read, and `load_state_dict(state)`.

    Attributes:
        metrics: of the class: the goal, `minimize` or `maximize`, of metrics that the callback always adds, by name.
            `trainer.monitor`, objectives and `compare.metric` may name these. A name that begins with `test/` is
            returned by `on_train_end`, any other by each `on_epoch_end`.
    """

    metrics: ClassVar[Mapping[str, str]] = {}

    def on_train_start(self, trial: Trial, model: nn.Module) -> None:
        """Run before the first update, and before the first update after each resume."""

    def on_epoch_end(self, trial: Trial, model: nn.Module, metrics: Mapping[str, float]) -> Mapping[str, float] | None:
        """Run after each validation, before the epoch is reported.

        If the process dies before the next checkpoint, the epoch is trained again, and this runs again.

        Args:
            trial: the trial.
            model: in evaluation mode, with the weights that were validated.
            metrics: those of the epoch, by name, such as `val/loss`; also those of callbacks before this one.

        Returns:
            Further metrics, by names that the epoch does not have yet. They become curves. Those that the class
            declares must be among them, and finite.

        Raises:
            StopTraining: to end the training after this epoch.
        """

    def on_train_end(self, trial: Trial, model: nn.Module) -> Mapping[str, float] | None:
        """Run when the training is over, before the test. The model has the best weights, in evaluation mode.

        It does not run if the trial is pruned, interrupted or fails.

        Returns:
            The declared metrics whose names begin with `test/`. They are recorded beside those of the test split.
        """


class Callbacks:
    """Calls the callbacks of one trial, in their order."""

    def __init__(self, callbacks: Sequence[Any] = (), declared: Sequence[Collection[str]] | None = None) -> None:
        """Hold the callbacks.

        Args:
            callbacks: the objects.
            declared: the names of the metrics that each declares; by default none.
        """
        self._callbacks = callbacks
        names = [()] * len(callbacks) if declared is None else declared
        self._declared = {id(callback): [*own] for callback, own in zip(callbacks, names, strict=True)}

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def start(self, trial: Trial, model: nn.Module) -> None:
        """Call `on_train_start`."""
        for callback in self._callbacks:
            with _guarded(callback, 0):
                _call(callback, "on_train_start", trial, model)

    def end_epoch(self, trial: Trial, model: nn.Module, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        """Call `on_epoch_end`. Return the metrics of the epoch with those that callbacks add.

        Args:
            trial: the trial.
            model: the validated model.
            metrics: of the epoch.
            step: the last update, for an error message.

        Raises:
            Stopped: a callback asks to stop. It has the metrics of all callbacks.
            TrainingFailed: a callback raised, returned anything but new numbers, or did not return what it
                declares.
        """
        known, stops = dict(metrics), False
        for callback in self._callbacks:
            with _guarded(callback, step):
                try:
                    returned = _call(callback, "on_epoch_end", trial, model, dict(known))
                except StopTraining as stop:
                    returned, stops = stop.metrics, True
                found = _further(returned, known)
                for name in found:
                    if is_own(name) or not is_curve(name):
                        raise ValueError(f"on_epoch_end returned '{name}', which is no name of a curve; choose another")
                self._check(callback, found, "on_epoch_end", is_curve)
                known |= found
        if stops:
            raise Stopped(known)
        return known

    def end(self, trial: Trial, model: nn.Module, step: int) -> dict[str, float]:
        """Call `on_train_end`. Return the metrics that callbacks declare for the best weights.

        Raises TrainingFailed as `end_epoch` does.
        """
        known: dict[str, float] = {}
        for callback in self._callbacks:
            with _guarded(callback, step):
                found = _further(_call(callback, "on_train_end", trial, model), known)
                for name in found:
                    if is_curve(name) or name not in self._declared[id(callback)]:
                        raise ValueError(f"on_train_end returned '{name}', but may return what it declares as test/...")
                self._check(callback, found, "on_train_end", lambda name: not is_curve(name))
                known |= found
        return known

    def _check(self, callback: Any, found: Mapping[str, float], hook: str, is_due: Callable[[str], bool]) -> None:
        """Raise ValueError unless the callback has returned what it declares, and these are finite numbers."""
        for name in filter(is_due, self._declared[id(callback)]):
            if name not in found:
                raise ValueError(f"it declares the metric '{name}', but {hook} did not return it")
            if not math.isfinite(found[name]):
                raise ValueError(f"its metric '{name}' is {found[name]}, not a finite number")

    def state_dict(self) -> list[Any]:
        """Return the state of each callback; None for one without."""
        return [callback.state_dict() if hasattr(callback, "state_dict") else None for callback in self._callbacks]

    def load_state_dict(self, states: Sequence[Any]) -> None:
        """Give each callback its state back."""
        for callback, state in zip(self._callbacks, states, strict=True):
            if state is not None:
                callback.load_state_dict(state)


class Stopped(Exception):
    """A callback ends the training. `metrics` are those of the epoch, with those that callbacks added."""

    def __init__(self, metrics: dict[str, float]) -> None:
        super().__init__()
        self.metrics = metrics


def _call(callback: Any, hook: str, *arguments: Any) -> Any:
    """Call a hook and return what it returns; None if the callback does not have it."""
    call = getattr(callback, hook, None)
    return None if call is None else call(*arguments)


def _further(returned: Any, known: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that a callback adds. Raise ValueError unless they are numbers with new names."""
    returned = {} if returned is None else returned
    if not isinstance(returned, Mapping):
        raise ValueError(f"it returned a {type(returned).__name__}, not a mapping of names to numbers")
    found: dict[str, float] = {}
    for name, value in returned.items():
        if name in known:
            raise ValueError(f"it returned '{name}', which the epoch has already; choose another name")
        try:
            found[name] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:  # the last of a tensor with several elements
            raise ValueError(f"its metric '{name}' is a {type(value).__name__}, not a number") from error
    return found


@contextmanager
def _guarded(callback: Any, step: int) -> Iterator[None]:
    """Keep the random states, and turn an error of the callback into TrainingFailed. An OSError passes."""
    states = random_states()
    try:
        yield
    except (SweepError, OSError, StopTraining):
        raise
    except Exception as error:
        name = type(callback).__qualname__
        raise TrainingFailed(f"in callback {name}: {type(error).__name__}: {one_line(error)}", step) from error
    finally:
        set_random_states(states)
