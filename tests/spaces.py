"""Spaces and studies made without a command line, for tests of what is below it."""

from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig
from optuna.trial import TrialState

from sweep.config.options import CONF_DIR
from sweep.config.output_folders import register
from sweep.search.composer import Starts
from sweep.search.making import make_space
from sweep.search.samplers import draw, make_sampler
from sweep.search.space import Space


@contextmanager
def hydra_of_its_own():
    """Hydra as `hydra.main` sets it up with our conf/."""
    register()
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2(task_name="run", config_search_path=create_config_search_path(str(CONF_DIR)))
    finally:
        GlobalHydra.instance().clear()


def master_of(hydra: Hydra, arguments: Sequence[str]) -> DictConfig:
    """The sweep's own config, as the sweeper gets it."""
    return hydra.config_loader.load_configuration("config", list(arguments), RunMode.MULTIRUN)


def space_of(*arguments: str, starts: Starts | None = None) -> Space:
    """The space of `python -m sweep.run -m ARGUMENTS`. starts: what range tests suggest."""
    with hydra_of_its_own() as hydra:
        return make_space(hydra.config_loader, master_of(hydra, arguments), arguments).starting_from(starts or {})


def ranges_of(space: Space, **groups: str) -> dict[str, Any]:
    """Name -> distribution under those options, the first of each group where none is given."""
    return dict(space.ranges(space.first_groups() | groups).values())


def proposals(node: dict[str, Any], space: Space, numbers: list[int], seed: int = 0) -> list[dict[str, Any]]:
    """What trials of those numbers try, each told a value before the next is asked."""
    study = optuna.create_study()
    tried = []
    for number in numbers:
        trial_id = study._storage.create_new_trial(study._study_id)
        sampler = make_sampler(node, seed, number, space)
        configuration = draw(study, study._storage.get_trial(trial_id), sampler, space, {})
        for name, distribution in space.distributions(configuration).items():
            internal = distribution.to_internal_repr(configuration.params[name])
            study._storage.set_trial_param(trial_id, name, internal, distribution)
        study._storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [float(number % 3)])
        tried.append(configuration.params)
    return tried
