"""`hydra/sweeper=study`: the Hydra plug-ins. They are light to import, since Hydra loads them for `--help` too."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from sweep.config.output_folders import register
from sweep.config.overrides import key_of
from sweep.search.settings import is_application, settings_of
from sweep.utils.errors import ConfigError, Interrupted, SweepError
from sweep.utils.terminal import complain

register()  # a new process of a launcher imports this module, and the config needs the resolvers

# Keys of sweep's own config that are settings of the study in another application.
_SETTING = re.compile(r"(?:trainer\.)?(checkpoint_interval_s|output_dir|experiment_name|(?:tracking|compare)(?:\..*)?)")
_SEARCH_PATH = Path(__file__).parent / "search_path"


class StudySearchPath(SearchPathPlugin):
    """Puts `hydra/sweeper=study` on the search path of every Hydra application. sweep's own conf/ precedes it."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="sweep", path=f"file://{_SEARCH_PATH}")


class StudySweeper(Sweeper):
    """Runs a study: of sweep's own trials, or of calls of another application's task function.

    Its arguments are the keys of conf/hydra/sweeper/study.yaml; those for another application are in
    search_path/hydra/sweeper/study.yaml.
    """

    def __init__(self, **node: Any) -> None:
        """Ignore the node: it is a copy in which references to the rest of the config no longer resolve."""
        del node

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives."""
        self.hydra_context, self.config, self._task = hydra_context, config, task_function

    def sweep(self, arguments: list[str]) -> Any:
        """Run the trials that the study still lacks.

        Args:
            arguments: the overrides of the command line, without those of Hydra's own keys.

        Returns:
            The value of the best trial; None for a dry run and with several objectives.

        Raises:
            ConfigError: the study cannot be run. Nothing is started or stored then.
            StudyFailed, Interrupted, Unsent: see `StudyRunner.run`.
            SystemExit: instead of the errors above, after one line that shows them, in another application.
        """
        assert self.config is not None
        if not is_application(self.config):
            return self._sweep(arguments, None)
        try:
            return self._sweep(arguments, self._task)
        except SweepError as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            complain(f"error: {_in_application(error, arguments)}")
            sys.exit(error.exit_status)
        except Interrupted as stop:
            sys.exit(128 + stop.signum)

    def _sweep(self, arguments: Sequence[str], task: TaskFunction | None) -> Any:
        """Run the study. `task`: the task function of another application."""
        assert self.hydra_context is not None
        assert self.config is not None
        settings_of(self.config)  # check the settings before Optuna is loaded
        from sweep.storage.quiet import quiet_optuna
        from sweep.study.prepared import PreparedStudy
        from sweep.study.results import best_value, write_stock_results
        from sweep.study.runner import StudyRunner
        from sweep.study.spec import make_root, make_spec

        with quiet_optuna():
            spec = make_spec(make_root(self.hydra_context, self.config, task=task), arguments)
            study = StudyRunner(PreparedStudy(spec)).run()
            if study is None:
                return None
            if task is not None:
                write_stock_results(study, Path(str(self.config.hydra.sweep.dir)), spec.space)
            return best_value(study)


def _in_application(error: SweepError, arguments: Sequence[str]) -> str:
    """Return the text of an error, with the key under `hydra.sweeper` if it names a setting of the study.

    A key of the same name that is one of the application's overrides, the `arguments`, stays as it is.
    """
    if not isinstance(error, ConfigError) or error.key in map(key_of, arguments):
        return str(error)
    setting = _SETTING.fullmatch(error.key)
    return str(error) if setting is None else f"hydra.sweeper.{setting[1]}{str(error).removeprefix(error.key)}"
