"""Every durable file of a run, a study and a comparison is damaged in every way, and every command gets what is left.

    python tests/campaigns/damage.py [--kinds run,study,stopped] [--share 1.0]

Tracking is on, in a local store. Allowed are the numbers that the undamaged files give, one by one, in the terminal, in
every file that the command writes and in MLflow; or an exit status other than 0 and one line that names the file. Never
a traceback, and never "all are in MLflow" when the store lacks something. The short form is in
tests/commands/test_damage.py.

All of it is about 3,500 commands, of one to four seconds each; `--share` draws some of them. Nothing reads what
lr_range writes, which only must not be lost.
"""

import argparse
import hashlib
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
from processes import make_store, quick, quick_start
from waiting import wait_until

from sweep.storage.journal_file import JournalFile
from sweep.tracking import journal
from sweep.tracking.mlflow_runs import UID_TAG

SMALL = ("experiment=debug", "model.widths=[4]")
_LONG = (*SMALL, "trainer.epochs=100")
STUDY = ("-m", *SMALL, "hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1")
STOPPED_STUDY = (*STUDY, _LONG[-1], "hydra/sweeper/pruner=none")
SQLITE_STUDY = (*STUDY, "hydra.sweeper.storage=sqlite:///outputs/study.db")
COMPARE = (*SMALL, "optimizer=sgd,adam", "compare.name=c", "compare.n_seeds=2", "hydra.sweeper.n_trials=2")
COMPARE += ("hydra.sweeper.n_jobs=1",)
LR_RANGE = (*SMALL, "lr_range.n_updates=100", "lr_range.n_seeds=2", "hydra.run.dir=outputs/lr")
_RUN = ("config.yaml", "overrides.yaml", "journal.jsonl", "mlflow.json")
_STUDY = ("optuna.log", "config.yaml", "journal.jsonl", "mlflow.json", "best.yaml", "optimization_results.yaml")
_STUDY += ("experiment/best.yaml", *(f"trials/1/{name}" for name in (*_RUN, "best.pt", "checkpoint.pt")))
ALLOWED = ("right", "warned", "refused")
_PARTS = ("tuning", "chosen-*", "defaults-2")  # of a contender


class Command(NamedTuple):
    """module, arguments: of the process. mlflow: what becomes of MLflow's store before it: "kept", "lost" or "unsent",
    as if nothing had ever been sent. below: the folder in outputs that it reads, "" for all of them."""

    module: str
    arguments: tuple[str, ...]
    mlflow: str = "kept"
    below: str = ""


class Kind(NamedTuple):
    """make: leaves the folders in its cwd, whose store is empty. files: below outputs, as patterns."""

    make: Callable[[Path], None]
    files: tuple[str, ...]
    commands: dict[str, Command]


class Result(NamedTuple):
    """What a command came to, without times. said: on stdout. files: what it wrote, by path. store: MLflow's runs."""

    status: int
    said: list[str]
    errors: str
    files: dict[str, Any]
    store: dict[str, Any]


def _make_runs(cwd: Path) -> None:
    """A finished run, and one that is stopped in the middle."""
    _done(cwd, *SMALL, "hydra.run.dir=outputs/runs/done")
    _stopped(cwd, cwd / "outputs/runs/stopped", *_LONG, "hydra.run.dir=outputs/runs/stopped")


def _stopped(cwd: Path, run: Path, *arguments: str) -> None:
    """Starts a command, and stops it while it trains that run."""
    with quick_start(cwd, *arguments) as command:
        wait_until(lambda: "val/loss" in journal.curves(run / "journal.jsonl"), command)
        command.send_signal(signal.SIGTERM)
    assert journal.status(run / "journal.jsonl") == "KILLED"


def _make_study(cwd: Path) -> None:
    _done(cwd, *STUDY)


def _make_stopped_study(cwd: Path) -> None:
    """A study whose second trial is stopped in the middle."""
    _stopped(cwd, cwd / "outputs/studies/s/trials/1", *STOPPED_STUDY)


def _make_sqlite_study(cwd: Path) -> None:
    _done(cwd, *SQLITE_STUDY)


def _make_comparison(cwd: Path) -> None:
    _done(cwd, *COMPARE, module="sweep.compare")


def _make_lr_range(cwd: Path) -> None:
    _done(cwd, *LR_RANGE, module="sweep.lr_range")


def _done(cwd: Path, *arguments: str, module: str = "sweep.run") -> None:
    done = quick(cwd, *arguments, module=module)
    assert done.returncode == 0, done.stderr


