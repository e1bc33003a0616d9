"""Writes the record of one run: its start, curves, checkpoints and end, and artifacts that are added later."""

import os
import shutil
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sweep.config.nodes import Tracking
from sweep.config.schema import APPLICATION, Config
from sweep.tracking import journal as journals
from sweep.tracking.chunks import MODEL, REGISTER_TAG, artifact_names, forget_offsets, most_sent
from sweep.tracking.description import group_choices, hyperparameters, run_name
from sweep.tracking.folders import Busy, RunFolder
from sweep.tracking.journal import Journal
from sweep.tracking.provenance import provenance_tags, uncommitted_diff
from sweep.utils.checked_file import write_checked
from sweep.utils.errors import DISK_FULL, BeingTrained, ConfigError, Diverged, Pruned
from sweep.utils.files import to_yaml, write_atomic
from sweep.utils.passwords import without_password, without_passwords
from sweep.utils.paths import with_absolute_path
from sweep.utils.terminal import safe


@dataclass(frozen=True, kw_only=True)
class Membership:
    """A trial's place in a study.

    Attributes:
        study: the study's name.
        folder: the study's folder.
        parent: the uid of the study's own journal, which lies in `folder`.
        number: the trial's number.
        replicate: the run among those of its trial, counted from 0; None if the trial has only one.
        params: the sampled values, by config key.
        is_restarted: True if the trial was trained before, by a worker that may have left a run in MLflow.
    """

    study: str
    folder: Path
    parent: str
    number: int
    replicate: int | None
    params: Mapping[str, Any] = field(default_factory=dict)
    is_restarted: bool = False

    def tags(self) -> dict[str, str]:
        tags = {"study": self.study, "trial": str(self.number)}
        return tags if self.replicate is None else {**tags, "replicate": str(self.replicate)}


