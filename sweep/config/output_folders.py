"""The resolvers behind `hydra.run.dir` and similar keys, which decide where the outputs of a command go."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from sweep.config.best_config import best_choices
from sweep.config.outputs import folder_name, require_run, require_study
from sweep.config.schema import checked_output_dir, register_schema
from sweep.utils.paths import absolute, refuse_links_in


def register() -> None:
    """Register with Hydra everything that conf/ uses: the schema, and the resolvers of folders and numbers."""
    register_schema()
    OmegaConf.register_resolver("sweep.run_dir", _run_dir, replace=True)
    OmegaConf.register_resolver("sweep.multirun_dir", _multirun_dir, replace=True)
    OmegaConf.register_resolver("sweep.lr_range_dir", _lr_range_dir, replace=True)


def _run_dir(output_dir: str, resume: str | None, from_study: str | None, stamp: str) -> str:
    """Return Hydra's folder for this run. A resumed run keeps its folder; Hydra's new files go below it.

    Hydra creates the folder before the config is validated, so this function checks what the path depends on.

    Raises:
        ConfigError: there is no run to resume or no study to read, or `output_dir` cannot be used.
        Damaged: the run to resume has lost its config.
    """
    if from_study is not None:
        require_study(absolute(checked_output_dir(output_dir)), from_study)
    if resume is None:
        return f"{checked_output_dir(output_dir)}/runs/{_named(stamp, output_dir, from_study)}"
    folder = absolute(resume)
    require_run(folder)
    refuse_links_in(folder, "resume")
    return f"{folder}/resumed/{_named(stamp, output_dir, None)}"


def _named(stamp: str, output_dir: str, from_study: str | None) -> str:
    """Return a folder name such as 2026-11-24_01-25-51-799835_adam-cyclic-mlp.

    With `from_study`, the options are those of the study's best configuration. With a training function that needs
    none of these groups, the name ends in `function`.
    """
    choices = HydraConfig.get().runtime.choices
    if from_study is not None:
        choices = best_choices(output_dir, from_study, HydraConfig.get())
    options = [option for group in ("optimizer", "scheduler", "model") if (option := choices.get(group)) is not None]
    return folder_name(f"{stamp}_{'-'.join(options) or 'function'}")


def _multirun_dir(output_dir: str, name: str) -> str:
    return f"{checked_output_dir(output_dir)}/multirun/{name}"


def _lr_range_dir(output_dir: str, name: str) -> str:
    return f"{checked_output_dir(output_dir)}/lr_range/{folder_name(name)}"
