"""What you do with studies that exist: list, stop, retry, remove, move. The command sweep.studies calls it.

None of them needs Hydra. A study is named by its name in `output_dir`, by the path of its folder, or by a result.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.storage.quiet import quiet_optuna
from sweep.study import control
from sweep.study.reading import read_study
from sweep.study.removal import Removal, removal_of
from sweep.study.status import StudyStatus, status_of
from sweep.study.study_result import StudyResult
from sweep.tracking.folders import StudyFolder, study_at
from sweep.tracking.moving import Moved, move_output_dir
from sweep.utils.errors import SweepError
from sweep.utils.paths import absolute, refuse_links_in

if TYPE_CHECKING:
    import pandas as pd

Named = str | Path | StudyResult  # a study


def list_studies(output_dir: str | Path = "outputs") -> "pd.DataFrame":
    """Return a table of pandas with a row for each study in an output folder, by name.

    >>> import sweep
    >>> base = ["experiment=debug", "tracking=off"]
    >>> _ = sweep.run_study(base, n_trials=3, pruner="none", study_name="first")
    >>> studies = sweep.list_studies()
    >>> studies[studies.name == "first"][["state", "complete"]].values.tolist()
    [['complete', 3]]

    Returns:
        The columns `name`, `state` (running, complete, open), `n_trials`, the number of trials by state, `best` (the
        value of the best trial), `began`, `folder`, and `problem` (why a study cannot be read).
    """
    import pandas as pd

    rows = [_row(folder, found) for folder, found in studies_in(output_dir)]
    columns = ["name", "state", "n_trials", *_WORDS, "best", "began", "folder", "problem"]
    table = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(["n_trials", *_WORDS], "Int64"))
    began = pd.to_datetime(table.began, unit="s", utc=True).dt.round("ms")
    return table.assign(best=table.best.astype("float64"), began=began)


_WORDS = ("complete", "pruned", "failed", "running", "waiting", "stopped")


def studies_in(output_dir: str | Path) -> Iterator[tuple[StudyFolder, StudyStatus | SweepError]]:
    """Yield each study in an output folder with how it stands, or with the error that keeps it from being read."""
    for path in sorted((absolute(output_dir) / "studies").glob("*/journal.jsonl")):
        folder = StudyFolder(path.parent)
        try:
            refuse_links_in(folder.path, "study")
            with quiet_optuna():
                yield folder, status_of(read_study(folder, None), folder)
        except SweepError as error:
            yield folder, error


def _row(folder: StudyFolder, found: StudyStatus | SweepError) -> dict[str, Any]:
    row: dict[str, Any] = {"name": folder.path.name, "folder": str(folder.path)}
    if isinstance(found, SweepError):
        return {**row, "problem": str(found)}
    is_single = len(found.objectives) == 1 and found.best
    best = found.best[0].values[0] if is_single else None
    return {**row, "state": found.state, "n_trials": found.n_trials, **found.n_by_state, "best": best} | {
        "began": found.began
    }


def retry_trials(
    study: Named,
    trials: Sequence[int] | None = None,
    *,
    output_dir: str | Path = "outputs",
    storage: str | None = None,
) -> list[int]:
    """Queue failed trials again, with the same parameters. A command that runs the study, or the next one, trains them.

    >>> import sweep
    >>> base = ["experiment=debug", "tracking=off"]
    >>> study = sweep.run_study(base, n_trials=3, pruner="none", study_name="first")
    >>> sweep.retry_trials(study)  # none has failed
    []

    Args:
        study: the study.
        trials: the numbers of the trials: those that failed, or that were stopped alone, which then continue. By
            default all that failed.
        output_dir: the folder that results go to. It is used only if you give a name.
        storage: as for `load_study`.

    Returns:
        The numbers of the trials that are queued again.

    Raises:
        ConfigError: there is no such study or trial, or a trial neither failed nor was stopped.
    """
    with quiet_optuna():
        return control.retry(_folder(study, output_dir), trials, storage)


def stop_study(
    study: Named,
    trial: int | None = None,
    *,
    wait: bool = True,
    output_dir: str | Path = "outputs",
    storage: str | None = None,
) -> None:
    """Stop a study that another process runs, or one of its trials. What stops saves a checkpoint at its epoch's end.

    All commands that run the study end, as after Ctrl-C; the same command resumes it. A trial that is stopped alone
    frees its worker for another one. It continues when the study's command is run again, or after `retry_trials`.

    Args:
        study: the study.
        trial: the number of a trial that is being trained; None stops the study.
        wait: False returns at once, and the trials stop later.
        output_dir: the folder that results go to. It is used only if you give a name.
        storage: as for `load_study`.

    Raises:
        ConfigError: there is no such study or trial, or nothing of it is running.
    """
    with quiet_optuna():
        control.stop(_folder(study, output_dir), trial, wait, storage)


def plan_removal(
    study: Named,
    *,
    keep_runs: bool = False,
    output_dir: str | Path = "outputs",
    storage: str | None = None,
    artifacts: str | None = None,
) -> Removal:
    """Return what `remove_study` would remove, as its attributes `files`, `kept` and `runs`. Nothing is changed.

    See `remove_study` for the arguments and errors.
    """
    with quiet_optuna():
        return removal_of(_folder(study, output_dir), storage, keep_runs, artifacts)


def remove_study(
    study: Named,
    *,
    keep_runs: bool = False,
    output_dir: str | Path = "outputs",
    storage: str | None = None,
    artifacts: str | None = None,
) -> Removal:
    """Remove a study: its files, its trials in the storage and its runs in MLflow. This does not ask.

    Only what the study made is removed. Other files in its folder stay, and so does a run whose model is registered.
    Runs are in MLflow's trash afterwards; the files that were sent with them are gone.

    >>> import sweep
    >>> study = sweep.run_study(["experiment=debug", "tracking=off"], n_trials=1, study_name="vain")
    >>> sweep.remove_study("vain").kept
    []
    >>> study.folder.exists()
    False

    Args:
        study: the study.
        keep_runs: True leaves its runs in MLflow alone. You need it if their store is gone.
        output_dir: the folder that results go to. It is used only if you give a name.
        storage: as for `load_study`.
        artifacts: where copies of its runs are, as `hydra.sweeper.artifacts` said. They are removed, too.

    Returns:
        What was removed and what stays.

    Raises:
        ConfigError: there is no such study, it is running, or its storage or its tracking store cannot be reached. If
            something was removed before that, the same call removes the rest.
    """
    removal = plan_removal(study, keep_runs=keep_runs, output_dir=output_dir, storage=storage, artifacts=artifacts)
    with quiet_optuna():
        removal.remove()
    return removal


def move_outputs(output_dir: str | Path, new: str | Path, *, tracking_uri: str | None = None) -> Moved:
    """Move an output folder, and change the artifact locations in MLflow that name it.

    If this is interrupted, the same call completes it. Until then, all files are at one of the two places.

    Args:
        output_dir: the folder.
        new: its new path, where nothing may exist.
        tracking_uri: a database of MLflow's besides the one in the folder that keeps artifacts there; by default
            MLFLOW_TRACKING_URI.

    Returns:
        Its new path, how many locations were changed, and the storages of studies that you have to name from now on.

    Raises:
        ConfigError: there is no such folder, the new path is taken, something in it is being trained, or a database
            cannot be changed.
    """
    return move_output_dir(output_dir, new, tracking_uri)


def _folder(study: Named, output_dir: str | Path) -> StudyFolder:
    return study_at(study.folder if isinstance(study, StudyResult) else study, output_dir)
