"""`hydra/sweeper=study`: the Hydra plugin. Light to import, since Hydra loads it for `--help` too."""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from sweep.config.output_folders import register
from sweep.search.settings import settings_of
from sweep.utils.errors import ConfigError

register()  # a launcher's fresh process loads this module, and with it what the config refers to


class StudySweeper(Sweeper):
    """Runs a study of trials; its arguments are the keys of conf/hydra/sweeper/study.yaml."""

    def __init__(self, **node: Any) -> None:
        del node  # Hydra's copy, whose references to the rest of the config lead nowhere

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        if "experiment_name" not in config:
            raise ConfigError("hydra/sweeper", "study searches sweep's own trials; choose another for this application")

    def sweep(self, arguments: list[str]) -> Any:
        """Runs what the study lacks of its trials. Raises ConfigError before anything starts or is stored."""
        assert self.hydra_context is not None
        assert self.config is not None
        settings_of(self.config)  # refuses what is wrong, before Optuna is loaded
        from sweep.storage.quiet import quiet_optuna
        from sweep.study.results import best_value
        from sweep.study.runner import StudyRunner
        from sweep.study.spec import make_root, make_spec

        with quiet_optuna():
            study = StudyRunner(make_spec(make_root(self.hydra_context, self.config), arguments)).run()
            return None if study is None else best_value(study)
