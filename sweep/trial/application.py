"""Another Hydra application, whose task function trains the trials of a study (docs/applications.md).

A trial is a call of that function as a job of Hydra's, in a folder of its own below the trial's folder.
"""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.utils import JobStatus, run_job
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sweep.config.metrics import REPORTED, returned_names
from sweep.config.schema import APPLICATION, Config, literal, structured
from sweep.training.trial import Trial
from sweep.trial.checked_trial import CheckedTrial, as_number
from sweep.trial.current import training
from sweep.trial.function import raise_problem
from sweep.trial.job_config import JobConfigs, JobOverrides
from sweep.utils import gc_control
from sweep.utils.errors import ConfigError, FunctionFailed, Pruned, one_line

JOB_FOLDER = "job"  # in the trial's folder: what the application takes as its output_dir


@dataclass(frozen=True, kw_only=True)
class Application:
    """Another Hydra application, and the settings of its study's record.

    Attributes:
        name: of its job, such as train.
        script: the file that was run, such as train.py.
        context: Hydra's.
        master: the config of its multirun.
        task: its task function.
        settings: values of sweep's own config, such as {"output_dir": "outputs"}.
        returns: names of the values that the task function returns; empty if the objectives are what it reports.
        custom_search_space: the dotted path of a function that chooses further values (sweep/search/custom.py).
    """

    name: str
    script: str
    context: HydraContext
    master: DictConfig
    task: TaskFunction
    settings: Mapping[str, Any]
    returns: Sequence[str]
    custom_search_space: str | None = None

    def trial_config(self, config: DictConfig) -> DictConfig:
        """Return sweep's own config of a trial, which has the given config of the application as one of its keys.

        Raises ConfigError if a setting has a bad value.
        """
        own: DictConfig = pickle.loads(self._pickled_config)
        own[APPLICATION] = literal(_resolved(config))
        return own

    @cached_property
    def _pickled_config(self) -> bytes:
        """What all trials have in common of sweep's own config. OmegaConf takes 40 times as long as pickle to copy."""
        try:
            own = OmegaConf.merge(structured(), OmegaConf.create(literal(dict(self.settings))))
        except OmegaConfBaseException as error:
            raise ConfigError(str(error.full_key), one_line(error)) from error
        own.trainer.call = self.script
        return pickle.dumps(own)

    @cached_property
    def _jobs(self) -> JobConfigs:
        loader = self.context.config_loader
        assert isinstance(loader, ConfigLoaderImpl)
        return JobConfigs(loader, self.master)

    def job(self, overrides: JobOverrides, number: int, output_dir: Path) -> DictConfig:
        """Return the config of a trial's job, as Hydra's launcher would compose it.

        Args:
            overrides: of the trial.
            number: of the trial, which becomes the job's.
            output_dir: the job's folder.
        """
        config = self._jobs.compose(overrides)
        with open_dict(config):
            config.hydra.job.id = f"{self.name}-{number}"
            config.hydra.job.num = number
            config.hydra.sweep.dir = literal(str(output_dir.parent))
            config.hydra.sweep.subdir = literal(output_dir.name)
        return config


def _resolved(node: Any) -> Any:
    """Return a node as plain values. What cannot be resolved before the job runs stays as it is written.

    So do references to environment variables, which may hold secrets.
    """
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing() and not node._is_interpolation():
        return {str(key): _resolved_child(node, key) for key in node}
    if isinstance(node, ListConfig) and not node._is_none() and not node._is_missing() and not node._is_interpolation():
        return [_resolved_child(node, place) for place in range(len(node))]
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _resolved_child(node: DictConfig | ListConfig, key: Any) -> Any:
    child: Any = node._get_node(key)
    written = child._value()
    if written == "???":  # the application may do without it
        return None
    if isinstance(written, str) and "oc.env" in written:
        return written
    try:
        found = _resolved(child if isinstance(child, DictConfig | ListConfig) else node[key])
    except (OmegaConfBaseException, ValueError, KeyError):
        return written
    return found if isinstance(found, bool | int | float | str | dict | list | None) else str(found)


class ApplicationTraining:
    """Calls the application's task function, as a job of Hydra's. `config` is the given config."""

    n_epochs = 0  # not known

    def __init__(self, config: Config, application: Application, overrides: JobOverrides, number: int) -> None:
        """Prepare the call.

        Args:
            config: sweep's own config of the trial.
            application: whose task function is called.
            overrides: those that compose the application's config.
            number: of the trial.
        """
        self.config = config
        self._application, self._overrides, self._number = application, overrides, number

    def __call__(self, trial: Trial) -> dict[str, float]:
        """Run the job.

        Returns:
            What the task function returned, by the names of `Application.returns`, or as the function named it.

        Raises:
            FunctionFailed: the application raised an error, ended the process, returned no objective, or gave its trial
                something else than the contract says (`CheckedTrial`).
            Diverged, Pruned, Interrupted, OSError: what a call of the trial raised, also if the application caught it.
        """
        application = self._application
        first_as = REPORTED if len(application.returns) == 1 else None  # what is returned is not known yet
        checked = CheckedTrial(trial, application.name, first_as)
        gc_control.resume()
        with training(checked):
            returned = self._run(checked)
            metrics = self._metrics(returned)
            checked.describe()  # begin the record first, so that a value that is not finite is recorded
            checked.finish(metrics)
        if not checked.has_values and not checked.epoch:
            raise FunctionFailed(application.name, "reported and returned no metrics")
        return metrics

    def _run(self, trial: CheckedTrial) -> Any:
        """Run the job, and return what the task function returned. Raise as `__call__` does."""
        application = self._application

        def task(cfg: DictConfig) -> Any:
            try:
                return application.task(cfg)
            except Pruned:  # for Hydra and its callbacks, the job is complete
                return None

        job = application.job(self._overrides, self._number, trial.folder / JOB_FOLDER)
        try:
            done = run_job(
                task_function=task,
                config=job,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
                hydra_context=application.context,
            )
        except BaseException as error:
            raise_problem(application.name, error if trial.ended is None else trial.ended)
        if trial.ended is not None:
            raise_problem(application.name, trial.ended)
        if done.status != JobStatus.COMPLETED:
            raise_problem(application.name, done._return_value)
        return done.return_value

    def _metrics(self, returned: Any) -> dict[str, float]:
        """Return what the task function returned, by name. Raise FunctionFailed if it lacks an objective."""
        names = self._application.returns
        if isinstance(returned, Mapping):
            found = {str(name): number for name, value in returned.items() if (number := as_number(value)) is not None}
            if not names:
                return found
        values = list(returned) if isinstance(returned, list | tuple) else [returned]
        numbers = [as_number(value) for value in values]
        if names and (len(numbers) != len(names) or None in numbers):
            wanted = "a number" if len(names) == 1 else f"{len(names)} numbers"
            remedy = "or name a metric that it reports with hydra.sweeper.objective"
            raise FunctionFailed(self._application.name, f"returned {returned!r}, not {wanted}; return it, {remedy}")
        if not names and None in numbers:
            return {}
        given = names or returned_names(len(numbers))
        return {name: number for name, number in zip(given, numbers, strict=True) if number is not None}
