"""Make outputs of every kind with the `sweep` of this Python, for tests/commands/test_old_outputs.py.

    COMMIT/.venv/bin/python tests/campaigns/make_old_outputs.py /tmp/old tests/old_outputs/COMMIT.tar.xz

The folder must not exist; it is made, packed and removed. It shows in the outputs, as the directory of their commands.
The names of this machine, its system and its user do not. Studies in PostgreSQL need pg_dump and the server at
127.0.0.1:5432.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MACHINE = "old-machine"  # where the outputs were made
EVERY_EPOCH = "trainer.checkpoint_interval_s=0"  # a checkpoint, for what is to be killed
SMALL = (
    *("data.n=96", "model.widths=[8]", "trainer.batch_size=16", "trainer.threads=1"),  # 5 updates an epoch
    "tracking.step_points=20",
)
DONE = (*SMALL, "trainer.epochs=6", "hydra.run.dir=outputs/runs/done")
UNSENT = (*SMALL, "trainer.epochs=6", "seed=1", "hydra.run.dir=outputs/runs/unsent")
LONG = (*SMALL, "trainer.epochs=80", "model.dropout=0.1")  # so that there is a middle
STOPPED = (*LONG, "hydra.run.dir=outputs/runs/stopped")
KILLED = (*LONG, EVERY_EPOCH, "optimizer=nesterov", "scheduler=plateau", "hydra.run.dir=outputs/runs/killed")
STUDY = ("-m", *SMALL, "trainer.epochs=6", "optimizer=sgd,adam", "hydra.sweeper.n_trials=4")
INTERRUPTED = ("-m", *SMALL, "trainer.epochs=40", "optimizer=sgd,adam", "hydra.sweeper.n_trials=6")
KILLED_STUDY = (*INTERRUPTED, EVERY_EPOCH)
PACKED = (*KILLED_STUDY, "hydra.sweeper.pack=3")
SEEDS = (*INTERRUPTED, "hydra.sweeper.pack=3", "hydra.sweeper.seeds=2", "tracking=off")
COMPARE = (*SMALL, "tracking=off", "trainer.epochs=6", "optimizer=sgd,adam", "compare.n_seeds=2")
COMPARE += ("hydra.sweeper.n_trials=2",)
COMPARE_STOPPED = (*COMPARE, "trainer.epochs=40", "hydra.sweeper.pack=1")
DUMP = "optuna.sql"  # of the PostgreSQL database, beside the outputs

_SERVER, _DATABASE = "127.0.0.1:5432", "sweep_old_outputs"
_URL = f"postgresql+psycopg://{_SERVER}/{_DATABASE}"
_LEFT_OUT = ("*.png", "*/run.log", "*/mirror.log")
_ELSEWHERE = f"""
import platform, socket
socket.gethostname = lambda: {MACHINE!r}
platform.platform = lambda *_: "Linux"
"""
_PATIENCE_S, _POLL_S = 120.0, 0.001
_N_EPOCHS = 8  # of a trial that is stopped in the middle, at least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where they are made")
    parser.add_argument("archive", type=Path, help="what they are packed into")
    given = parser.parse_args()
    given.folder.mkdir()
    try:
        for name, make in KINDS.items():
            place = given.folder / name
            place.mkdir()
            make(place)
            print(f"{name}: {sum(1 for _ in place.rglob('journal.jsonl'))} journals", flush=True)
        with tarfile.open(given.archive, "w:xz", preset=9) as archive:
            for name in KINDS:
                archive.add(given.folder / name, name, filter=_as_kept)
    finally:
        shutil.rmtree(given.folder)


def _as_kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if any(Path(entry.name).match(pattern) for pattern in _LEFT_OUT):
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _make_runs(place: Path) -> None:
    """One that MLflow has and one that it has not; one that was stopped in order and one that was killed, not sent."""
    with _running(place, *DONE):
        pass
    with _running(place, *UNSENT) as process:
        _kill_helper(process)
    with _running(place, *STOPPED, status=128 + signal.SIGTERM) as process:
        _wait_until(lambda: _has_epochs(place / "outputs/runs/stopped/journal.jsonl"), process)
        process.terminate()
    with _running(place, *KILLED, status=-signal.SIGKILL) as process:
        _wait_until(lambda: _has_epochs(place / "outputs/runs/killed/journal.jsonl"), process)
        _kill_helper(process)
        process.kill()


def _make_study(place: Path) -> None:
    with _running(place, *STUDY):
        pass


def _make_interrupted_study(place: Path, *overrides: str) -> None:
    """Stopped in order: the trial in the middle waits for the next command."""
    with _running(place, *(overrides or INTERRUPTED), status=128 + signal.SIGTERM) as process:
        _wait_until(lambda: _is_in_the_middle(place), process)
        process.terminate()


def _make_killed_study(place: Path, *overrides: str) -> None:
    """Killed: the trials in the middle are still the dead worker's."""
    with _running(place, *(overrides or PACKED), status=-signal.SIGKILL) as process:
        _wait_until(lambda: _is_in_the_middle(place), process)
        process.kill()


