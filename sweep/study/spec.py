"""The specification of a study as objects, and what a study needs of Hydra: composing configs, and launchers."""

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import starmap
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from optuna.distributions import BaseDistribution

from sweep.config.composition import load_multirun, searchpath_overrides
from sweep.config.metrics import REPORTED, RETURNED, returned_names
from sweep.config.overrides import hydras_own, key_of, option, sets
from sweep.config.schema import checked_output_dir, is_own_key
from sweep.execution.worker import Worker
from sweep.search.composer import override
from sweep.search.making import make_space
from sweep.search.ranges import spelled_range
from sweep.search.settings import StudySettings, is_application, params_of, settings_of, spelled_settings
from sweep.search.space import Space
from sweep.study.resources import check_machine, launcher_overrides
from sweep.trial.application import Application
from sweep.utils.paths import absolute

# The recorded command, which resumes the study, leaves these out: -m replaces the first, the second is recorded with
# absolute paths, and the others hold for one command only.
_ONCE = ("hydra.mode", "hydra.searchpath", "hydra.sweeper.retry_failed", "hydra.sweeper.debug")


@dataclass(frozen=True, kw_only=True)
class HydraRoot:
    """The source from which Hydra composes the configs of studies.

    Attributes:
        context: Hydra's context.
        name: the name of the primary config.
        own: the overrides of Hydra's own keys.
        launcher: further ones, which make the launcher start `n_jobs` workers.
        changes: settings that a program gives, by key, as for `settings_of`.
        options: options of Hydra's own groups that a program gives, by group.
        like: a config whose cached values, such as the time, the composed configs share.
        embedded: True if a Python program runs the study. Its logging stays as it is, and a single worker runs in its
            process.
        task: the task function of another Hydra application; None for sweep's own.
        function: the training function, if a program gives it as an object.
    """

    context: HydraContext
    name: str
    own: Sequence[str]
    launcher: Sequence[str]
    changes: Mapping[str, object]
    like: DictConfig
    options: Mapping[str, str] = field(default_factory=dict)
    embedded: bool = False
    task: TaskFunction | None = None
    function: Callable[..., Any] | None = None

    @property
    def given(self) -> list[str]:
        """The overrides of Hydra's own keys, with the options that a program gives."""
        return [*starmap(option, self.options.items()), *self.own]

    def compose(self, arguments: Sequence[str]) -> DictConfig:
        """Compose the config of a sweep with the given overrides of a trial's keys.

        Raises:
            ConfigError: Hydra cannot compose them.
        """
        overrides = [*self.given, *self.launcher, *arguments]
        master = load_multirun(self.context.config_loader, self.name, overrides, self.like, of_sweep=self.task is None)
        with open_dict(master):
            master.hydra.mode = RunMode.MULTIRUN
        return master


def make_root(
    context: HydraContext,
    config: DictConfig,
    changes: Mapping[str, object] | None = None,
    embedded: bool = False,
    task: TaskFunction | None = None,
) -> HydraRoot:
    """Return the source that the config of a sweep was composed from, with a launcher for its number of workers.

    Several workers use joblib unless another launcher is chosen. Hydra then logs only problems.

    Args:
        context: Hydra's context.
        config: the config of the sweep.
        changes: settings that a program gives.
        embedded: True if a Python program runs the study.
        task: the task function of another Hydra application.

    Raises:
        ConfigError: the settings are invalid.
    """
    own, settings = hydras_own(config), settings_of(config, changes)
    n_jobs = settings.n_jobs
    name = config.hydra.runtime.choices.get("hydra/launcher")
    is_quiet = embedded or is_application(config)
    launcher = [f"hydra/hydra_logging={'none' if is_quiet else 'study'}"]
    if n_jobs > 1 and name == "basic":
        name = "joblib"
        launcher.append("hydra/launcher=joblib")
    if name == "joblib" and not any(sets(o, "hydra.launcher.n_jobs") for o in own):
        launcher.append(f"hydra.launcher.n_jobs={n_jobs}")
    launcher += launcher_overrides(config.hydra.launcher, settings.resources)
    return HydraRoot(
        context=context,
        name=config.hydra.job.config_name,
        own=own,
        launcher=launcher,
        changes=changes or {},
        like=config,
        embedded=embedded,
        task=task,
    )


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """The specification of a study.

    Attributes:
        settings: the study's settings.
        space: its search space.
        launching: how its workers are started.
        command: the arguments of `python -m sweep.run` that resume the study, for its record.
    """

    settings: StudySettings
    space: Space
    launching: "Launching"
    command: Sequence[str]