class RunRecorder:
    """Writes the record of one attempt at a trial into its folder, from `start` to `end`."""

    def __init__(self, run: RunFolder, member: Membership | None = None) -> None:
        """Open the journal of a run.

        Args:
            run: the folder of the run.
            member: the trial's place in a study; None outside a study.

        Raises:
            DamagedJournal: the journal has a damaged line.
            OSError: the journal cannot be opened.
        """
        self._run, self._member = run, member
        self._tracking = Tracking()
        self._of_model: list[str] = []  # the names of the model's files that were logged
        is_shorter = journals.complete_size(run.journal) < most_sent(run)
        self._journal = Journal(run.journal)
        if is_shorter:  # only its end was lost; if epochs were missing, the checkpoint would have been refused
            forget_offsets(run)

    def start(
        self,
        config: Config,
        *,
        output_dir: Path,
        store: str | None,
        dataset: Mapping[str, Any] | None = None,
        device: str | None = None,
    ) -> None:
        """Append a `start` event to the journal; for a new run, write the config and the overrides first.

        A resumed run keeps its `uid`.

        Args:
            config: the config of the run.
            output_dir: the folder that all results go to. The journal stores it relative to the run's folder.
            store: the tracking store, as `recorded_uri` returns it.
            dataset: the data set, as `description.dataset` returns it; None if the trial was refused before loading it.
            device: the kind of device that the trial trains on.

        Raises:
            ConfigError: the data of a resumed run have changed.
        """
        run, member, self._tracking = self._run, self._member, config.tracking
        earlier = journals.first(run.journal, "start")
        before = None if earlier is None else earlier.get("dataset")
        if before is not None and dataset is not None and before["digest"] != dataset["digest"]:
            raise ConfigError("resume", f"the data have changed since '{run.path}' began; start a new run")
        if earlier is not None:
            self._of_model = _files_of_model(run)  # logged by an earlier process
        else:
            config.data = config.data and with_absolute_path(config.data)  # to resume from any directory
            write_checked(run.overrides, to_yaml(config.overrides or []))
            write_checked(run.config, stored_text(config))  # from here on the run can be resumed
            if member is None and (diff := uncommitted_diff()):
                write_atomic(run.diff, diff)
        script = str(config.trainer.call) if config.is_application else None
        tags = {**provenance_tags(config.overrides, script), **group_choices(config)}
        parent = None
        if member is not None:
            tags |= member.tags()
            parent = {"uid": member.parent, "name": member.study, "folder": os.path.relpath(member.folder, run.path)}
        self._journal.event(
            "start",
            uid=uuid.uuid4().hex if earlier is None else earlier["uid"],
            name=run_name(config) if member is None else f"t{member.number}-{run_name(config)}",
            experiment=config.experiment_name,
            output_dir=os.path.relpath(output_dir, run.path),  # relative, so that the tree may be moved
            store=store,
            params=hyperparameters(config),
            tags=tags if device is None else {**tags, "device": device},
            parent=parent,
            direction=config.monitor_direction,
            **({} if dataset is None else {"dataset": dataset}),
            **({"is_shared": True} if config.tracking.share_run else {}),
            **({"is_restarted": True} if earlier is None and member is not None and member.is_restarted else {}),
        )

    def log(self, steps: Sequence[int], columns: Mapping[str, Sequence[float]]) -> None:
        """Append one value of each metric for each step. Steps that are already in the journal are skipped."""
        self._journal.metrics(steps, columns)

    def save(self, state: dict[str, Any]) -> None:
        """Sync the journal and write a checkpoint. Raises OSError if the disk is full."""
        from sweep.training import checkpoint

        self._journal.sync()  # a checkpoint must not contain epochs that the journal lacks
        checkpoint.save(self._run.checkpoint, state)

    def add_artifact(self, path: Path) -> None:
        """Keep a file in the run's folder, for `end` to list.

        Args:
            path: the file. A file of the model (`RunFolder.of_model`) and one in `artifacts/` stay where they are. Any
                other is copied to `artifacts/`, where it replaces one of the same name.

        Raises:
            OSError: the file cannot be copied.
        """
        name = kept_artifact(self._run, path)
        if name not in (self._run.artifacts.name, *self._of_model):
            self._of_model.append(name)

    def end(self, error: BaseException | None, values: Mapping[str, float] | None = None) -> None:
        """Write how the attempt ended.

        An interrupted run gets MLflow's status KILLED and may be resumed. In a study, the tag `state` holds Optuna's
        state, and a trial that diverged counts as pruned, so that the sampler learns from it.

        Args:
            error: the error that ended the trial early; None if it finished.
            values: the final values, by metric name.
        """
        run, member = self._run, self._member
        status, state, tags = "FINISHED", "COMPLETE", {}
        no_room = isinstance(error, OSError) and error.errno in DISK_FULL
        if isinstance(error, KeyboardInterrupt) or (no_room and member is not None):  # the study will resume it
            self._journal.event("end", status="KILLED", steps=[], values={}, tags={}, artifacts=[])
            return
        if isinstance(error, Pruned):
            state, tags = "PRUNED", {"pruned.epoch": str(error.epoch)}
        elif error is not None:
            status, state, tags = "FAILED", "FAIL", {"error": without_passwords(f"{type(error).__name__}: {error}")}
            if isinstance(error, Diverged):
                tags |= {"diverged": "true", "diverged.step": str(error.step)}
                tags |= {} if error.lr is None else {"diverged.lr": str(error.lr)}
                if member is not None:
                    status, state = "FINISHED", "PRUNED"
            else:
                write_atomic(run.error, safe("".join(traceback.format_exception(error))))
        if member is not None:
            tags["state"] = state
        columns = {name: [value] for name, value in (values or {}).items()}
        artifacts = [run.config.name, run.overrides.name, run.error.name]
        if member is None:  # in a study, these files stay on the disk only
            artifacts += [run.curves.name, run.diff.name]
        names, of_model = _model_artifacts(run, self._of_model, self._tracking, is_complete=error is None)
        artifacts += names
        tags |= of_model
        if run.artifacts.is_dir():
            artifacts.append(run.artifacts.name)
        self._journal.event(
            "end",
            status=status,
            steps=[0] if columns else [],  # with step 0, MLflow draws bars
            values=columns,
            tags=tags,
            artifacts=artifacts,
        )

    def close(self) -> None:
        with suppress(OSError):
            self._journal.sync()
        self._journal.close()


def stored_text(config: Config) -> str:
    """Return the config as YAML for the run's folder, without the password of the tracking store."""
    tracking = replace(config.tracking, uri=config.tracking.uri and without_password(config.tracking.uri))
    plain = asdict(replace(config, tracking=tracking))
    own = plain.pop("own")
    if not config.is_application:
        del plain[APPLICATION]
    return to_yaml({**plain, **own})


