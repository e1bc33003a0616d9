"""Check everything about a study that can be checked before a worker starts, and make the plan for its workers."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from sweep.config.function_node import needs_loop
from sweep.config.schema import Config, has_function, validate
from sweep.execution.objective import check_objectives
from sweep.execution.plan import WorkerPlan
from sweep.search.custom import KEY as CUSTOM
from sweep.search.initial_trials import initial_params
from sweep.search.pruners import check_pruner
from sweep.search.samplers import is_grid, is_replayed, is_shuffled, is_uniform, shuffled
from sweep.search.settings import N_TRIALS, N_TRIALS_OF_APPLICATION, StudySettings
from sweep.search.space import Configuration, Space
from sweep.storage.url import without_driver
from sweep.tracking.folders import StudyFolder
from sweep.tracking.run_copies import absolute_place
from sweep.trial.build import check_model_target
from sweep.trial.checks import check_data, check_monitor_of_data
from sweep.trial.function import check_function
from sweep.utils.errors import ConfigError

_MOST_CHECKED = 2  # the first configurations are composed by Hydra too, which takes 65 ms each
_SMALL = 1000  # in a space with at most this many configurations, random draws would soon repeat some


def make_plan(
    settings: StudySettings,
    space: Space,
    base: DictConfig,
    name: str,
    folder: StudyFolder,
    n_shares: int,
    n_tasks: int = 1,
) -> WorkerPlan:
    """Make the plan for a study's workers.

    Args:
        settings: the study's settings.
        space: its search space.
        base: the default configuration.
        name: the study's name.
        folder: the study's folder.
        n_shares: the number of workers that share the cores and GPUs of a machine.
        n_tasks: the number of workers that one job of the launcher starts.

    Raises:
        ConfigError: the initial trials or the space are invalid.
    """
    if settings.artifacts is not None:
        settings = replace(settings, artifacts=absolute_place(settings.artifacts))
    seed = settings.sampler.get("seed")
    seed = int(base.seed if seed is None else seed)
    known = initial_params(settings, space, space.configured_groups())
    order = _order(settings, space, seed, known)
    n_configurations = float("inf") if order is None else len(order)
    usual = N_TRIALS_OF_APPLICATION if space.composer.application else N_TRIALS
    return WorkerPlan(
        settings=settings,
        name=name,
        folder=folder,
        space=space,
        n_trials=settings.total(n_configurations, is_grid(settings.sampler), usual),
        known=known if order is None else [],
        order=order,
        uid=uuid.uuid4().hex,
        seed=seed,
        n_shares=n_shares,
        n_tasks=n_tasks,
    )


def check_plan(plan: WorkerPlan, config: Config) -> None:
    """Compose and check the first configurations with their data. `config` is the default configuration.

    Raises ConfigError for the first problem.
    """
    space = plan.space
    if plan.settings.folds > 1 and (keys := sorted({"split.folds", "split.fold"} & space.swept.keys())):
        raise ConfigError(keys[0], "cannot be searched with hydra.sweeper.folds, which sets it")
    if not config.is_function:
        check_objectives(plan.settings.objective, config, space.splits.load(config))
    for n, configuration in enumerate(plan.rehearse(range(min(len(plan.known) + 1, plan.n_trials)))):
        trial_config = space.splits.fit(validate(space.compose(configuration)))
        if trial_config.is_application:
            pass  # its task function cannot be checked before it is called
        elif trial_config.is_function:
            check_function(trial_config, space.composer.function)
        else:
            check_data(space.splits.load(trial_config), trial_config)
            check_model_target(trial_config.model)
        if n < _MOST_CHECKED:
            space.composer.check(configuration.groups, configuration.values)
    if not config.is_function:
        check_monitor_of_data(space.splits.load(config), config)


def check_settings(settings: StudySettings, base: DictConfig, tracking_uri: str | None) -> None:
    """Raise ConfigError for a pruner that cannot work, a storage that is MLflow's database, or keys of a single run.

    It also refuses a `trainer.seed` that all replicates would share, and settings that a training function cannot
    follow.
    """
    check_pruner(settings)
    if has_function(base):
        _check_function_settings(settings, base)
    if settings.storage and tracking_uri and without_driver(settings.storage) == without_driver(tracking_uri):
        raise ConfigError(
            "hydra.sweeper.storage", "is MLflow's database too, and their tables clash; give each one of its own"
        )
    if base.resume is not None:
        raise ConfigError("resume", "is for a single run; to resume a study, run its command again")
    if base.from_study is not None:
        raise ConfigError("from_study", "is for a single run; leave out --multirun")
    if settings.folds > 1 and base.split.folds is not None:
        raise ConfigError("split.folds", "is for one fold; leave it out with hydra.sweeper.folds, which trains all")
    if settings.seeds > 1 and base.trainer.seed != base.seed:
        raise ConfigError("trainer.seed", "would be the same for every replicate; set seed, which it follows")


def _check_function_settings(settings: StudySettings, base: DictConfig) -> None:
    if settings.pack not in (1, "auto"):
        raise ConfigError("hydra.sweeper.pack", f"{needs_loop('a pack')}; leave it out")
    if settings.n_runs > 1 and base.tracking.share_run:
        key = "seeds" if settings.seeds > 1 else "folds"
        message = "trains several runs of a trial in turn, so a function cannot be given one of them; leave it out"
        raise ConfigError(f"hydra.sweeper.{key}", f"{message}, or tracking.share_run")
    if settings.folds > 1 and "split" not in base.choices:
        message = "needs a function that reads cfg.split.fold, and an option of split to be read; add split=random"
        raise ConfigError("hydra.sweeper.folds", message)


def _order(
    settings: StudySettings, space: Space, seed: int, known: Sequence[Mapping[str, Any]]
) -> list[Configuration] | None:
    """Return the configuration of each trial if the order is fixed in advance, otherwise None.

    It is for a grid, and for random search in a small space, where draws would repeat: the space is shuffled instead.
    """
    if is_grid(settings.sampler) and space.custom is not None:
        raise ConfigError("hydra/sweeper/sampler", f"cannot list what {CUSTOM} chooses; choose another")
    if is_shuffled(settings.sampler):
        order = shuffled(space, seed, known)
    elif is_grid(settings.sampler):
        if settings.enqueue:
            raise ConfigError("hydra.sweeper.enqueue", "has no effect in a grid, which tries every configuration")
        order = list(space.everything())
    elif is_uniform(settings.sampler) and not is_replayed(settings.sampler, space) and space.has_at_most(_SMALL):
        order = shuffled(space, seed, known)
    else:
        return None
    if not order:
        raise ConfigError("where", "leaves nothing of the space; change it, or the ranges")
    return order
