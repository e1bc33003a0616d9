"""The configs of another application's jobs: the same as Hydra composes, but files are not read again for each job.

Hydra composes the first job of each choice of options. In a copy of that, the values of a trial are set by the method
with which Hydra sets them itself.
"""

import os
import pickle
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from sweep.config.overrides import hydras_own


class JobOverrides(NamedTuple):
    """The overrides of a job: those that further jobs have, too, and its own, which follow them."""

    shared: Sequence[str]
    own: Sequence[str]


class JobConfigs:
    """Composes the configs of jobs, as Hydra's launchers do."""

    def __init__(self, loader: ConfigLoaderImpl, master: DictConfig) -> None:
        """Compose with Hydra's loader, for a sweep whose own config is `master`."""
        self._loader, self._master = loader, master
        self._pickled: dict[tuple[str, ...], bytes | None] = {}  # by the overrides that the jobs share
        self._is_group: dict[str, bool] = {}

    def compose(self, overrides: JobOverrides) -> DictConfig:
        """Return a new config of a job, with Hydra's node. Raise Hydra's own error if it does not compose."""
        config = self._copied(*overrides)
        if config is None:
            return self._loader.load_sweep_config(self._master, [*overrides.shared, *overrides.own])
        return config

    def _copied(self, shared: Sequence[str], own: Sequence[str]) -> DictConfig | None:
        """Return what `compose` does, made from a copy; None if only Hydra can make it, or say what is wrong."""
        pickled = self._shared(tuple(shared))
        overrides = OverridesParser.create().parse_overrides([*own])
        if pickled is None or not all(map(self._is_only_a_value, overrides)):
            return None
        config: DictConfig = pickle.loads(pickled)
        try:
            self._loader._apply_overrides_to_config(overrides, config)
        except Exception:  # Hydra composes it again and reports the error
            return None
        config.hydra.overrides.task.extend(own)
        config.hydra.runtime.cwd = os.getcwd()
        with open_dict(config.hydra):
            for name in config.hydra.job.env_copy:
                config.hydra.job.env_set[name] = os.environ[name]
        OmegaConf.copy_cache(from_config=self._master, to_config=config)
        return config

    def _shared(self, overrides: tuple[str, ...]) -> bytes | None:
        """Return the pickled config of a job with these overrides; None if that cannot be pickled."""
        if overrides not in self._pickled:
            config = self._loader.load_sweep_config(self._master, [*overrides])
            try:
                self._pickled[overrides] = pickle.dumps(config)
            except Exception:  # of any kind: a class of the application's own, in its config, may not be importable
                self._pickled[overrides] = None
        return self._pickled[overrides]

    def _is_only_a_value(self, override: Override) -> bool:
        """Return whether an override changes one value of the composed config, and not which files it is made of."""
        key = override.key_or_group
        if key not in self._is_group:
            self._is_group[key] = self._files.group_exists(key)
        return not (self._is_group[key] or override.is_hydra_override() or override.is_delete())

    @cached_property
    def _files(self) -> CachingConfigRepository:
        """The files on the sweep's search path."""
        name = self._master.hydra.job.config_name
        return self._loader._parse_overrides_and_create_caching_repo(name, hydras_own(self._master))[1]
