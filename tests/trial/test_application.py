"""A job of another application: what its trial gets, what is recorded of its config, and what ends it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

import sweep
from sweep.config.metrics import REPORTED
from sweep.config.schema import validate
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.tracking.run_recorder import Membership
from sweep.trial.application import Application, ApplicationTraining
from sweep.trial.job_config import JobOverrides
from sweep.trial.recorded import RecordedTrial
from sweep.trial.training import train
from sweep.utils.errors import FunctionFailed, Pruned

CONFIG = """
seed: text
trainer: {epochs: lightning}
lr: 0.1
double: ${lr}
missing: ???
folder: ${hydra:runtime.output_dir}
token: ${oc.env:TOKEN}
parts: [1, "${lr}", {"deep": null}]
hydra:
  job: {chdir: true}
"""

pytestmark = pytest.mark.process  # the record asks git for its state

Make = Callable[..., Application]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes an application from its task function, in a folder of its own."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "main.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(str(tmp_path / "conf"), job_name="main"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("main", ["hydra/job_logging=none"], RunMode.MULTIRUN)

        def made(task: Callable[[DictConfig], Any], returns: tuple[str, ...] = ("objective",)) -> Application:
            return Application(
                name="main",
                script="main.py",
                context=HydraContext(loader, Callbacks()),
                master=master,
                task=task,
                settings={"output_dir": str(tmp_path / "outputs"), "tracking": {"mlflow": False}},
                returns=returns,
            )

        yield made


def plain(application: Application) -> DictConfig:
    config = OmegaConf.create(OmegaConf.to_container(application.master, resolve=False))
    assert isinstance(config, DictConfig)
    del config["hydra"]
    return application.trial_config(config)


def trained(application: Application, folder: Path, report: Any = None) -> dict[str, float]:
    """Trains the application as trial 7 of a study; returns its metrics."""
    run, config = RunFolder(folder), validate(plain(application))
    run.create()
    member = Membership(study="s", folder=folder.parent, parent="0", number=7, replicate=None, params={"lr": 0.5})
    trial = RecordedTrial(run, config, output_dir=folder.parent, store=None, member=member, report=report)
    return train(ApplicationTraining(config, application, JobOverrides(["lr=0.5"], ["missing=1"]), 7), trial)


def test_its_config_is_recorded_as_far_as_it_can_be_resolved(make: Make) -> None:
    config = validate(plain(make(lambda cfg: 0.0)))
    assert config.hydra_application == {
        "seed": "text",
        "trainer": {"epochs": "lightning"},
        "lr": 0.1,
        "double": 0.1,
        "missing": None,
        "folder": "${hydra:runtime.output_dir}",
        "token": "${oc.env:TOKEN}",
        "parts": [1, 0.1, {"deep": None}],
    }
    assert (config.seed, config.trainer.epochs) == (0, 60), "its own keys do not meet those of sweep"


def test_it_runs_as_a_job_of_hydras(make: Make, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def task(cfg: DictConfig) -> float:
        seen.update(
            cfg=cfg, folder=cfg.folder, cwd=Path.cwd(), num=HydraConfig.get().job.num, trial=sweep.current_trial()
        )
        sweep.current_trial().report(1, {"loss": cfg.lr, "other": 3})
        return 2.5

    metrics = trained(make(task), tmp_path / "trial")
    folder = tmp_path / "trial" / "job"
    assert (seen["cwd"], seen["folder"], seen["num"], seen["cfg"].double) == (folder, str(folder), 7, 0.5)
    assert metrics == {"objective": 2.5}
    curves = journal.curves(RunFolder(tmp_path / "trial").journal)
    assert {name: curve.values.tolist() for name, curve in curves.items()} == {
        "loss": [0.5],
        "other": [3.0],
        REPORTED: [0.5],
    }
    assert seen["trial"].folder == tmp_path / "trial"
    assert Path.cwd() == tmp_path
    assert not HydraConfig.initialized()


def test_it_is_pruned_even_if_it_catches_everything(make: Make, tmp_path: Path) -> None:
    def task(cfg: DictConfig) -> float:
        try:
            sweep.current_trial().report(1, {"loss": 1.0})
        except Exception:
            return 0.0
        return 1.0

    def report(epoch: int, metrics: Any) -> None:
        raise Pruned(epoch)

    with pytest.raises(Pruned):
        trained(make(task), tmp_path / "trial", report)


@pytest.mark.parametrize(
    ("returned", "returns", "metrics"),
    [
        (1, ("objective",), {"objective": 1.0}),
        ((1, 2.5), ("objective/0", "objective/1"), {"objective/0": 1.0, "objective/1": 2.5}),
        ({"val/loss": 1.5, "name": "x"}, (), {"val/loss": 1.5}),
        (3, (), {"objective": 3.0}),
    ],
)
def test_what_it_returns_is_recorded(
    returned: Any, returns: tuple[str, ...], metrics: dict[str, float], make: Make, tmp_path: Path
) -> None:
    assert trained(make(lambda cfg: returned, returns), tmp_path / "trial") == metrics


@pytest.mark.parametrize(
    ("returned", "message"),
    [(None, "returned None, not a number"), ((1, 2), r"returned \(1, 2\), not a number"), ("x", "returned 'x', not")],
)
def test_no_objective_is_refused(returned: Any, message: str, make: Make, tmp_path: Path) -> None:
    with pytest.raises(FunctionFailed, match=message):
        trained(make(lambda cfg: returned), tmp_path / "trial")


def test_outside_a_study_there_is_a_trial_all_the_same() -> None:
    trial = sweep.current_trial()
    trial.report(1, {"loss": 1.0})
    trial.save(1, {})
    assert (trial.restore(), trial.epoch, trial.number, trial.should_stop) == (None, 0, None, False)
