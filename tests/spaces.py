"""Spaces and studies made without a command line, for tests of what is below it."""

from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

from sweep.config.options import CONF_DIR
from sweep.config.output_folders import register
from sweep.search.composer import Starts
from sweep.search.space import Space, make_space


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
