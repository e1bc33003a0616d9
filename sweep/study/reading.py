"""Open a study only for reading, perhaps one that somebody else made."""

import copy
import json

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from sweep.config.overrides import word
from sweep.storage.optuna_internals import add_trial
from sweep.storage.storage import open_storage, open_to_read
from sweep.storage.url import one_line_errors, storage_file, storage_place
from sweep.study.identity import IDENTITY
from sweep.study.results import STATES
from sweep.tracking.folders import StudyFolder
from sweep.tracking.journal import first, records
from sweep.utils.errors import ConfigError, Damaged
from sweep.utils.passwords import without_password
from sweep.utils.paths import is_inside

KEY = "storage"
_WITH_VALUE = [STATES[state] for state in (TrialState.COMPLETE, TrialState.PRUNED)]


class NoStudy(ConfigError):
    """There is no storage at the place that is named or recorded, or it has no such study."""


def read_study(folder: StudyFolder, storage: str | None) -> optuna.Study:
    """Open the study of a folder for reading. Nothing is written, and no storage is created.

    Args:
        folder: the study's folder. It may come from somebody else, so a storage that its record names is used only if
            it is a file below the `output_dir` that contains the study.
        storage: the storage that the user names; None uses the recorded one.

    Raises:
        NoStudy: the storage is not there, or has no such study.
        ConfigError: the storage cannot be read, or is recorded but not trusted.
        Damaged: the storage lacks trials that the folder has, or was changed.
    """
    url = trusted_storage(folder, storage) or str(folder.storage)
    try:
        return _open(folder, url)
    except NoStudy:
        raise
    except Damaged as error:
        raise Damaged(KEY, error.path, error.reason, error.remedy, error.line) from error
    except ConfigError as error:
        raise ConfigError(KEY, error.problem) from error


def open_study(folder: StudyFolder, storage: str | None) -> tuple[optuna.Study, str | None]:
    """Open the study of a folder for writing, if it exists.

    Args:
        folder: as for `read_study`.
        storage: as for `read_study`.

    Returns:
        The study, and its storage; None for the file in its folder.

    Raises:
        ConfigError, Damaged: as for `read_study`.
    """
    read_study(folder, storage)  # creates no storage
    url = trusted_storage(folder, storage)
    return optuna.load_study(study_name=folder.path.name, storage=open_storage(url, folder)), url


def trusted_storage(folder: StudyFolder, storage: str | None) -> str | None:
    """Return the storage of a study; None for the file in its folder.

    Args:
        folder: as for `read_study`.
        storage: as for `read_study`.

    Raises:
        ConfigError: the storage is recorded, but not trusted.
    """
    recorded = recorded_storage(folder)
    if storage is None and recorded is not None and not is_own_storage(recorded, folder):
        suffix = " with its password" if "***" in recorded else ""
        raise ConfigError(
            KEY, f"the study's record names {recorded}; if you trust that, give it{suffix}: --storage {word(recorded)}"
        )
    url = storage or recorded
    return None if url == str(folder.storage) else url


def recorded_storage(folder: StudyFolder) -> str | None:
    """Return the storage that the study's record names; None for the file in its folder."""
    recorded = (first(folder.run.journal, "start") or {}).get("storage")
    return None if recorded is None else str(recorded)


def is_own_storage(url: str, folder: StudyFolder) -> bool:
    """Return True if the storage is a file below the `output_dir` that contains the study."""
    try:
        with one_line_errors(url):
            file = storage_file(url)
    except ConfigError:
        return False
    return file is not None and is_inside(file, folder.path.parent.parent)


def refuse_lost_trials(
    study: optuna.Study, folder: StudyFolder, url: str | None, key: str = "hydra.sweeper.study_name"
) -> None:
    """Raise Damaged if the storage lacks trials that began or ended according to the study's folder and record."""
    begun = [int(name) for run in folder.runs() if (name := run.path.relative_to(folder.trials).parts[0]).isdigit()]
    trials = study.get_trials(deepcopy=False)  # read after the folders, so that it has every trial that has a folder
    reason = None
    if max(begun, default=-1) >= len(trials):
        reason = f"it has {len(trials)} trials, and trial {max(begun)} has begun"
    n_ended = sum(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials)
    if (n_recorded := _n_recorded(folder)) > n_ended:
        reason = f"{n_ended} trials have a value, and there were {n_recorded}"
    if reason is not None:
        raise Damaged(
            key, storage_place(url, folder), reason, "restore it from a copy, or choose another name for the study"
        )


def _n_recorded(folder: StudyFolder) -> int:
    """Return the largest number of trials with a value that the study's record has at the end of a command."""
    ends = records(folder.run.journal, "end", damage=[])
    counted = [end["values"] for end in ends if isinstance(end.get("values"), dict)]
    return max(
        (int(sum(sum(values.get(f"trials/{word}", [])) for word in _WITH_VALUE)) for values in counted), default=0
    )


def _open(folder: StudyFolder, url: str) -> optuna.Study:
    """Load the folder's study from a storage. Raise ConfigError if there is none, Damaged if it lacks trials."""
    with one_line_errors(url):
        file = storage_file(url)
    if file is not None and not file.exists():
        raise NoStudy(KEY, f"there is no file '{file}'; give --storage, the one of the study")
    name, opened = folder.path.name, open_to_read(url)
    with one_line_errors(url):
        names = [known.study_name for known in opened.get_all_studies()]
        if name not in names:
            raise NoStudy(
                KEY, f"'{without_password(url)}' has no study '{name}'; it has: {', '.join(sorted(names)) or 'none'}"
            )
        study = optuna.load_study(study_name=name, storage=opened)
        refuse_lost_trials(study, folder, url, KEY)  # reads all trials, so that a broken storage shows here
        return study


def snapshot(study: optuna.Study) -> optuna.Study:
    """Return a copy in memory of the study as it is now, with its running trials. Workers do not change the copy."""
    trials = study.get_trials(deepcopy=False)
    copied = optuna.create_study(
        storage=InMemoryStorage(), study_name=study.study_name, directions=study.directions, sampler=study.sampler
    )
    for key, value in study.user_attrs.items():
        copied.set_user_attr(key, value)
    for trial in trials:
        add_trial(copied, copy.copy(trial))
    return copied


def objective_names(study: optuna.Study) -> list[str]:
    """Return the names of the objectives, such as val/loss; "value 0" and so on if the study has not recorded them."""
    recorded_names = study.user_attrs.get(IDENTITY, {}).get("hydra.sweeper.objective")
    return json.loads(recorded_names) if recorded_names else [f"value {i}" for i in range(len(study.directions))]


def has_value(trial: FrozenTrial) -> bool:
    """Return True if the trial is complete or pruned and has a value."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and bool(trial.values)