def _make_comparison(place: Path) -> None:
    with _running(place, *COMPARE, module="sweep.compare"):
        pass


def _make_stopped_comparison(place: Path) -> None:
    with _running(place, *COMPARE_STOPPED, module="sweep.compare", status=128 + signal.SIGTERM) as process:
        _wait_until(lambda: _is_in_the_middle(place), process)
        process.terminate()


def _in_postgresql(make: Callable[..., None], command: tuple[str, ...]) -> Callable[[Path], None]:
    """The same, but for Optuna's part of it, which is kept as a dump."""

    def made(place: Path) -> None:
        import psycopg

        with psycopg.connect(f"postgresql://{_SERVER}/test", autocommit=True) as server:
            server.execute(f"CREATE DATABASE {_DATABASE}")
            try:
                make(place, *command, f"hydra.sweeper.storage={_URL}")
                dump = ["pg_dump", "--inserts", "--no-owner", "--no-privileges", _URL.replace("+psycopg", "")]
                dumped = subprocess.run(dump, check=True, capture_output=True, text=True).stdout
            finally:
                server.execute(f"DROP DATABASE {_DATABASE} WITH (FORCE)")
        sql = [line for line in dumped.splitlines() if not line.startswith(("--", "\\"))]  # the latter are for psql
        (place / DUMP).write_text("\n".join(filter(None, sql)) + "\n")

    return made


KINDS: dict[str, Callable[[Path], None]] = {
    "runs": _make_runs,
    "study": _make_study,
    "interrupted": _make_interrupted_study,
    "packed": _make_killed_study,
    "postgresql": _in_postgresql(_make_killed_study, KILLED_STUDY),
    "postgresql-seeds": _in_postgresql(_make_interrupted_study, SEEDS),
    "comparison": _make_comparison,
    "comparison-stopped": _make_stopped_comparison,
}


@contextmanager
def _running(
    place: Path, *overrides: str, module: str = "sweep.run", status: int = 0
) -> Iterator[subprocess.Popen[str]]:
    """A command in `place`, until it has ended with that status, and the helper that it started has ended, too."""
    own = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    with tempfile.TemporaryDirectory() as elsewhere:
        Path(elsewhere, "sitecustomize.py").write_text(_ELSEWHERE)
        process = subprocess.Popen(
            [sys.executable, "-m", module, *overrides],
            cwd=place,
            env={**own, "LOGNAME": "somebody", "PYTHONPATH": elsewhere, "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            yield process
            out, err = process.communicate(timeout=_PATIENCE_S)
        if process.returncode != status:
            sys.exit(f"{' '.join(overrides)} ended with {process.returncode}, not {status}:\n{out}{err}")
        _wait_until(lambda: not any(_cwd(helper) == place for helper in _processes()))


def _kill_helper(process: subprocess.Popen[str]) -> None:
    """Once there is one, end the process that uploads."""
    _wait_until(lambda: any(_parent(pid) == process.pid for pid in _processes()), process)
    for pid in _processes():
        if _parent(pid) == process.pid:
            os.kill(pid, signal.SIGKILL)


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has just ended
        return None


def _cwd(pid: int) -> Path | None:
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return None


def _is_in_the_middle(place: Path) -> bool:
    """Whether a run of a study has ended, and another one has trained for some epochs."""
    journals = list(place.glob("outputs/studies/*/trials/**/journal.jsonl"))
    ended = [path for path in journals if _has_ended(path)]
    return bool(ended) and any(_has_epochs(path) for path in journals if path not in ended)


def _has_ended(journal: Path) -> bool:
    return any(record["kind"] == "end" for record in _records(journal))


def _has_epochs(journal: Path) -> bool:
    recorded = [record["steps"] for record in _records(journal) if "val/loss" in record.get("values", {})]
    return sum(map(len, recorded)) >= _N_EPOCHS


def _records(journal: Path) -> list[dict[str, Any]]:
    """Those in whole lines; none before there is a journal."""
    text = journal.read_text() if journal.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _wait_until(holds: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not holds():
        if time.monotonic() > deadline or (process is not None and process.poll() is not None):
            sys.exit(f"it did not come to that:\n{'' if process is None else process.communicate()}")
        time.sleep(_POLL_S)


if __name__ == "__main__":
    main()
