"""Hydra's own suite for launchers, with the launchers that a study runs on; and what of its suites applies to `study`.

Most cases of Hydra's suites cannot run with `hydra/sweeper=study`, although it is found in their applications: they
read the list of Hydra's jobs that a sweeper returns, in batches and below `hydra.sweep.dir`, and their applications
return nothing. A study returns the value of its best trial, has no batches, and fails a trial without a value.
So the case of `BatchedSweeperTestSuite` is written again, with what can be asked of a study.
"""

from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.test_utils.launcher_common_tests import LauncherTestSuite
from hydra.test_utils.test_utils import TSweepRunner
from omegaconf import DictConfig, OmegaConf

from sweep.study.sweeper import StudySweeper

pytestmark = pytest.mark.process  # commands, servers, a browser


@pytest.fixture(scope="module", autouse=True)
def plugins() -> None:
    """Found once, before Hydra's fixtures remember and restore what is there."""
    Plugins.instance()


def test_hydra_finds_the_sweeper_by_itself():
    assert StudySweeper in Plugins.instance().discover(Sweeper)


@pytest.mark.filterwarnings("default")  # the suite's own
@pytest.mark.parametrize(("launcher_name", "overrides"), [("basic", []), ("joblib", [])])
class TestLaunchers(LauncherTestSuite):
    pass


class TestStudy:
    """With `hydra/sweeper=study`, in an application of Hydra's suites."""

    def sweep(self, runner: TSweepRunner, folder: Path, task: Any, *overrides: str) -> Any:
        own = (f"hydra.sweeper.output_dir={folder}", "hydra.sweeper.tracking.mlflow=false")
        return runner(
            calling_file=None,
            calling_module="hydra.test_utils.a_module",
            task_function=task,
            config_path="configs",
            config_name="compose.yaml",
            overrides=["hydra/sweeper=study", "hydra/sweeper/sampler=grid", *own, *overrides],
            temp_dir=folder,
        )

    @pytest.mark.usefixtures("hydra_restore_singletons")
    def test_sweep_2_jobs_2_batches(self, hydra_sweep_runner: TSweepRunner, tmp_path: Path) -> None:
        """Of every combination there is one job, with its config, its overrides and a folder of its own."""
        jobs: list[tuple[Any, list[str]]] = []
        folders: set[str] = set()

        def task(cfg: DictConfig) -> float:
            job = HydraConfig.get()
            jobs.append((OmegaConf.to_container(cfg), list(job.overrides.task)))
            folders.add(job.runtime.output_dir)
            assert Path(job.runtime.output_dir, ".hydra", "config.yaml").exists()
            return cfg.foo + cfg.bar

        with self.sweep(hydra_sweep_runner, tmp_path, task, "group1=file1,file2", "bar=100,200,300") as done:
            assert done.returns == 110, "the best value"
        expected = [
            ({"foo": 10 * n, "bar": bar}, [f"group1=file{n}", f"bar={bar}"]) for n in (1, 2) for bar in (100, 200, 300)
        ]
        assert sorted(jobs, key=str) == sorted(expected, key=str)
        assert len(folders) == 6