SYNC = {name: Command("sweep.sync", ("outputs",), name) for name in ("unsent", "lost")}
KINDS = {
    "run": Kind(
        _make_runs,
        tuple(f"runs/{run}/{name}" for run in ("stopped", "done") for name in (*_RUN, "checkpoint.pt", "best.pt")),
        {"resume": Command("sweep.run", ("resume=outputs/runs/stopped",)), **SYNC},
    ),
    "study": Kind(
        _make_study,
        tuple(f"studies/s/{name}" for name in _STUDY),
        {
            "study": Command("sweep.run", STUDY),
            "from_study": Command("sweep.run", ("from_study=s", "hydra.run.dir=outputs/runs/again")),
            "report": Command("sweep.report", ("s",)),
            **SYNC,
        },
    ),
    "stopped": Kind(
        _make_stopped_study,
        tuple(f"studies/s/{name}" for name in _STUDY),
        {
            "study": Command("sweep.run", STOPPED_STUDY),
            "report": Command("sweep.report", ("s",)),
            "unsent": SYNC["unsent"],
        },
    ),
    "sqlite": Kind(
        _make_sqlite_study,
        ("study.db", "studies/s/journal.jsonl"),
        {"study": Command("sweep.run", SQLITE_STUDY), "report": Command("sweep.report", ("s",))},
    ),
    "comparison": Kind(
        _make_comparison,
        (
            *(f"studies/c--sgd--{part}/{name}" for part in _PARTS for name in _STUDY),
            *(f"comparisons/c/comparison.{suffix}" for suffix in ("yaml", "md")),
        ),
        {
            "compare": Command("sweep.compare", COMPARE),
            **{
                f"report of {study}": Command("sweep.report", (study,), below=f"studies/{study}/")
                for study in ("c--sgd--tuning", "c--sgd--defaults-2")
            },
            **SYNC,
        },
    ),
    "lr_range": Kind(
        _make_lr_range,
        ("lr/lr_range.yaml", "lr/losses.csv"),
        {"lr_range": Command("sweep.lr_range", LR_RANGE)},
    ),
}


def damages(data: bytes, seed: int = 0) -> Iterator[tuple[str, bytes | None]]:
    """The file's content, damaged, by what was done to it; None for a file that is removed."""
    drawn = random.Random(seed)
    for share in (0.05, 0.3, 0.5, 0.8, 0.99):
        yield f"cut at {share}", data[: int(share * len(data))]
    for n, what in ((1, "a bit flipped"), (10, "ten bits flipped")):
        flipped = bytearray(data)
        for place in drawn.sample(range(len(data)), min(n, len(data))):
            flipped[place] ^= 1 << drawn.randrange(8)
        yield what, bytes(flipped)
    lines = data.splitlines(keepends=True)
    first = len(lines[0]) // 2
    yield "its first line damaged", data[:first] + bytes([data[first] ^ 1]) + data[first + 1 :]
    middle = len(lines) // 2
    yield "a line doubled", b"".join([*lines[: middle + 1], *lines[middle:]])
    yield "a line of garbage", b"".join([*lines[:middle], b"\xff}garbage{\n", *lines[middle:]])
    yield "garbage appended", data + b"garbage: 1\n"
    yield "emptied", b""
    yield "removed", None


