"""`hydra/sweeper=study`: the Hydra plug-in. It is light to import, since Hydra loads it for `--help` too."""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from sweep.config.output_folders import register
from sweep.search.settings import settings_of
from sweep.utils.errors import ConfigError

register()  # a new process of a launcher imports this module, and the config needs the resolvers


class StudySweeper(Sweeper):
    """Runs a study. Its arguments are the keys of conf/hydra/sweeper/study.yaml."""

    def __init__(self, **node: Any) -> None:
        """Ignore the node: it is a copy in which references to the rest of the config no longer resolve."""
        del node

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep Hydra's context and config. Raise ConfigError for an application other than sweep."""
        self.hydra_context, self.config = hydra_context, config
        if "experiment_name" not in config:
            raise ConfigError("hydra/sweeper", "study searches sweep's own trials; choose another for this application")

    def sweep(self, arguments: list[str]) -> Any:
        """Run the trials that the study still lacks.

        Args:
            arguments: the overrides of the command line, without those of Hydra's own keys.

        Returns:
            The value of the best trial; None for a dry run and with several objectives.

        Raises:
            ConfigError: the study cannot be run. Nothing is started or stored then.
            StudyFailed, Interrupted, Unsent: see `StudyRunner.run`.
        """
        assert self.hydra_context is not None
        assert self.config is not None
        settings_of(self.config)  # check the settings before Optuna is loaded
        from sweep.storage.quiet import quiet_optuna
        from sweep.study.results import best_value
        from sweep.study.runner import StudyRunner
        from sweep.study.spec import make_root, make_spec

        with quiet_optuna():
            study = StudyRunner(make_spec(make_root(self.hydra_context, self.config), arguments)).run()
            return None if study is None else best_value(study)
