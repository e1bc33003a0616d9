"""Writes the page of a study. If it is written into the study's folder, it is sent to MLflow as well."""

import os
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.tracking import journal
from sweep.tracking.folders import Busy, StudyFolder
from sweep.tracking.provenance import sync_command
from sweep.tracking.store import Store, output_dir_of, recorded_store
from sweep.utils.errors import ConfigError, DamagedJournal, one_line
from sweep.utils.passwords import without_password
from sweep.utils.paths import absolute, refuse_links_at

if TYPE_CHECKING:
    from sweep.tracking.upload_process import UploadProcess

_PATIENCE_S = 60.0  # for MLflow


def write_page(
    folder: StudyFolder,
    trials: Sequence[int] | None = None,
    page: Path | None = None,
    storage: str | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Path:
    """Write the page and its plots, and return the path of the page.

    Args:
        folder: the study's folder.
        trials: the numbers of the trials whose curves are shown; by default the best ones.
        page: the file to write. Its plots go into plots/ beside it. The default is report.html in the study's folder.
            Only that one is sent to MLflow, as an artifact.
        storage: the URL of the study's storage, if it has moved.
        say: called with one line about the page, one about the plots and one about MLflow.

    Raises:
        ConfigError: a trial or the storage does not exist, the page cannot be written, or a file is damaged.
        OSError: the study cannot be read.
    """
    from sweep.reporting.study_page import Report
    from sweep.storage.quiet import quiet_optuna
    from sweep.study.reading import read_study

    _check_record(folder)
    page = folder.report if page is None else absolute(page)
    with quiet_optuna():
        study = read_study(folder, storage)  # before any file is created, since the storage may be mistyped
    store, message = _store_of(folder) if page == folder.report else (None, "")
    with _upload_process(folder, store) as upload_process, quiet_optuna():
        report = Report(study, folder, trials)
        if page.is_dir():
            raise ConfigError("-o", f"'{page}' is a folder; name a file")
        _refuse_foreign(page, folder)
        try:
            plots = report.write(page)
        except OSError as error:
            raise ConfigError("-o", f"cannot write '{page}' ({one_line(error)}); name another file") from error
        say(f"Page:      {page}")
        if plots:
            say(f"Plots:     {page.parent / 'plots'}: {', '.join(plots)}")
        if upload_process is not None and store is not None:
            message = _send(folder, upload_process, store)
    if message:
        say(message)
    return page


def _check_record(folder: StudyFolder) -> None:
    """Raise DamagedJournal if the study's journal is damaged, or has lost its start or its end."""
    from sweep.tracking.stored_run import require_not_ended

    record = folder.run.journal
    journal.check(record)
    if record.exists() and journal.first(record, "start") is None:
        raise DamagedJournal(record, None, "it has no start", "run the study's command again, which writes it anew")
    if not folder.run.is_running() and journal.status(record) is None:
        require_not_ended(folder.run)


def _store_of(folder: StudyFolder) -> tuple[Store | None, str]:
    """Return the study's tracking store and an empty text, or None and the reason in one line."""
    try:
        output_dir = folder.path.parent.parent
        if output_dir_of(folder.run) not in (None, output_dir):
            raise ConfigError("output_dir", f"its record names another one than '{output_dir}'")
        refuse_links_at(output_dir)
        store = recorded_store(folder.run)
    except ConfigError as error:
        return None, f"Not in MLflow ({error})"
    return store, "Not in MLflow: the study's tracking is off" if store is None else ""


def _upload_process(folder: StudyFolder, store: Store | None) -> "closing[UploadProcess] | nullcontext[None]":
    """Return an upload process, which imports MLflow while the page is made; a null context if there is no store."""
    if store is None:
        return nullcontext()
    from sweep.tracking.upload_process import UploadProcess

    try:
        upload_process = UploadProcess(folder.path.parent.parent / "mirror.log")
    except OSError:  # the folder cannot be written; writing the page will report it
        return nullcontext()
    upload_process.add_run(folder.run, store)
    return closing(upload_process)


def _refuse_foreign(page: Path, folder: StudyFolder) -> None:
    """Raise ConfigError if the page or its plots would overwrite files that no report made."""
    from sweep.figures.page import is_page
    from sweep.reporting.study_page import PLOTS

    try:
        if page.is_file() and not is_page(page):
            raise ConfigError("-o", f"'{page}' exists and is not a report; name another file")
        new = page.with_name(page.name + ".tmp")  # what `write_atomic` writes first
        if page != folder.report and os.path.lexists(new):
            raise ConfigError("-o", f"'{new}' exists and would be overwritten; name another file")
        plots = [page.parent / folder.plots.name / name for name in PLOTS]
        taken = [str(plot) for plot in plots if plot.exists()]
        if taken and page != folder.report and not any(map(is_page, page.parent.glob("*.html"))):
            raise ConfigError(
                "-o", f"'{taken[0]}' is not part of a report and would be overwritten; choose another folder"
            )
    except OSError as error:
        raise ConfigError("-o", f"cannot read '{page}' ({one_line(error)}); name another file") from error


def _send(folder: StudyFolder, upload_process: "UploadProcess", store: Store) -> str:
    """Send the page and its plots to MLflow as artifacts of the study's run. Return the outcome in one line."""
    from sweep.tracking.run_recorder import add_artifacts

    try:
        add_artifacts(folder.run, [folder.report.name, folder.plots.name])
    except Busy:
        return "MLflow gets the page when the command that runs the study ends"
    except OSError as error:
        return f"Not in MLflow: {one_line(error)}"
    problem = upload_process.finish(folder.run, _PATIENCE_S)
    where = without_password(store.uri or "")
    if problem is not None:
        return f"Not yet in MLflow ({problem}); later:  {sync_command(folder.path.parent.parent, store)}"
    return f"In MLflow: an artifact of the run {folder.path.name} in {where}"
