"""`hydra.sweeper.resources` in the words of each launcher."""

from omegaconf import DictConfig, OmegaConf

from sweep.config.overrides import setting
from sweep.execution.place import visible_devices
from sweep.search.resources import KEY, Resources
from sweep.utils.errors import ConfigError


def launcher_overrides(launcher: DictConfig, resources: Resources) -> list[str]:
    """Return overrides by which a launcher of Slurm or Ray gives each worker its resources. Others need none.

    Args:
        launcher: the launcher's node.
        resources: what each worker needs.

    Raises:
        ConfigError: the launcher's own keys ask for something else, or it cannot give that.
    """
    target = str(launcher._target_).lower()
    if "slurm" in target:
        asked = _of_slurm(launcher, resources)
    elif "ray_launcher" in target:
        asked = {"ray.remote.num_cpus": resources.cpus, "ray.remote.num_gpus": resources.gpus}
    else:
        return []
    return [_override(launcher, key, value) for key, value in asked.items() if value is not None]


def check_machine(resources: Resources, n_workers: int) -> None:
    """Raise ConfigError if this machine lacks the GPUs for workers that a launcher starts here."""
    needed = resources.n_gpus(n_workers)
    if needed and (n := len(visible_devices())) < needed:
        workers = "a worker" if n_workers == 1 else f"{n_workers} workers"
        problem = f"{resources.gpus:g} for {workers} needs {needed} GPUs, and this machine has {n}"
        raise ConfigError(f"{KEY}.gpus", f"{problem}; lower it, or hydra.sweeper.n_jobs")


def _of_slurm(launcher: DictConfig, resources: Resources) -> dict[str, float | None]:
    n_tasks = launcher.get("tasks_per_node") or 1
    if resources.n_on_a_gpu > 1 and n_tasks == 1:
        problem = f"{resources.gpus:g} shares a GPU, and Slurm gives each job whole ones"
        raise ConfigError(f"{KEY}.gpus", f"{problem}; add hydra.launcher.tasks_per_node={resources.n_on_a_gpu}")
    if launcher.get("gpus_per_task") is not None and resources.gpus is not None:
        raise ConfigError(f"{KEY}.gpus", "asks for what hydra.launcher.gpus_per_task does; leave one of them out")
    return {"cpus_per_task": resources.cpus, "gpus_per_node": resources.n_gpus(n_tasks) or None}


def _override(launcher: DictConfig, key: str, value: float) -> str:
    """Return the override of a key of the launcher. Raise ConfigError if it has another value."""
    before = OmegaConf.select(launcher, key)
    if before is not None and before != value:
        problem = f"asks for hydra.launcher.{key}={value:g}, and that is {before}; leave one of them out"
        raise ConfigError(f"{KEY}.{'cpus' if 'cpus' in key else 'gpus'}", problem)
    return f"++{setting(f'hydra.launcher.{key}', value)}"
