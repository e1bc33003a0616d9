"""`python -m sweep.studies`: list, show, export, retry, stop, remove and move studies (docs/studies.md)."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweep.utils import gc_control
from sweep.utils.command_line import Parser, run_command
from sweep.utils.errors import Damaged, SweepError
from sweep.utils.terminal import complain, escaped_line, say

_REFRESH_S = 1.0
_COLUMNS = ("name", "state", "done", "best", "began")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: by default those of the process.

    Returns:
        The exit status: 0 if it is done; 1 if `list` finds a damaged study, or `remove` is answered with no; 2 if there
        is no such study or trial, or it cannot be done; 130 after Ctrl-C.
    """
    return run_command(_parser(), lambda given: given.command(given), arguments)


def _list(given: argparse.Namespace) -> int:
    from sweep.manage import studies_in

    found = list(studies_in(given.output_dir))
    if given.json:
        _print_json([_as_json(folder.path, status) for folder, status in found])
    else:
        rows = [_row(folder.path.name, status) for folder, status in found]
        _print_rows([_COLUMNS, *rows] if rows else [], f"no studies below {given.output_dir}")
    return 1 if any(isinstance(status, Damaged) for _, status in found) else 0


def _show(given: argparse.Namespace) -> int:
    from sweep.api import load_study

    def look() -> Any:
        return load_study(given.study, output_dir=given.output_dir, storage=given.storage).status

    if given.json:
        _print_json(look().as_json())
    elif given.once or not sys.stdout.isatty():
        _print_status(look())
    else:
        _follow(look)
    return 0


def _export(given: argparse.Namespace) -> int:
    from sweep.api import load_study

    study = load_study(given.study, output_dir=given.output_dir, storage=given.storage)
    if given.to is not None:
        path = study.export(given.to)
        _done(given, {"file": str(path)}, f"Wrote {path}")
    else:
        from sweep.study.table import records

        _print_json(records(study.trials()))
    return 0


def _retry(given: argparse.Namespace) -> int:
    from sweep.manage import retry_trials

    trials = None if given.trial is None else [given.trial]
    queued = retry_trials(given.study, trials, output_dir=given.output_dir, storage=given.storage)
    which = f"queued again: {', '.join(map(str, queued))}; the study's command trains them" if queued else "none failed"
    _done(given, {"queued": queued}, f"trials {which}" if queued else which)
    return 0


def _stop(given: argparse.Namespace) -> int:
    from sweep.manage import stop_study

    what = "the study" if given.trial is None else f"trial {given.trial}"
    try:
        stop_study(given.study, given.trial, wait=not given.no_wait, output_dir=given.output_dir, storage=given.storage)
    except KeyboardInterrupt:
        complain(f"{what} is asked to stop, and will at the end of its epoch")
        raise
    if given.no_wait:
        _done(given, {"stopped": given.trial}, f"{what} is asked to stop, and will at the end of its epoch")
        return 0
    again = "the study's command resumes it"
    again += "" if given.trial is None else f"; for a running study: retry {given.study} --trial {given.trial}"
    _done(given, {"stopped": given.trial}, f"{what} has stopped; {again}")
    return 0


def _remove(given: argparse.Namespace) -> int:
    from sweep.manage import plan_removal

    of_study = {"output_dir": given.output_dir, "storage": given.storage}
    plan = plan_removal(given.study, keep_runs=given.keep_runs, artifacts=given.artifacts, **of_study)
    runs = "" if plan.store is None else f", and up to {len(plan.runs)} runs in MLflow"
    what = f"{len(plan.files)} files ({plan.n_bytes / 2**20:.1f} MiB) in {plan.folder.path}{runs}"
    what += "" if plan.copies is None else f", and the copies of its runs in {plan.copies.place}"
    for path in plan.kept:
        complain(f"stays, since the study did not write it: {path}")
    if not given.yes:
        question = f"This removes study {plan.folder.path.name}: {what}. Remove it? [y/N] "
        say(question, err=given.json, flush=True)  # standard output has the JSON alone
        if (sys.stdin.readline() if sys.stdin else "").strip().lower() not in ("y", "yes"):
            complain("nothing is removed; answer with y, or give --yes")
            return 1
    plan.remove(complain)
    _done(given, {"removed": len(plan.files), "kept": [str(path) for path in plan.kept]}, f"removed {what}")
    return 0


