"""`python -m sweep.sync OUTPUT_DIR`: sends MLflow what it lacks of the runs below a folder, each row once."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.tracking import journal
from sweep.tracking.folders import Busy, RunFolder, StudyFolder
from sweep.tracking.store import Store, output_dir_around, output_dir_of, recorded_store, recorded_tracking
from sweep.utils.checked_file import is_checked
from sweep.utils.command_line import Parser, check_command_line, secure_streams
from sweep.utils.errors import ConfigError, Damaged, DamagedJournal, DeletedInStore, one_line
from sweep.utils.passwords import without_password
from sweep.utils.paths import absolute, is_inside, refuse_links_at, refuse_links_in
from sweep.utils.terminal import complain, escaped_line, say

if TYPE_CHECKING:
    from sweep.tracking.mlflow_client import Uploader


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all is there; 1 something could not be sent; 2 no such folder or store."""
    secure_streams()
    try:
        check_command_line(sys.argv[1:] if arguments is None else arguments)
        given = _parser().parse_args(arguments)
    except ConfigError as error:
        complain(f"error: {error}")
        return error.exit_status
    output_dir = absolute(given.output_dir)
    if not os.path.isdir(output_dir):  # pathlib's raises OSError for a name that is too long
        complain(f"error: output_dir: no folder '{output_dir}'")
        return 2
    runs = sorted(_begun(output_dir), key=lambda run: run.path)
    tracked: list[tuple[RunFolder, Store]] = []
    refused: list[ConfigError] = []
    for run in runs:
        try:
            _check_begun(run)
            _refuse_places(run, output_dir)
            if (store := recorded_store(run, given.uri)) is not None:
                tracked.append((run, store))
        except ConfigError as error:
            refused.append(error)
            complain(f"error: {error}")
        except OSError as error:
            refused.append(Damaged("output_dir", run.path, one_line(error), "put back a copy of it"))
            complain(f"error: {refused[-1]}")
    n_sent, n_tracked = sum(_sync_all(tracked)), len(tracked) + len(refused)
    say(escaped_line(f"{n_sent} of {n_tracked} tracked runs below {output_dir} are in MLflow"))
    if any(not isinstance(error, Damaged) for error in refused):
        return 2
    return 0 if n_sent == n_tracked else 1


def _parser() -> Parser:
    parser = Parser(prog="python -m sweep.sync", description=__doc__)
    parser.add_argument(
        "output_dir", type=Path, nargs="?", default=Path("outputs"), help="where to look (default: outputs)"
    )
    parser.add_argument("--uri", help="send all of them to this MLflow store instead of the one that each began in")
    return parser


def _begun(output_dir: Path) -> Iterator[RunFolder]:
    """Every run below the folder that has a record, or has lost it."""
    for name, folders, files in os.walk(output_dir):
        run = RunFolder(name)
        if run.journal.name in (*folders, *files) or _has_lost_its_record(run, files):
            yield run


def _has_lost_its_record(run: RunFolder, files: Sequence[str]) -> bool:
    """Whether the folder has other files of a run or a study that is tracked. MLflow keeps copies of some of them."""
    if run.sync_state.name in files:
        return True
    if run.config.name not in files or run.path.name == "artifacts":
        return False
    study = StudyFolder(run.path)
    others = {path.name for path in (*run.written, study.results, study.storage)} - {run.config.name}
    return not others.isdisjoint(files) and is_checked(run.config) and recorded_tracking(run).mlflow


def _check_begun(run: RunFolder) -> None:
    """Raises Damaged for a record that is gone, or has no start. A trial that died early may not have begun one."""
    if not os.path.lexists(run.journal):
        raise DamagedJournal(run.journal, None, "it is gone, but the run has begun")
    damage: list[DamagedJournal] = []
    for record, _ in journal.read(run.journal, damage=damage):
        if record["kind"] != "start":
            raise damage[0] if damage else DamagedJournal(run.journal, 1, "the record does not begin with its start")
        break
    if journal.whole_size(run.journal) == 0 and any(
        path.exists() for path in (run.sync_state, run.checkpoint, run.best, StudyFolder(run.path).results)
    ):
        raise DamagedJournal(run.journal, None, "it is empty, but the run has begun")


def _refuse_places(run: RunFolder, output_dir: Path) -> None:
    """Raise ConfigError for a run that would have us read or write where neither it lies nor the user said."""
    recorded = output_dir_of(run)
    if recorded is None:
        return
    if not recorded.is_relative_to(output_dir) and recorded != output_dir_around(run.path):
        raise ConfigError(
            "output_dir", f"'{run.path}' names '{recorded}' as its own; if you trust that, give that folder"
        )
    if not is_inside(run.path, output_dir):
        raise ConfigError("output_dir", f"'{run.path}' lies elsewhere by a link, and links are not followed")
    refuse_links_at(recorded)
    refuse_links_in(run.path, "output_dir")


def _sync_all(tracked: Sequence[tuple[RunFolder, Store]]) -> Iterator[bool]:
    """Whether its store has all of a run now, for each run."""
    if not tracked:
        return
    from sweep.tracking.mlflow_client import FAILURES, Uploader

    uploaders: dict[Store, Uploader] = {}
    down: set[Store] = set()
    shown: set[str] = set()  # a line about a deleted experiment stands for all of its runs
    for run, store in tracked:
        if store in down:
            yield False
            continue
        try:
            if store not in uploaders:
                uploaders[store] = Uploader(store)
            uploaders[store].push(run)
            uploaders[store].abandon(run)
            journal.check(run.journal)  # what was sent before, too: the run is to be what its record says
            yield True
        except Damaged as error:
            complain(f"error: {error}; what can be read of the run is sent")
            yield False
        except Busy:
            complain(f"{run.path}: another process is sending it")
            yield False
        except DeletedInStore as error:
            if str(error) not in shown:
                complain(f"{run.path}: {error}")
            shown.add(str(error))
            yield False
        except FAILURES as error:
            complain(f"{run.path}: {one_line(error)}")
            if not _answers(uploaders.get(store)):
                down.add(store)
                complain(f"{without_password(store.uri or '')} does not answer; its other runs wait")
            yield False


def _answers(uploader: "Uploader | None") -> bool:
    from sweep.tracking.mlflow_client import FAILURES

    if uploader is None:
        return False
    try:
        uploader.reach()
    except FAILURES:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
