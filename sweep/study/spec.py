"""What a study is, as objects, and what it takes of Hydra: options to compose configs from, and launchers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, open_dict
from optuna.distributions import BaseDistribution

from sweep.config.composition import load_multirun, searchpath_overrides
from sweep.config.overrides import key_of, sets
from sweep.execution.worker import Worker
from sweep.search.ranges import spelled_range
from sweep.search.settings import StudySettings, settings_of, spelled_settings
from sweep.search.space import Space, make_space

# What a command that goes on says by -m, with absolute paths, or not again.
_ONCE = ("hydra.mode", "hydra.searchpath", "hydra.sweeper.retry_failed", "hydra.sweeper.debug")


@dataclass(frozen=True, kw_only=True)
class HydraRoot:
    """What Hydra composes the configs of studies from.

    context: the program's Hydra. name: of the root file. own: overrides of Hydra's own keys. launcher: further ones,
    which have the launcher start `n_jobs` workers. changes: settings that a program gives, as `settings_of` has them.
    like: a config whose resolved values, such as the time, the composed ones share. embedded: whether a program in
    Python calls: its logging stays as it is, and it is the worker itself where one is enough.
    """

    context: HydraContext
    name: str
    own: Sequence[str]
    launcher: Sequence[str]
    changes: Mapping[str, object]
    like: DictConfig
    embedded: bool = False

    def compose(self, arguments: Sequence[str]) -> DictConfig:
        """The config of a sweep with those overrides of a trial's keys. Raises ConfigError."""
        overrides = [*self.own, *self.launcher, *arguments]
        master = load_multirun(self.context.config_loader, self.name, overrides, self.like)
        with open_dict(master):
            master.hydra.mode = RunMode.MULTIRUN
        return master


def make_root(
    context: HydraContext,
    config: DictConfig,
    changes: Mapping[str, object] | None = None,
    embedded: bool = False,
) -> HydraRoot:
    """What composed `config`, a sweep's, and has its launcher say only what is wrong. Raises ConfigError."""
    own, n_jobs = list(config.hydra.overrides.hydra), settings_of(config, changes).n_jobs
    name = config.hydra.runtime.choices.get("hydra/launcher")
    launcher = [f"hydra/hydra_logging={'none' if embedded else 'study'}"]
    if n_jobs > 1 and name == "basic":
        name = "joblib"
        launcher.append("hydra/launcher=joblib")
    if name == "joblib" and not any(sets(o, "hydra.launcher.n_jobs") for o in own):
        launcher.append(f"hydra.launcher.n_jobs={n_jobs}")
    return HydraRoot(
        context=context,
        name=config.hydra.job.config_name,
        own=own,
        launcher=launcher,
        changes=changes or {},
        like=config,
        embedded=embedded,
    )


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """A study as objects. command: arguments of the `python -m sweep.run` that goes on with it, for its record."""

    settings: StudySettings
    space: Space
    launching: "Launching"
    command: Sequence[str]


def make_spec(
    root: HydraRoot,
    arguments: Sequence[str],
    changes: Mapping[str, object] | None = None,
    ranges: Mapping[str, BaseDistribution] | None = None,
) -> StudySpec:
    """A study with those overrides, which are what a command line says of a trial's keys. Raises ConfigError.

    changes: settings that take the place of what the root says. ranges: further ones to search, by config key.
    """
    changes, ranges = {**root.changes, **(changes or {})}, ranges or {}
    master = root.compose(arguments)
    settings = settings_of(master, changes)
    words = [*_recorded(root.own, spelled_settings(changes)), *arguments]
    words += [f"{key}={spelled_range(distribution)}" for key, distribution in ranges.items()]
    return StudySpec(
        settings=settings,
        space=make_space(root.context.config_loader, master, arguments, ranges, settings.objective),
        launching=Launching(root.context, master, root.embedded),
        command=["-m", *searchpath_overrides(master.hydra), *words],
    )


def _recorded(own: Sequence[str], changes: Sequence[str]) -> list[str]:
    """The overrides of Hydra's keys that a command gives which goes on: those that still hold, then the changes."""
    changed = {key_of(change) for change in changes}
    below = tuple(f"{key.replace('/', '.')}." for key in changed if "/" in key)  # of an option that is another now
    kept = [o for o in own if key_of(o) not in changed and not key_of(o).startswith(below)]
    return [o for o in (*kept, *changes) if key_of(o) not in _ONCE]


@dataclass(frozen=True)
class Launching:
    """How a study's workers are started. config: the sweep's own, with the launcher's node."""

    context: HydraContext
    config: DictConfig
    embedded: bool

    @property
    def is_here(self) -> bool:
        """Whether a worker runs in this process."""
        return self.config.hydra.runtime.choices["hydra/launcher"] == "basic"

    def shares(self, n_jobs: int) -> int:
        """How many workers share the cores of a machine."""
        return 1 if "slurm" in str(self.config.hydra.launcher._target_).lower() else n_jobs

    def launcher(self, worker: Worker, folder: Path) -> Launcher:
        """What runs the worker. folder: the study's; some launchers put files of their own there."""
        if self.embedded and self.is_here:
            return _InProcess(worker)
        self.config.hydra.sweep.dir = str(folder)
        return Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=worker, config=self.config
        )


class _InProcess(Launcher):
    """Runs one worker as a function call: Hydra's own launcher would set up the program's logging."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        raise NotImplementedError("it is made with all that it needs")

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        returned = JobReturn()
        returned.return_value = self._worker.work(initial_job_idx)
        returned.status = JobStatus.COMPLETED
        return [returned]