def _move(given: argparse.Namespace) -> int:
    from sweep.manage import move_outputs

    moved = move_outputs(given.outputs, given.new, tracking_uri=given.uri)
    for name, place in moved.storages.items():
        complain(f"study {name} keeps its trials in {place}: name it from now on (--storage, hydra.sweeper.storage)")
    storages = {name: str(place) for name, place in moved.storages.items()}
    facts = {"folder": str(moved.folder), "n_locations": moved.n_locations, "storages": storages}
    _done(given, facts, f"moved to {moved.folder}; {moved.n_locations} artifact locations in MLflow are changed")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="python -m sweep.studies", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.set_defaults(command=run)
        added.add_argument("--json", action="store_true", help="print JSON")
        return added

    def add_of_study(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        added = add(name, run, help)
        added.add_argument("study", help="the study's name, or the path of its folder")
        _add_output_dir(added)
        added.add_argument("--storage", metavar="URL", help="hydra.sweeper.storage of the study, if it has moved")
        return added

    _add_output_dir(add("list", _list, "the studies in an output folder"))
    show = add_of_study("show", _show, "how a study stands: what runs, counts, the best so far, the time left")
    show.add_argument("--once", action="store_true", help="print once, also in a terminal")
    export = add_of_study("export", _export, "its trials as a table")
    export.add_argument("--to", metavar="FILE", help="trials.csv, trials.parquet or trials.json (default: print JSON)")
    retry = add_of_study("retry", _retry, "queue failed trials again")
    retry.add_argument("--trial", type=int, metavar="N", help="this trial, which failed or was stopped")
    stop = add_of_study("stop", _stop, "save a running study's trials and stop it, or one of its trials")
    stop.add_argument("--trial", type=int, metavar="N", help="this trial, whose worker goes on with another")
    stop.add_argument("--no-wait", action="store_true", help="do not wait until it has stopped")
    remove = add_of_study("remove", _remove, "remove a study: its files, its trials in the storage, its runs in MLflow")
    remove.add_argument("--yes", action="store_true", help="do not ask")
    remove.add_argument("--keep-runs", action="store_true", help="leave its runs in MLflow alone")
    remove.add_argument(
        "--artifacts", metavar="URL", help="remove the copies of its runs, too, which are below this place"
    )
    move = add("move", _move, "move an output folder, and change the artifact locations in MLflow")
    move.add_argument("outputs", metavar="OUTPUTS", type=Path, help="the output folder")
    move.add_argument("new", metavar="NEW", type=Path, help="its new path")
    move.add_argument("--uri", help="a database of MLflow's that keeps artifacts there (default: MLFLOW_TRACKING_URI)")
    return parser


def _add_output_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), help="where studies are (default: outputs)")


def _done(given: argparse.Namespace, facts: Mapping[str, Any], line: str) -> None:
    """Print what was done, as a line or as JSON."""
    if given.json:
        _print_json(facts)
    else:
        say(escaped_line(line))


def _print_json(facts: Any) -> None:
    """Print JSON. Numbers that are not finite become null."""
    finite = json.loads(json.dumps(facts), parse_constant=lambda _: None)
    say(json.dumps(finite, indent=1))


def _print_status(status: Any) -> None:
    from sweep.study.status import status_group
    from sweep.utils.console import Console

    Console(soft_wrap=True).print(status_group(status))


def _follow(look: Callable[[], Any]) -> None:
    """Show how a study stands, again and again as long as it runs, in a terminal."""
    from rich.live import Live

    from sweep.study.status import status_group
    from sweep.utils.console import Console

    gc_control.resume()  # it may be watched for hours
    with Live(console=Console(), auto_refresh=False) as live:
        while True:
            status = look()
            live.update(status_group(status), refresh=True)
            if status.state != "running":
                return
            time.sleep(_REFRESH_S)


def _as_json(folder: Path, status: Any) -> dict[str, Any]:
    if isinstance(status, SweepError):
        return {"name": folder.name, "folder": str(folder), "problem": str(status)}
    return status.as_json()


def _row(name: str, status: Any) -> list[str]:
    if isinstance(status, SweepError):
        return [name, escaped_line(str(status))]
    best = f"{status.best[0].values[0]:.6g}" if status.best and len(status.objectives) == 1 else ""
    began = "" if status.began is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(status.began))
    total = "" if status.n_trials is None else f" of {status.n_trials}"
    return [name, status.state, f"{status.n_done}{total}", best, began]


def _print_rows(rows: Sequence[Sequence[str]], otherwise: str) -> None:
    """Print rows as aligned columns. A row that is shorter than the first is not aligned."""
    if not rows:
        say(otherwise)
        return
    widths = [max(len(row[i]) for row in rows if len(row) == len(rows[0])) for i in range(len(rows[0]))]
    widths[0] = max(len(row[0]) for row in rows)
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())


if __name__ == "__main__":
    logging.raiseExceptions = False
    sys.exit(main())