class Campaign:
    """Makes the folders of one kind in `place`, and tries cases on copies, always at the same path."""

    def __init__(self, name: str, place: Path) -> None:
        self.kind, self._cwd, self._original = KINDS[name], place / "case", place / name
        self._cwd.mkdir(parents=True)
        self.kind.make(make_store(self._cwd))
        self._cwd.rename(self._original)
        self._right: dict[str, Result] = {}

    def files(self) -> list[str]:
        """Those that are there, relative to outputs."""
        outputs = self._original / "outputs"
        return [str(path.relative_to(outputs)) for pattern in self.kind.files for path in sorted(outputs.glob(pattern))]

    def content(self, file: str) -> bytes:
        return (self._original / "outputs" / file).read_bytes()

    def damages(self, file: str) -> dict[str, bytes | None]:
        return dict(damages(self.content(file), zlib.crc32(file.encode())))

    def right(self, command: str) -> Result:
        """What the command comes to with undamaged files."""
        if command not in self._right:
            self._right[command] = self._result(command)
        return self._right[command]

    def outcome(self, file: str, content: bytes | None, command: str) -> str:
        """ "right", "warned" (right, but MLflow lacks something) or "refused", or what is wrong."""
        found, right = self._result(command, file, content), self.right(command)
        if "Traceback" in found.errors or any("Traceback" in line for line in found.said):
            return f"traceback: {found.errors.splitlines()[-1]}"
        if other := _other_points(found.store, right.store):
            return f"other numbers in MLflow: {other}"
        if found.status == right.status and found.said == right.said:
            return self._compared(found, right, command, file if content is None else None)
        if found.status == 0 and _says_unsent(found, right) and _names(file, found.errors + "\n".join(found.said)):
            return "warned" if (outcome := self._compared(found, right, command)) == "right" else outcome
        if found.status == 0:
            return f"says something else: {_first_difference(found.said, right.said)}"
        lines = [line for line in found.errors.splitlines() if line.startswith("error: ")]
        if not any(_names(file, line) for line in lines):
            return f"does not name the file: {found.errors}"
        is_sync = self.kind.commands[command].module == "sweep.sync"
        if is_sync and re.match(r"(\d+) of \1 ", found.said[-1]):
            return f"says that all is sent: {found.said[-1]}"
        return "refused" if is_sync or len(lines) == 1 else f"{len(lines)} lines of errors: {found.errors}"

    def _compared(self, found: Result, right: Result, command: str, removed: str | None = None) -> str:
        """removed: a file that MLflow may lack, since it is no longer there."""
        if found.status != 0:
            return "right"
        for path, content in found.files.items():
            if content != right.files.get(path, content):
                return f"writes another {path}: {_first_difference(content, right.files[path])}"
        if self.kind.commands[command].module == "sweep.sync":
            sent, all_there = (_without(removed, result.store) for result in (found, right))
            if sent != all_there:
                return f"says that all is sent, but: {_first_difference(sent, all_there)}"
        return "right"

    def _result(self, name: str, file: str | None = None, content: bytes | None = None) -> Result:
        command, outputs = self.kind.commands[name], self._cwd / "outputs"
        shutil.rmtree(self._cwd, ignore_errors=True)
        shutil.copytree(self._original, self._cwd)
        if command.mlflow != "kept":
            shutil.rmtree(outputs / "mlartifacts")
            make_store(self._cwd)
        if command.mlflow == "unsent":
            for state in outputs.rglob("mlflow.json"):
                state.unlink()
        if file is not None:
            (outputs / file).unlink(missing_ok=True)  # as "unsent" does
            if content is not None:
                (outputs / file).write_bytes(content)
        before = {path: path.read_bytes() for path in _durable(outputs)}
        done = quick(self._cwd, *command.arguments, module=command.module)
        written = {path: path.read_bytes() for path in _durable(outputs)}
        files = {str(p.relative_to(outputs)): _content(p) for p, data in written.items() if data != before.get(p)}
        return Result(done.returncode, _said(done), done.stderr, files, _store(outputs))


def _names(file: str, text: str) -> bool:
    folder, _, name = file.rpartition("/")
    return file in text or (folder in text and f"({name}" in text)  # "'folder' has files ... (name, ...)"


def _says_unsent(found: Result, right: Result) -> bool:
    """Whether all that a command says is as it should be, but that MLflow has it, of which it warns."""
    about_uploads = ("Compare ", "In MLflow", "Not in MLflow", "Not yet in MLflow", "Tracking")
    said, those = ([line for line in lines if not line.startswith(about_uploads)] for lines in (found.said, right.said))
    warned = any("Not " in line for line in found.said) or "warning: MLflow lacks" in found.errors
    return said == those and warned


def _durable(outputs: Path) -> Iterator[Path]:
    for suffix in ("yaml", "md", "jsonl", "html", "log", "best.pt"):
        yield from outputs.rglob(f"*{suffix}")


