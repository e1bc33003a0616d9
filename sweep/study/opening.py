"""Begin a study in its storage, or open it again. Files and trials of another study are refused and left alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import check_distribution_compatibility
from optuna.trial import FrozenTrial

from sweep.search.auto_bounds import STARTS, covers, stored_starts
from sweep.search.composer import Starts
from sweep.search.settings import StudySettings
from sweep.search.space import Space
from sweep.storage.lock import StudyLock
from sweep.storage.storage import open_storage
from sweep.storage.url import recorded_url, storage_place
from sweep.study.identity import IDENTITY, differences, identity
from sweep.study.reading import refuse_lost_trials
from sweep.tracking.folders import StudyFolder
from sweep.tracking.journal import first
from sweep.utils.errors import ConfigError, Damaged
from sweep.utils.ownership import refuse_existing

_UID = "uid"  # a user attribute of the study, like IDENTITY
_KEY = "hydra.sweeper.study_name"


@dataclass
class StudyEntry:
    """A study's place in its storage and on disk. `starts` holds the suggestions of range tests (bounds=auto)."""

    name: str
    folder: StudyFolder
    settings: StudySettings
    space: Space
    starts: Starts | None = None

    def stored_starts(self) -> Starts | None:
        """Return what range tests suggested when the study was started; None if they still have to be made.

        Raises:
            ConfigError: the study was started without range tests, or its tests were of other options.
        """
        starts = stored_starts(self.settings, self.name, self.folder, _UID)
        if starts is None or self.settings.accept_changes:  # old tests do not hold for a changed configuration
            return None
        if not covers(starts, self.space):
            raise ConfigError(
                "bounds",
                f"the tests of study '{self.name}' were of other options; choose another {_KEY}, or "
                "test these with hydra.sweeper.accept_changes=true",
            )
        return starts

    def open(self, uid: str) -> tuple[optuna.Study, str]:
        """Begin the study, or open it again, under its lock.

        Args:
            uid: the id of the study's record, if the study is new.

        Returns:
            The study, and the id of its record: the id that it was started with.

        Raises:
            ConfigError: a study of that name exists and is another one, or the storage cannot be used.
            Damaged: the storage lacks trials that the folder has.
        """
        settings, facts = self.settings, identity(self.settings, self.space)
        storage = open_storage(settings.storage, self.folder)
        with StudyLock(settings.storage, self.folder):
            names = [s.study_name for s in storage.get_all_studies()]
            if self.name not in names:
                self._refuse_trials_of_another(None)
                study = optuna.create_study(storage=storage, study_name=self.name, directions=settings.direction)
            else:
                study = optuna.load_study(study_name=self.name, storage=storage)
            if _UID not in study.user_attrs:  # it is new, or its command was killed right after creating it
                if study.get_trials(deepcopy=False):
                    raise ConfigError(_KEY, f"'{self.name}' was not begun here; choose another")
                self._refuse_trials_of_another(None)
                self._store_facts(study, facts)
                study.set_user_attr(_UID, uid)
            self._refuse_another(study, facts)
            self._refuse_trials_of_another(study.user_attrs[_UID])
            refuse_lost_trials(study, self.folder, settings.storage)
            if study.user_attrs[IDENTITY] != facts:
                self._store_facts(study, facts)
            return study, study.user_attrs[_UID]

    def refuse_foreign_files(self) -> None:
        """Raise ConfigError if the folder does not belong to a study and has files that would be overwritten."""
        folder, is_remote = self.folder, self.settings.storage is not None
        is_study = first(folder.run.journal, "start") is not None
        is_study = is_study or (folder.storage.is_file() and folder.storage.stat().st_size > 0)
        if is_remote:  # the storage already has the study, so its workers may have created these first
            is_study = is_study or folder.trials.is_dir() or folder.workers.is_dir()
        if not is_study:
            refuse_existing(_KEY, folder.path, folder.written)

    def _store_facts(self, study: optuna.Study, facts: dict[str, str]) -> None:
        if self.starts is not None:
            study.set_user_attr(STARTS, self.starts)
        study.set_user_attr(IDENTITY, facts)

    def _refuse_trials_of_another(self, uid: str | None) -> None:
        """Refuse a folder that has trials of a study other than the one whose record has the id `uid`.

        Args:
            uid: None for a study that is about to begin.

        Raises:
            ConfigError: the trials belong to a study in another storage, or to one that was deleted.
            Damaged: the trials are this study's own, but its storage no longer has the study.
        """
        for run in self.folder.runs():
            parent = (first(run.journal, "start") or {}).get("parent")
            if parent is None:  # a run outside any study; earlier versions allowed one here
                continue
            start, storage = first(self.folder.run.journal, "start"), recorded_url(self.settings.storage)
            if uid is None and start is not None and start.get("storage") == storage:
                remedy = "restore it from a copy, or choose another name for the study"
                raise Damaged(_KEY, storage_place(self.settings.storage, self.folder), "the study is not in it", remedy)
            if parent["uid"] != uid:
                raise ConfigError(
                    _KEY,
                    f"'{self.folder.path}' has trials of another study, whose storage is gone or another one; "
                    "choose another name, or remove the folder",
                )
            return  # it is enough to check one

    def _refuse_another(self, study: optuna.Study, facts: dict[str, str]) -> None:
        """Raise ConfigError if the study was started with other facts, unless the changes are accepted and possible."""
        directions = [d.name.lower() for d in study.directions]
        if directions != self.settings.direction:
            key = "direction" if len(directions) == len(self.settings.direction) else "objective"
            raise ConfigError(
                f"hydra.sweeper.{key}",
                f"study '{self.name}' was started to {' and '.join(directions)}; set another {_KEY}",
            )
        changed = differences(study.user_attrs[IDENTITY], facts)
        if not changed:
            return
        message = f"study '{self.name}' was started with {'; '.join(changed[:5])}{' ...' if changed[5:] else ''}"
        if fixed := _incompatible(study.get_trials(deepcopy=False), self.space.named_ranges()):
            message += f"; choose another name, as {fixed} cannot change within a study"
        elif self.settings.accept_changes:
            return
        else:
            message += "; choose another name, or continue with hydra.sweeper.accept_changes=true"
        raise ConfigError(_KEY, message)


def _incompatible(trials: Sequence[FrozenTrial], ranges: dict[str, Any]) -> str | None:
    """Return the first param whose new range Optuna does not accept within the same study; None if there is none."""
    for trial in trials:
        for name, distribution in trial.distributions.items():
            try:
                check_distribution_compatibility(distribution, ranges.get(name, distribution))
            except ValueError:
                return name
    return None
