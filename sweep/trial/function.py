"""A training function of the user's own, which `trainer.call` names, as what trains a trial (docs/functions.md)."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, NoReturn

import cloudpickle
from omegaconf import DictConfig, OmegaConf

from sweep.config.function_node import CALL, is_given, shown_call
from sweep.config.schema import Config, literal
from sweep.config.targets import allowed_targets
from sweep.config.task_node import AUTO_TASK
from sweep.training.trial import Trial
from sweep.trial.binding import located_by_setting
from sweep.trial.checked_trial import CheckedTrial
from sweep.trial.current import training
from sweep.utils import gc_control
from sweep.utils.errors import DISK_FULL, ConfigError, FunctionFailed, Pruned, SweepError, one_line

# Nodes of the config that concern a study or the record, or sweep's own loop, and not the training of a trial.
_NOT_GIVEN = ("resume", "from_study", "lr_bounds", "lr_search", "lr_range", "bounds", "search", "where", "when")
_NOT_GIVEN += ("tracking", "compare", "choices", "overrides", "composed", "own")


class FunctionTraining:
    """Calls a training function of the user's own with a trial's config.

    The random generators are seeded by `trainer.seed` before, and restored afterwards. `config` is the given config.
    """

    def __init__(self, config: Config, given: Callable[..., Any] | None = None, *, rank: int | None = None) -> None:
        """Load the function, unless it is given as an object.

        Args:
            config: the config.
            given: the function, if a program gives it as an object.
            rank: of this process among those that train the trial together; None if it trains the trial alone. Only
                what rank 0 reports and returns counts.

        Raises:
            ConfigError: as `training_function` does.
        """
        self.config, self._rank = config, rank
        self._call = shown_call(config.trainer.call)
        self._function = training_function(str(config.trainer.call), given)

    @property
    def n_epochs(self) -> int:
        """The number of epochs, if the config says it; otherwise 0."""
        return self.config.trainer.epochs or 0

    def __call__(self, trial: Trial) -> dict[str, float]:
        """Call the function, from the trial's checkpoint if it asks for it.

        Returns:
            The single values that the function returned or gave to `Trial.finish`, by name.

        Raises:
            ConfigError: the device cannot be used, or the function builds something of the config that is wrong.
            FunctionFailed: the function raised an error, ended the process, or gave its trial something else than the
                contract says (`CheckedTrial`).
            Diverged, Pruned, Interrupted, OSError: what a call of the trial raised, also if the function caught it.
        """
        import torch

        from sweep.training.runtime import pick_device, reproducible, seed_generators

        trainer, checked = self.config.trainer, CheckedTrial(trial, self._call, rank=self._rank)
        gc_control.resume()
        with reproducible(pick_device(trainer.device)):
            if trainer.threads is not None:
                torch.set_num_threads(trainer.threads)
            seed_generators(trainer.seed, "train")
            with training(checked):
                returned = self._returned(checked)
            metrics = {} if self._rank else self._metrics(returned)
            checked.finish(metrics)
        if not self._rank and not checked.has_values and not checked.epoch:  # one that was stopped at its end has them
            raise FunctionFailed(self._call, "reported and returned no metrics; call trial.report(epoch, {...})")
        return checked.finished

    def _returned(self, trial: CheckedTrial) -> Any:
        """Call the function, and return what it returns. Raise as `__call__` does."""
        try:
            returned = self._function(function_config(self.config), trial)
        except BaseException as error:
            raise_problem(self._call, error if trial.ended is None else trial.ended)
        if trial.ended is not None:  # the function has caught it
            raise_problem(self._call, trial.ended)
        return returned

    def _metrics(self, returned: Any) -> Mapping[str, Any]:
        """Return the metrics that the function returned. Raise FunctionFailed for anything else."""
        if returned is None:
            return {}
        if isinstance(returned, Mapping):
            return returned
        raise FunctionFailed(
            self._call, f"returned {type(returned).__name__}; return a dict of metrics, such as {{'test/loss': 0.1}}"
        )


def raise_problem(call: str, error: BaseException) -> NoReturn:
    """Raise what `function_problem` returns."""
    if (problem := function_problem(call, error)) is error:
        raise error
    raise problem from error


def function_problem(call: str, error: BaseException) -> BaseException:
    """Return the error to raise for what the function, or a call of its trial, raised. It can be pickled.

    Also an error that is no `Exception`, such as asyncio.CancelledError, fails the trial alone.

    Args:
        call: the function, or the application, as errors show it.
        error: what was raised.
    """
    if isinstance(error, SystemExit):
        return FunctionFailed(call, f"called sys.exit({' '.join(str(error.code).split())}); return, or raise an error")
    if isinstance(error, Pruned | SweepError | KeyboardInterrupt) or (
        isinstance(error, OSError) and error.errno in DISK_FULL
    ):
        return error
    return FunctionFailed(call, f"{type(error).__name__}: {one_line(error)}")


def training_function(call: str, given: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Return the function that `trainer.call` names.

    Args:
        call: the value of `trainer.call`.
        given: the function, if a program gives it as an object.

    Raises:
        ConfigError: it is not allowed, cannot be loaded, or cannot be called with a config and a trial.
    """
    if given is None and is_given(call):
        problem = f"{shown_call(call)} was given as an object of Python; give it again: sweep.run_study(train=...)"
        raise ConfigError(CALL, problem)
    function = given or located_by_setting(CALL, call, allowed_targets())
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin without a signature
        return function
    try:
        signature.bind(None, None)
    except TypeError:
        name = function.func if isinstance(function, partial) else function
        takes = f"takes {signature}".replace("takes ()", "takes no arguments")
        problem = f"{getattr(name, '__qualname__', shown_call(call))} {takes}; write it as  def train(cfg, trial)"
        raise ConfigError(CALL, problem) from None
    return function


def check_function(config: Config, given: Callable[..., Any] | None = None) -> None:
    """Raise ConfigError unless the function of a config can be called as the config says. See `training_function`."""
    training_function(str(config.trainer.call), given)
    if given is not None and config.trainer.launch is not None:
        problem = "starts processes that load the function by its name; set trainer.call instead of giving an object"
        raise ConfigError("trainer.launch", problem)


def check_sent(function: Callable[..., Any]) -> None:
    """Raise ConfigError unless a function that is given as an object can be sent to other processes.

    One that these can import is sent as its name, and any other as its code, with what it refers to.
    """
    try:
        cloudpickle.dumps(function)
    except Exception as error:  # of any kind, from what it refers to
        reason = f"{type(error).__name__}: {one_line(error)}"
        advice = "make what it refers to inside the function, or leave out n_jobs and trial_timeout"
        raise ConfigError("train", f"cannot be sent to other processes ({reason}); {advice}") from error


def function_config(config: Config) -> DictConfig:
    """Return the config that a training function gets: resolved, without groups that have no option.

    To read a key that it lacks is an error.
    """
    plain = asdict(config)
    absent = [key for key, value in plain.items() if value is None or key in _NOT_GIVEN]
    absent += [] if config.has_split else ["split"]
    absent += ["task"] if config.task == AUTO_TASK else []
    given = {key: value for key, value in plain.items() if key not in absent}
    cfg = OmegaConf.create(literal({**given, **plain["own"]}))
    assert isinstance(cfg, DictConfig)
    OmegaConf.set_struct(cfg, True)
    return cfg