def make_spec(
    root: HydraRoot,
    arguments: Sequence[str],
    changes: Mapping[str, object] | None = None,
    ranges: Mapping[str, BaseDistribution] | None = None,
    options: Mapping[str, str] | None = None,
    values: Mapping[str, Any] | None = None,
) -> StudySpec:
    """Make the specification of a study.

    Args:
        root: the source of its configs.
        arguments: overrides of a trial's keys, as on the command line.
        changes: settings that replace those of the root, by key.
        ranges: further ranges to search, by config key. They replace arguments of the same keys.
        options: options of groups, by group.
        values: values of config keys. They replace arguments of the same keys.

    Raises:
        ConfigError: the config cannot be composed, or the settings or the space are invalid.
    """
    changes, ranges, values = {**root.changes, **(changes or {})}, ranges or {}, values or {}
    replaced = {*values, *ranges}
    arguments = [
        *(a for a in arguments if replaced.isdisjoint((key_of(a), key_of(a).removeprefix("search.")))),
        *starmap(option, (options or {}).items()),
        *(f"{'++' * is_own_key(key)}{override(key, value)}" for key, value in values.items()),
    ]
    master = root.compose(arguments)
    if params := params_of(master, arguments):
        arguments = [*params, *arguments]
        master = root.compose(arguments)
    settings = settings_of(master, changes)
    application = None if root.task is None else _application(root.context, master, root.task, settings)
    words = [*_recorded(root.given, spelled_settings(changes)), *arguments]
    words += [f"{key}={spelled_range(distribution)}" for key, distribution in ranges.items()]
    return StudySpec(
        settings=settings,
        space=make_space(
            root.context.config_loader,
            master,
            arguments,
            ranges,
            settings.objective,
            settings.folds,
            settings.direction,
            application,
            root.function,
        ),
        launching=Launching(root.context, master, root.embedded, application is not None),
        command=["-m", *searchpath_overrides(master.hydra), *words],
    )


def _application(context: HydraContext, master: DictConfig, task: TaskFunction, settings: StudySettings) -> Application:
    """Return the application whose config is `master`, with the settings of its record. Raise ConfigError."""
    name, node = str(master.hydra.job.name), master.hydra.sweeper
    returns = settings.objective if settings.objective == returned_names(len(settings.objective)) else []
    trainer = {
        "epochs": settings.max_epochs,
        "checkpoint_interval_s": node.checkpoint_interval_s,
        "monitor": REPORTED if settings.objective == [RETURNED] else settings.objective[0],
        "direction": settings.direction[0],
    }
    own = {
        "output_dir": str(absolute(checked_output_dir(str(node.output_dir)))),
        "experiment_name": name if node.experiment_name is None else str(node.experiment_name),
        "tracking": OmegaConf.to_container(node.tracking, resolve=True),
        "trainer": trainer,
    }
    script = os.path.relpath(sys.argv[0]) if os.path.isfile(sys.argv[0]) else name
    return Application(
        name=name,
        script=script,
        context=context,
        master=master,
        task=task,
        settings=own,
        returns=returns,
        custom_search_space=node.custom_search_space,
    )


def _recorded(own: Sequence[str], changes: Sequence[str]) -> list[str]:
    """Return the overrides of Hydra's keys for the command that resumes the study.

    These are the overrides in `own` that the changes do not replace, then the changes.
    """
    changed = {key_of(change) for change in changes}
    below = tuple(f"{key.replace('/', '.')}." for key in changed if "/" in key)  # keys of an option that was replaced
    kept = [o for o in own if key_of(o) not in changed and not key_of(o).startswith(below)]
    return [o for o in (*kept, *changes) if key_of(o) not in _ONCE]


@dataclass(frozen=True)
class Launching:
    """How a study's workers are started. `config` is the config of the sweep, which has the launcher's node."""

    context: HydraContext
    config: DictConfig
    embedded: bool
    of_application: bool = False

    @property
    def is_here(self) -> bool:
        """True if the single worker runs in this process."""
        return self.config.hydra.runtime.choices["hydra/launcher"] == "basic"

    def n_shares(self, n_jobs: int) -> int:
        """Return how many of `n_jobs` workers share this machine; 1 if Slurm or Ray divides machines among them."""
        if any(scheduler in self._target for scheduler in ("slurm", "ray_launcher")):
            return 1
        return math.ceil(n_jobs / self.n_tasks) * self.n_tasks

    def check(self, settings: StudySettings) -> None:
        """Raise ConfigError if this machine cannot give each worker that is started here its resources."""
        if (n_here := self.n_shares(settings.n_jobs)) > 1 or self.is_here:
            check_machine(settings.resources, n_here)

    @property
    def n_tasks(self) -> int:
        """How many workers one job of the launcher starts: with submitit, one for each task of the job."""
        if "submitit" not in self._target:
            return 1
        launcher = self.config.hydra.launcher
        return (launcher.get("nodes") or 1) * (launcher.get("tasks_per_node") or 1)

    @property
    def _target(self) -> str:
        return str(self.config.hydra.launcher._target_).lower()

    def launcher(self, worker: Worker, folder: Path) -> Launcher:
        """Return the launcher, set up to run `worker`. Some launchers write files of their own into `folder`."""
        if (self.embedded or self.of_application) and self.is_here:
            return _InProcess(worker)
        self.config.hydra.sweep.dir = str(folder)
        context = self.context
        if self.of_application:  # a worker is no job of the application's, so its callbacks do not hear of it
            context = HydraContext(context.config_loader, Callbacks(), context.execution_whitelist)
        return Plugins.instance().instantiate_launcher(hydra_context=context, task_function=worker, config=self.config)


class _InProcess(Launcher):
    """Runs one worker as a function call. Hydra's basic launcher would change the program's logging."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        raise NotImplementedError("the constructor has set it up")

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        returned = JobReturn()
        returned.return_value = self._worker.work(initial_job_idx)
        returned.status = JobStatus.COMPLETED
        return [returned]