def _said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Without times, and without epochs: a run whose checkpoint is gone trains those before it again."""
    lines = (re.sub(r"\((\d+ s|done before)\)", "", line).rstrip() for line in done.stdout.splitlines())
    return [line for line in lines if line and not line.lstrip().startswith(("time ", "resuming ", "epoch "))]


def _content(path: Path) -> Any:
    """What a file says, without times; None for one that says nothing of results, or nothing at all."""
    if path.parts[-2] == "mlartifacts" or "mlartifacts" in path.parts:
        return None
    try:
        match path.name:
            case "journal.jsonl":
                return _journal(path)
            case "optuna.log":
                return _trials(path)
            case "report.html":
                return re.sub(r"Made by python -m sweep.report on [^;]*;", "", path.read_text())
            case "best.pt":
                return hashlib.sha256(path.read_bytes()).hexdigest()
    except Exception as error:
        return repr(error)
    return path.read_text(errors="replace") if path.suffix in (".yaml", ".md") else None


def _journal(path: Path) -> Any:
    ends = [*journal.records(path, "end")]
    values = {key: value for key, value in ends[-1]["values"].items() if not key.startswith("time/")} if ends else None
    curves = {name: curve.tolist() for name, curve in journal.curves(path).items()}
    return [journal.status(path), values, curves]


def _trials(path: Path) -> Any:
    from optuna.storages import JournalStorage

    storage = JournalStorage(JournalFile(path, read_only=True))
    (study,) = storage.get_all_studies()
    trials = storage.get_all_trials(study._study_id)
    return [[t.number, t.state.name, t.values, t.params, t.intermediate_values] for t in trials]


def _store(outputs: Path) -> dict[str, Any]:
    """Each run in MLflow's store, by the uid of its record: status, metrics, parameters, tags, artifacts."""
    with closing(sqlite3.connect(f"file:{outputs / 'mlflow.db'}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT run_uuid, status, artifact_uri FROM runs").fetchall()
        tags: dict[str, dict[str, str]] = {run: {} for run, *_ in rows}
        for run, key, value in database.execute("SELECT run_uuid, key, value FROM tags"):
            tags[run][key] = value
        uids = {run: tags[run].pop(UID_TAG, run) for run in tags}
        found: dict[str, Any] = {}
        for run, status, place in rows:
            if "mlflow.parentRunId" in tags[run]:
                tags[run]["mlflow.parentRunId"] = uids.get(tags[run]["mlflow.parentRunId"], "")
            artifacts = _artifacts(Path(place.removeprefix("file://")))
            found[uids[run]] = {"status": status, "tags": tags[run], "points": set(), "params": {}, **artifacts}
        for run, key, value in database.execute("SELECT run_uuid, key, value FROM params"):
            found[uids[run]]["params"][key] = value
        for run, key, step, value in database.execute("SELECT run_uuid, key, step, value FROM metrics"):
            if not key.startswith("time/"):
                found[uids[run]]["points"].add((key, step, value))
    return found


def _artifacts(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    whole = (".yaml", ".pt", ".diff")
    return {
        f"artifact {path.relative_to(folder)}": hashlib.sha256(path.read_bytes()).hexdigest()
        if path.suffix in whole
        else ""
        for path in files
    }


def _other_points(found: dict[str, Any], right: dict[str, Any]) -> str:
    """Numbers in MLflow that the undamaged files do not give. A run begun by this command is compared by its files."""
    for uid, run in found.items():
        if uid in right and (other := run["points"] - right[uid]["points"]):
            return f"{run['tags'].get('mlflow.runName')}: {sorted(other, key=str)[:3]}"
    return ""


def _without(removed: str | None, store: dict[str, Any]) -> dict[str, Any]:
    """The runs without the artifact that the removed file would be."""
    gone = {f"artifact {'/'.join(removed.split('/')[-n:])}" for n in (1, 2)} if removed is not None else set()
    return {uid: {key: value for key, value in run.items() if key not in gone} for uid, run in store.items()}


def _first_difference(found: Any, right: Any) -> str:
    if isinstance(found, dict) and isinstance(right, dict):
        for key in [*right, *found]:
            if found.get(key) != right.get(key):
                return f"{key}: {_first_difference(found.get(key), right.get(key))}"
    if isinstance(found, list) and isinstance(right, list):
        for one, other in zip([*found, *[None] * len(right)], [*right, *[None] * len(found)], strict=False):
            if one != other:
                return _first_difference(one, other)
    return f"{found!s:.200} for {right!s:.200}"


def cases(campaign: Campaign, share: float) -> Iterator[tuple[str, str, bytes | None, str]]:
    """File, damage, content, command: all of them, or a drawn share."""
    drawn = random.Random(0)
    for file in campaign.files():
        for what, content in campaign.damages(file).items():
            for command, read in campaign.kind.commands.items():
                if file.startswith(read.below) and drawn.random() < share:
                    yield file, what, content, command


def run(name: str, share: float, place: Path) -> Counter[str]:
    """Prints what is wrong, and counts outcomes."""
    campaign = Campaign(name, place)
    counted: Counter[str] = Counter()
    tried = set()
    for file, what, content, command in cases(campaign, share):
        outcome = campaign.outcome(file, content, command)
        tried.add((file, what))
        counted[outcome if outcome in ALLOWED else "wrong"] += 1
        if counted.total() % 100 == 0:
            print(f"{name}: {counted.total()} commands so far: {dict(counted)}", flush=True)
        if outcome not in ALLOWED:
            print(f"{file}, {what}, {command}: {outcome}", flush=True)
    print(f"{name}: {len(tried)} damages, {counted.total()} commands: {dict(counted)}", flush=True)
    return counted


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--share", type=float, default=1.0, help="of all cases, drawn")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        counts = [run(name, given.share, Path(place) / name) for name in given.kinds.split(",")]
    return int(any(counted["wrong"] for counted in counts))


if __name__ == "__main__":
    os.nice(5)
    sys.exit(main())
