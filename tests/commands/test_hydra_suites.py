"""Hydra's own suites: for launchers, with those that a study runs on; and with `hydra/sweeper=study` as the sweeper.

A sweeper of Hydra's returns its jobs, and a study the value of its best trial. So a callback of Hydra's collects what
the jobs of a study return, and the suite reads that. The cases that cannot run are in decision 0051.
"""

from pathlib import Path
from typing import Any

import pytest
from collected import collected
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.test_utils.launcher_common_tests import IntegrationTestSuite, LauncherTestSuite
from hydra.test_utils.test_utils import SweepTaskFunction, TSweepRunner
from omegaconf import DictConfig, OmegaConf

from sweep.study.sweeper import StudySweeper

pytestmark = pytest.mark.process  # commands, servers, a browser


AS_STUDY = ("hydra/sweeper=study", "hydra/sweeper/sampler=grid", "hydra.sweeper.tracking.mlflow=false")
AS_STUDY += ("hydra.sweeper.max_failure_rate=1",)  # a job may return what is no value


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


class StudyOfSuite(SweepTaskFunction):
    """A sweep of Hydra's suites whose sweeper is `study`. Its `returns` are what a callback of Hydra's has got."""

    def __enter__(self) -> SweepTaskFunction:
        assert self.temp_dir is not None
        assert self.overrides is not None
        folder = Path(self.temp_dir, "collected")
        self.overrides += [*AS_STUDY, f"hydra.sweeper.output_dir={self.temp_dir}"]
        self.overrides += [f"+hydra.callbacks.collect={{_target_:collected.Collect,folder:{folder}}}"]
        super().__enter__()
        self.returns = [collected(folder)]
        return self


@pytest.mark.filterwarnings("default")  # the suite's own
@pytest.mark.parametrize(("launcher_name", "overrides"), [("basic", [])])
class TestStudyAsSweeper(LauncherTestSuite):
    """Nine of the suite's ten cases."""

    @pytest.fixture
    def hydra_sweep_runner(self, monkeypatch: pytest.MonkeyPatch, hydra_sweep_runner: TSweepRunner) -> TSweepRunner:
        monkeypatch.setattr("hydra.extra.pytest_plugin.SweepTaskFunction", StudyOfSuite)
        return hydra_sweep_runner

    # It looks for multirun.yaml and the jobs below hydra.sweep.dir.
    test_sweep_2_jobs = None  # pyright: ignore[reportAssignmentType]


@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [({}, ["-m", *AS_STUDY])])
class TestStudyOfScripts(IntegrationTestSuite):
    """What a script sees of Hydra. Its jobs are not below hydra.sweep.dir, which the other cases ask for."""

    @pytest.mark.parametrize(
        ("task_config", "overrides", "filename", "expected_name"),
        [({"hydra": {"job": {"name": "a"}}}, ["hydra.job.name=b", "hydra.sweep.subdir=${hydra.job.num}"], "c.py", "b")],
    )
    def test_custom_task_name(
        self,
        tmpdir: Path,
        task_config: Any,
        overrides: list[str],
        filename: str,
        expected_name: str,
        task_launcher_cfg: Any,
        extra_flags: list[str],
    ) -> None:
        own = (tmpdir, task_config, overrides, filename, expected_name, task_launcher_cfg, extra_flags)
        super().test_custom_task_name(*own)

    test_custom_sweeper_run_workdir = None  # pyright: ignore[reportAssignmentType]
    test_to_absolute_path_multirun = None  # pyright: ignore[reportAssignmentType]


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
            overrides=["hydra/sweeper=study", *own, *overrides],
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

        grid = ("hydra/sweeper/sampler=grid", "group1=file1,file2", "bar=100,200,300")
        with self.sweep(hydra_sweep_runner, tmp_path, task, *grid) as done:
            assert done.returns == 110, "the best value"
        expected = [
            ({"foo": 10 * n, "bar": bar}, [f"group1=file{n}", f"bar={bar}"]) for n in (1, 2) for bar in (100, 200, 300)
        ]
        assert sorted(jobs, key=str) == sorted(expected, key=str)
        assert len(folders) == 6

    @pytest.mark.usefixtures("hydra_restore_singletons")
    @pytest.mark.parametrize(("sampler", "n_trials"), [("random", 20), ("grid", 30)])
    def test_without_a_number_it_has_as_many_trials_as_the_stock_sweeper_or_the_whole_grid(
        self,
        sampler: str,
        n_trials: int,
        hydra_sweep_runner: TSweepRunner,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        own = (f"hydra/sweeper/sampler={sampler}", "hydra.sweeper.n_trials=null", "hydra.sweeper.dry_run=true")
        with self.sweep(hydra_sweep_runner, tmp_path, None, "bar=range(0,30)", *own):
            assert f": {n_trials} trials, nothing is stored" in capsys.readouterr().out

    @pytest.mark.usefixtures("hydra_restore_singletons")
    @pytest.mark.parametrize(
        ("given", "line"),
        [
            ("hydra.sweeper.tracking.step_points=-1", "hydra.sweeper.tracking.step_points: must be >= 0, got -1"),
            ("hydra.sweeper.tracking.close_timeout_s=x", "hydra.sweeper.tracking.close_timeout_s: Value 'x' of type"),
            ("hydra.sweeper.checkpoint_interval_s=-1", "hydra.sweeper.checkpoint_interval_s: must be >= 0 seconds"),
            ("hydra.sweeper.experiment_name=' '", "hydra.sweeper.experiment_name: is empty; name an MLflow experiment"),
            ("n_trials=4,5", "n_trials: is not a key of the config; if you mean the study's setting, write hydra.swee"),
        ],
    )
    def test_a_bad_setting_is_one_line_with_its_own_key(
        self,
        given: str,
        line: str,
        hydra_sweep_runner: TSweepRunner,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        with pytest.raises(SystemExit), self.sweep(hydra_sweep_runner, tmp_path, None, "bar=1,2", given):
            pass
        assert capsys.readouterr().err.startswith(f"error: {line}")
        assert not any(tmp_path.rglob("optuna.log"))
