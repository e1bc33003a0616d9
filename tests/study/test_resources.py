"""hydra.sweeper.resources: what each worker gets of its machine, in the words of each launcher."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf
from omegaconf import DictConfig, OmegaConf

from sweep import Trial, run_study
from sweep.search.resources import Resources
from sweep.study.resources import check_machine, launcher_overrides
from sweep.utils.errors import ConfigError

RAY = {"_target_": "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher", "ray": {"init": {}, "remote": {}}}


def slurm(**keys: Any) -> DictConfig:
    return OmegaConf.structured(SlurmQueueConf(**keys))


@pytest.mark.parametrize(
    ("launcher", "resources", "expected"),
    [
        (slurm(), {"cpus": 4, "gpus": 1}, ["cpus_per_task=4", "gpus_per_node=1"]),
        (slurm(tasks_per_node=4), {"gpus": 2}, ["gpus_per_node=8"]),
        (slurm(tasks_per_node=6), {"gpus": 0.25}, ["gpus_per_node=2"]),
        (slurm(cpus_per_task=4), {"cpus": 4, "gpus": 0}, ["cpus_per_task=4"]),
        (
            OmegaConf.structured(LocalQueueConf()),
            {"cpus": 4, "gpus": 1},
            [],
        ),
        (OmegaConf.create(RAY), {"cpus": 4, "gpus": 0.5}, ["ray.remote.num_cpus=4", "ray.remote.num_gpus=0.5"]),
        (OmegaConf.create(RAY), None, []),
    ],
)
def test_a_launcher_is_asked_in_its_own_words(launcher: DictConfig, resources: Any, expected: list[str]) -> None:
    assert launcher_overrides(launcher, Resources.of(resources)) == [f"++hydra.launcher.{o}" for o in expected]


BAD: dict[str, tuple[Any, str]] = {
    "unknown": ({"gpu": 1}, "hydra.sweeper.resources.gpu: is unknown; choose cpus or gpus"),
    "negative": ({"gpus": -1}, "hydra.sweeper.resources.gpus: must be a whole number, or a fraction"),
    "no fraction of several": ({"gpus": 1.5}, "hydra.sweeper.resources.gpus: must be a whole number, or a fraction"),
    "no number": ({"gpus": "all"}, "hydra.sweeper.resources.gpus: must be a whole number, or a fraction"),
    "not finite": ({"gpus": float("nan")}, "hydra.sweeper.resources.gpus: must be a whole number, or a fraction"),
    "no cores": ({"cpus": 0}, "hydra.sweeper.resources.cpus: must be a whole number >= 1, got 0"),
    "half a core": ({"cpus": 0.5}, "hydra.sweeper.resources.cpus: must be a whole number >= 1, got 0.5"),
    "no mapping": (4, "hydra.sweeper.resources: must be such as {cpus: 4, gpus: 1}, got 4"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_one_line_with_its_key(case: str) -> None:
    node, line = BAD[case]
    with pytest.raises(ConfigError) as error:
        Resources.of(node)
    assert str(error.value).startswith(line)


def test_what_the_launcher_or_the_machine_cannot_give_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"gpus: 0.25 shares a GPU, .*; add hydra.launcher.tasks_per_node=4$"):
        launcher_overrides(slurm(), Resources(gpus=0.25))
    with pytest.raises(ConfigError, match=r"cpus: asks for hydra.launcher.cpus_per_task=4, and that is 2; leave one"):
        launcher_overrides(slurm(cpus_per_task=2), Resources(cpus=4))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    check_machine(Resources(gpus=1), 2)
    check_machine(Resources(gpus=0.5), 4)
    with pytest.raises(ConfigError, match=r"gpus: 1 for 3 workers needs 3 GPUs, and this machine has 2; lower it, or"):
        check_machine(Resources(gpus=1), 3)


@pytest.mark.process
def test_a_worker_has_so_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def train(cfg: Any, trial: Trial) -> dict[str, float]:
        return {"test/n": float(torch.get_num_threads())}

    given: dict[str, Any] = {"train": train, "objective": "test/n", "direction": "maximize", "n_trials": 1}
    n = torch.get_num_threads()
    study = run_study(["tracking=off"], {"seed": [1, 2]}, study_name="s", resources={"cpus": 3}, **given)
    assert study.value == 3
    assert torch.get_num_threads() == n
    with pytest.raises(ConfigError, match=r"^hydra.sweeper.resources.gpus: 1 for a worker needs 1 GPUs, and this "):
        run_study(["tracking=off"], {"seed": [1, 2]}, study_name="t", resources={"gpus": 1}, **given)
