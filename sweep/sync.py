"""`python -m sweep.sync OUTPUT_DIR`: sends MLflow what it lacks of the runs below a folder, each row once."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.command_line import check_command_line
from sweep.errors import ConfigError, one_line
from sweep.record.folder import Busy, RunFolder
from sweep.record.store import Store, recorded_store, without_password

if TYPE_CHECKING:
    from sweep.record.mlflow import Mirror


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all is there; 1 something could not be sent; 2 no such folder or store."""
    try:
        check_command_line(sys.argv[1:] if arguments is None else arguments)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    parser = argparse.ArgumentParser(prog="python -m sweep.sync", description=__doc__)
    parser.add_argument(
        "output_dir", type=Path, nargs="?", default=Path("outputs"), help="where to look (default: outputs)"
    )
    parser.add_argument("--uri", help="send all of them to this MLflow store instead of the one that each began in")
    given = parser.parse_args(arguments)
    output_dir = given.output_dir.absolute()
    if not output_dir.is_dir():
        print(f"error: output_dir: no folder '{output_dir}'", file=sys.stderr)
        return 2
    runs = [RunFolder(path.parent) for path in sorted(output_dir.rglob("journal.jsonl"))]
    try:
        tracked = [(run, store) for run in runs if (store := recorded_store(run, given.uri)) is not None]
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    n_sent = sum(_sync_all(tracked))
    print(f"{n_sent} of {len(tracked)} tracked runs below {output_dir} are in MLflow")
    return 0 if n_sent == len(tracked) else 1


def _sync_all(tracked: Sequence[tuple[RunFolder, Store]]) -> Iterator[bool]:
    """Whether its store has all of a run now, for each run."""
    if not tracked:
        return
    from sweep.record.mlflow import FAILURES, Mirror

    mirrors: dict[Store, Mirror] = {}
    down: set[Store] = set()
    for run, store in tracked:
        if store in down:
            yield False
            continue
        try:
            if store not in mirrors:
                mirrors[store] = Mirror(store)
            mirrors[store].push(run)
            mirrors[store].abandon(run)
            yield True
        except Busy:
            print(f"{run.path}: another process is sending it", file=sys.stderr)
            yield False
        except FAILURES as error:
            print(f"{run.path}: {one_line(error)}", file=sys.stderr)
            if not _answers(mirrors.get(store)):
                down.add(store)
                print(f"{without_password(store.uri or '')} does not answer; its other runs wait", file=sys.stderr)
            yield False


def _answers(mirror: "Mirror | None") -> bool:
    from sweep.record.mlflow import FAILURES

    if mirror is None:
        return False
    try:
        mirror.reach()
    except FAILURES:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