@contextmanager
def locked(run: RunFolder) -> Iterator[None]:
    """Hold the lock of the run's folder, which is created if it is missing.

    Raises BeingTrained if another process holds the lock, or OSError if the folder cannot be written.
    """
    run.create()
    with ExitStack() as stack:
        try:
            stack.enter_context(run.lock())
        except Busy:
            raise BeingTrained("resume", f"'{run.path}' is being trained by another process") from None
        yield


def add_artifacts(run: RunFolder, names: Sequence[str]) -> None:
    """Append another `end` event that lists more artifacts, so that the next upload sends them.

    The event repeats the last end. If the run died without an end, the status is KILLED. Returns once the event has
    reached the disk.

    Args:
        run: the folder of the run.
        names: files and folders in it to add to those that are already listed.

    Raises:
        Busy: the run is still running.
        DamagedJournal: the journal has a damaged line.
        OSError: the journal cannot be written.
    """
    _repeat_end(run, lambda before: [*before, *names], {})


def add_model(run: RunFolder, tracking: Tracking) -> None:
    """Append another `end` event that lists what a run outside a study does: the model and its predictions.

    Do nothing if the last end lists them already. A model that is listed now is sent, and registered, once.

    Args:
        run: the folder of a run that has ended, with best.pt.
        tracking: says whether MLflow gets a model of its own, and its name in the registry.

    Raises:
        Busy, DamagedJournal, OSError: as for `add_artifacts`.
    """
    files, tags = _model_artifacts(run, _files_of_model(run), tracking)
    ended = journals.last_end(run.journal) or {}
    if not {*files} <= {*artifact_names(run, ended)} or not tags.items() <= ended.get("tags", {}).items():
        _repeat_end(run, lambda before: [*before, *files], tags)


def kept_artifact(run: RunFolder, path: Path) -> str:
    """Keep a file in the run's folder. See `RunRecorder.add_artifact`.

    Returns:
        The name of the file or folder in the run's folder that has it: one of `RunFolder.of_model`, or artifacts.
    """
    if path.absolute() in run.of_model:
        return path.name
    run.artifacts.mkdir(exist_ok=True)
    if path.resolve().parent != run.artifacts.resolve():
        shutil.copy2(path, run.artifacts)
    return run.artifacts.name


def _files_of_model(run: RunFolder) -> list[str]:
    """Return the names of the model's files that the run has."""
    return [file.name for file in run.of_model if file.exists()]


def _model_artifacts(
    run: RunFolder, logged: Sequence[str], tracking: Tracking, is_complete: bool = True
) -> tuple[list[str], dict[str, str]]:
    """Return what an `end` event says about a model: the artifacts to list, and tags.

    The MLflow model replaces model.yaml, from which it is built.

    Args:
        run: the folder of the run.
        logged: the names of the model's files that the run has.
        tracking: says whether MLflow gets a model of its own, and its name in the registry.
        is_complete: False lists no MLflow model.
    """
    names = [name for name in logged if name != run.signature.name]
    if not (tracking.model and is_complete and run.signature.name in logged):
        return names, {}
    return [*names, MODEL], {} if tracking.register is None else {REGISTER_TAG: tracking.register}


def remove_model(run: RunFolder) -> None:
    """Append another `end` event that does not list the model, so that no further store gets it. Files stay.

    Do nothing if the last end lists none. Raise as `add_artifacts` does.
    """
    if MODEL in artifact_names(run, journals.last_end(run.journal) or {}):
        _repeat_end(run, lambda before: [name for name in before if name != MODEL], {})


def _repeat_end(run: RunFolder, artifacts: Callable[[list[str]], list[str]], tags: Mapping[str, str]) -> None:
    """Append the last `end` event again, with other artifacts and further tags. See `add_artifacts`."""
    with run.lock(), Journal(run.journal) as journal:
        ended = journals.last_end(run.journal)
        before = [] if ended is None else artifact_names(run, ended)
        journal.event(
            "end",
            time=time.time_ns() // 1_000_000 if ended is None else ended["time"],
            status="KILLED" if ended is None else ended["status"],
            steps=[],
            values={},
            tags={**({} if ended is None else ended["tags"]), **tags},
            artifacts=list(dict.fromkeys(artifacts(before))),
        )
        journal.sync()
