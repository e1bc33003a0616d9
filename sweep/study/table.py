"""A study's trials as a table of pandas, and that table as a file."""

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from sweep.execution.queue import PROBLEM
from sweep.study.results import STATES, config_values
from sweep.tracking.chunks import run_id_of
from sweep.tracking.folders import StudyFolder
from sweep.tracking.store import recorded_store
from sweep.utils.errors import ConfigError, one_line
from sweep.utils.fsync import fsync
from sweep.utils.private import private

if TYPE_CHECKING:
    import pandas as pd

WORDS = {**STATES, TrialState.RUNNING: "running", TrialState.WAITING: "waiting"}
SUFFIXES = (".csv", ".parquet", ".json")


def trials_table(trials: Sequence[FrozenTrial], objectives: Sequence[str], folder: StudyFolder) -> "pd.DataFrame":
    """Return a table with a row for each trial, finished or not.

    Args:
        trials: the trials, which must be `numbered`.
        objectives: the names of the objectives.
        folder: the study's folder.

    Returns:
        The columns `number`, `state`, `value` (with several objectives `values.<name>`), `duration_s`, `began`,
        `ended`, `params.<key>` for each parameter, `problem`, `folder` and `mlflow_run_id`. Times are in UTC. A cell
        that a trial lacks is empty (NaN, NaT or None).
    """
    import pandas as pd

    uri = _store_uri(folder)
    keys = list(dict.fromkeys(key for trial in trials for key in config_values(trial)))
    rows = [_row(trial, objectives, keys, folder, uri) for trial in trials]
    columns = list(rows[0]) if rows else list(_row(None, objectives, keys, folder, uri))
    table = pd.DataFrame({name: [row[name] for row in rows] for name in columns})
    values = [name for name in columns if name == "value" or name.startswith("values.")]
    kinds: dict[str, Any] = dict.fromkeys([*values, "duration_s"], "float64")
    table = table.astype({"number": "int64", **kinds})
    for name in ("began", "ended"):
        table[name] = pd.to_datetime(table[name], utc=True)
    return table


def _row(
    trial: FrozenTrial | None, objectives: Sequence[str], keys: Sequence[str], folder: StudyFolder, uri: str | None
) -> dict[str, Any]:
    """Return a row by column; without a trial, only the columns count."""
    if trial is None:
        trial = FrozenTrial(0, TrialState.WAITING, None, None, None, {}, {}, {}, {}, {}, 0)
    values = [None] * len(objectives) if trial.state == TrialState.FAIL else trial.values or [None] * len(objectives)
    names = ["value"] if len(objectives) == 1 else [f"values.{name}" for name in objectives]
    params, run = config_values(trial), folder.trial(trial.number)
    if not run.journal.exists() and (first := folder.trial(trial.number, 0)).journal.exists():
        run = first
    return {
        "number": trial.number,
        "state": WORDS[trial.state],
        **dict(zip(names, values, strict=True)),
        "duration_s": None if trial.duration is None else trial.duration.total_seconds(),
        "began": None if trial.datetime_start is None else trial.datetime_start.astimezone(),
        "ended": None if trial.datetime_complete is None else trial.datetime_complete.astimezone(),
        **{f"params.{key}": params.get(key) for key in keys},
        "problem": trial.user_attrs.get(PROBLEM),
        "folder": str(folder.trial(trial.number).path),
        "mlflow_run_id": run_id_of(run, uri),
    }


def _store_uri(folder: StudyFolder) -> str | None:
    """Return the URI of the study's tracking store; None if it is off, or is not the user's own."""
    try:
        store = recorded_store(folder.run)
    except ConfigError:
        return None
    return None if store is None else store.uri


def write_table(table: "pd.DataFrame", path: Path) -> None:
    """Write a table as CSV, Parquet or JSON, as the file's name says. Lists among the cells become JSON texts.

    Raises:
        ConfigError: the name ends otherwise, or the file exists or cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError("--to", f"'{path}' ends in none of {', '.join(SUFFIXES)}; name a file that does")
    if os.path.lexists(path):
        raise ConfigError("--to", f"'{path}' exists; remove it, or name another file")
    plain = {str(name): _plain(column) for name, column in table.items() if column.dtype == object}
    table = table.assign(**plain)
    match path.suffix:
        case ".csv":
            data = table.to_csv(index=False).encode()
        case ".parquet":
            buffer = io.BytesIO()
            table.to_parquet(buffer, index=False)
            data = buffer.getvalue()
        case _:
            data = (json.dumps(records(table), indent=1) + "\n").encode()
    try:
        with open(path, "xb", opener=private) as file:
            file.write(data)
            file.flush()
            fsync(file.fileno())
    except OSError as error:
        raise ConfigError("--to", f"cannot write '{path}' ({one_line(error)}); name another file") from error


def _plain(column: "pd.Series") -> "pd.Series":
    """Return a column whose cells are of one kind. A choice among numbers and texts, or lists, becomes texts."""
    kinds = {type(cell) for cell in column if cell is not None and cell == cell}
    if len(kinds) <= 1 and not kinds & {list, tuple, dict}:
        return column
    return column.map(_text)


def _text(cell: Any) -> str | None:
    if cell is None or cell != cell:
        return None
    return cell if isinstance(cell, str) else json.dumps(cell)


def records(table: "pd.DataFrame") -> list[Mapping[str, Any]]:
    """Return the rows as plain dicts that JSON can hold, with all digits. Empty cells are null, and times are texts."""
    return [{str(name): _for_json(cell) for name, cell in row.items()} for row in table.to_dict("records")]


def _for_json(cell: Any) -> Any:
    if isinstance(cell, list | tuple):
        return [_for_json(part) for part in cell]
    if isinstance(cell, dict):
        return {key: _for_json(part) for key, part in cell.items()}
    if cell is None or cell != cell or cell in (math.inf, -math.inf):
        return None
    return cell.isoformat(timespec="milliseconds").replace("+00:00", "Z") if isinstance(cell, datetime) else cell
