"""Writes the page of a study or a comparison. That of a study is sent to MLflow if it is in the study's folder."""

import os
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.comparison.facts import FACTS
from sweep.tracking import journal
from sweep.tracking.folders import Busy, RunFolder, StudyFolder, study_at
from sweep.tracking.provenance import sync_command
from sweep.tracking.store import Store, output_dir_of, recorded_store
from sweep.utils.errors import ConfigError, Damaged, DamagedJournal, one_line
from sweep.utils.passwords import without_password
from sweep.utils.paths import absolute, refuse_links_at, refuse_links_in

if TYPE_CHECKING:
    from sweep.tracking.upload_process import UploadProcess

_PATIENCE_S = 60.0  # for MLflow
_COMPARISONS, _REPORT = "comparisons", "report.html"


def write_page_of(
    named: str | Path,
    output_dir: str | Path,
    trials: Sequence[int] | None = None,
    page: Path | None = None,
    storage: str | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Path:
    """Write the page of a study or of a comparison, and return its path.

    Args:
        named: the name of a study or a comparison in `output_dir`, or the path of its folder. If both have the name,
            it is the study.
        output_dir: the folder that results go to, for a name.
        trials: as for `write_page`; only for a study.
        page: as for `write_page`; of a comparison the default is report.html in its folder.
        storage: as for `write_page`; only for a study.
        say: as for `write_page`.

    Raises:
        ConfigError: there is no such study or comparison, or an argument is not for a comparison.
        Exception: whatever `write_page` raises.
    """
    folder = _comparison_at(named, absolute(output_dir))
    if folder is None:
        return write_page(study_at(named, output_dir), trials, page, storage, say)
    for key, value in (("trials", trials), ("storage", storage)):
        if value is not None:
            raise ConfigError(key, f"is for a study, and '{folder}' is a comparison; leave it out")
    from sweep.reporting.comparison_page import write_comparison_page

    refuse_links_in(folder, "study")
    page = folder / _REPORT if page is None else absolute(page)
    if page.is_dir():
        raise ConfigError("-o", f"'{page}' is a folder; name a file")
    _refuse_page(page, is_own=page == folder / _REPORT)
    try:
        write_comparison_page(folder, page)
    except Damaged:
        raise
    except OSError as error:
        raise ConfigError("-o", f"cannot write '{page}' ({one_line(error)}); name another file") from error
    say(f"Page:      {page}")
    say("Not in MLflow: a comparison has no run of its own")
    return page


def _comparison_at(named: str | Path, output_dir: Path) -> Path | None:
    """Return the folder of the comparison of that name or path; None if it names no comparison."""
    path = Path(named)
    if isinstance(named, str) and len(path.parts) == 1:
        is_study = (output_dir / "studies" / path / RunFolder("").journal.name).exists()
        folder = output_dir / _COMPARISONS / path
        return folder if not is_study and (folder / FACTS).is_file() else None
    folder = absolute(path)
    if folder.parent.name != _COMPARISONS:
        return None
    if not (folder / FACTS).is_file():
        raise ConfigError("study", f"'{folder}' has no {FACTS}: the comparison has not ended, or it is elsewhere")
    return folder


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
        if report.note:
            say(f"Not here:  {report.note}")
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
        upload_process = UploadProcess(folder.path.parent.parent)
    except OSError:  # the folder cannot be written; writing the page will report it
        return nullcontext()
    upload_process.add_run(folder.run, store)
    return closing(upload_process)


def _refuse_page(page: Path, is_own: bool) -> None:
    """Raise ConfigError if the page would overwrite a file that no report made. `is_own`: it is at its usual place."""
    from sweep.figures.page import is_page

    try:
        if page.is_file() and not is_page(page):
            raise ConfigError("-o", f"'{page}' exists and is not a report; name another file")
        new = page.with_name(page.name + ".tmp")  # what `write_atomic` writes first
        if not is_own and os.path.lexists(new):
            raise ConfigError("-o", f"'{new}' exists and would be overwritten; name another file")
    except OSError as error:
        raise ConfigError("-o", f"cannot read '{page}' ({one_line(error)}); name another file") from error


def _refuse_foreign(page: Path, folder: StudyFolder) -> None:
    """Raise ConfigError if the page or its plots would overwrite files that no report made."""
    from sweep.figures.page import is_page
    from sweep.figures.plots import PLOTS

    _refuse_page(page, is_own=page == folder.report)
    try:
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
