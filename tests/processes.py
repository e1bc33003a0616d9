"""`python -m sweep.run` as a user starts it, watched and stopped from outside; and what MLflow has of it."""

import atexit
import functools
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from compositions import shared_folder
from mlflow import MlflowClient
from mlflow.entities import Run
from waiting import PATIENCE_S, wait_until
from zygote import Command, Zygote

from sweep.tracking import journal
from sweep.tracking.folders import RunFolder
from sweep.tracking.mlflow_client import Uploader
from sweep.tracking.store import Store

RUN = (sys.executable, "-m", "sweep.run")
_OWN = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "SWEEP_TARGETS", "HYDRA_FULL_ERROR"),
    *("PYTHONPATH", "COLUMNS"),
)


def environment(**changes: str) -> dict[str, str]:
    """The tester's environment without what would change a run, and with `changes`. Torch has one thread."""
    kept = {name: value for name, value in os.environ.items() if name not in _OWN}
    return {**kept, "OMP_NUM_THREADS": "1", **changes}  # more threads only wait for each other, beside other tests


def run(
    cwd: Path, *overrides: str | bytes, command: tuple[str, ...] = RUN, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Runs to the end; `changes` are of the environment."""
    return subprocess.run(
        [*command, *overrides],
        cwd=cwd,
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def quick(
    cwd: Path,
    *overrides: str,
    torch: bool = True,
    module: str = "sweep.run",
    **changes: str,
) -> subprocess.CompletedProcess[str]:
    """Like `run`, forked from a process that has the imports behind it; see zygote.py.

    torch: whether that is among them. A command that never needs torch is faster without.
    """
    with zygote(torch).start(cwd, overrides, environment(**changes), module) as command:
        out, err = command.communicate(PATIENCE_S)
    assert command.returncode is not None
    return subprocess.CompletedProcess(overrides, command.returncode, out, err)


def quick_start(cwd: Path, *overrides: str, module: str = "sweep.run", **changes: str) -> Command:
    """Like `start`, forked in the same way."""
    return zygote(True).start(cwd, overrides, environment(**changes), module)


def quick_side_by_side(cwd: Path, *overrides: str, n: int = 2, **changes: str) -> None:
    """The same command `n` times at once, as from so many terminals; each must succeed without a word on stderr."""
    started = [zygote(True).start(cwd, overrides, environment(**changes)) for _ in range(n)]
    for command in started:
        with command:
            _, err = command.communicate(PATIENCE_S)
        assert (command.returncode, err) == (0, "")


@functools.cache
def zygote(torch: bool) -> Zygote:
    """The process that forks commands; torch: whether it has torch and MLflow."""
    made = Zygote(environment(), light=not torch, kept=shared_folder())
    atexit.register(made.close)
    return made


def make_store(cwd: Path) -> Path:
    """The empty MLflow store that a first run in `cwd` would make, whose tables cost it a second or two."""
    folder = cwd / "outputs"
    folder.mkdir(exist_ok=True)
    with_store(folder)
    return cwd


def with_store(outputs: Path) -> Path:
    """The folder, with an empty MLflow store in it."""
    shutil.copy(empty_store(), outputs / "mlflow.db")
    return outputs


@functools.cache
def empty_store() -> Path:
    """To be copied."""
    kept = shared_folder() / "empty.db"
    if not kept.exists():
        made = kept.with_suffix(f".{os.getpid()}")
        Uploader(Store(f"sqlite:///{made}", kept.parent / "mlartifacts"))
        made.rename(kept)
    return kept


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The only line on stderr, which says what is wrong."""
    (line,) = done.stderr.splitlines()
    return line


def start(cwd: Path, *overrides: str, **changes: str) -> subprocess.Popen[str]:
    """Starts a run in a process group of its own, as a shell does for what it runs in the foreground.

    changes: of the environment.
    """
    return subprocess.Popen(
        [*RUN, *overrides],
        cwd=cwd,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_epochs(cwd: Path, n_epochs: int, process: subprocess.Popen[str] | Command) -> None:
    """Returns once the only run below `cwd` has recorded so many epochs."""
    wait_until(lambda: n_recorded(cwd) >= n_epochs, process)


def n_recorded(cwd: Path) -> int:
    """Epochs in the journal of the only run below `cwd`; 0 before there is one."""
    epochs = [journal.curves(path).get("val/loss") for path in cwd.glob("outputs/runs/*/journal.jsonl")]
    return len(epochs[0].steps) if epochs and epochs[0] is not None else 0


def wait_for_helper(cwd: Path) -> None:
    """Returns once the upload processes of runs that were started in `cwd` have ended."""
    wait_until(lambda: not any(_is_helper(process, cwd) for process in Path("/proc").glob("[0-9]*")))


def _is_helper(process: Path, cwd: Path) -> bool:
    try:
        return process.joinpath("cwd").readlink() == cwd and b"sweep.tracking.upload_process" in (
            process.joinpath("cmdline").read_bytes()
        )
    except OSError:  # it has just ended
        return False


def only_run(cwd: Path) -> RunFolder:
    (folder,) = (cwd / "outputs" / "runs").iterdir()
    return RunFolder(folder)


def recorded(folder: RunFolder) -> dict[str, tuple[list[int], list[float]]]:
    """The curves in a journal; a step that stands twice shows."""
    return {name: (c.steps.tolist(), c.values.tolist()) for name, c in journal.curves(folder.journal).items()}


def final_values(folder: RunFolder) -> dict[str, Any]:
    """Best and test values that a finished run recorded, without its times."""
    (end,) = (record for record, _ in journal.read(folder.journal) if record.get("status") == "FINISHED")
    return {name: value for name, value in end["values"].items() if not name.startswith("time/")}


def client(cwd: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{cwd}/outputs/mlflow.db")


def mlflow_runs(cwd: Path) -> list[Run]:
    """Every run in the store below `cwd`, the latest first."""
    store = client(cwd)
    return list(store.search_runs([e.experiment_id for e in store.search_experiments()]))


def mlflow_curve(cwd: Path, run_id: str, metric: str) -> tuple[list[int], list[float]]:
    """Every point of a metric, in the order of its steps; a point that was sent twice shows."""
    points = sorted(client(cwd).get_metric_history(run_id, metric), key=lambda point: point.step)
    return [point.step for point in points], [point.value for point in points]


def n_mlflow_runs(cwd: Path) -> int:
    """How many runs the store below `cwd` has, if there is one."""
    store = cwd / "outputs" / "mlflow.db"
    if not store.exists():
        return 0
    with sqlite3.connect(store) as database:
        (n,) = database.execute("select count(*) from runs").fetchone()
    return n


def go_at_once(script: str, arguments: Sequence[Sequence[str]]) -> None:
    """Runs the script with each of the argument lists; when all have said "ready", their input ends at once.

    Each must succeed. They are forked as by `quick`.
    """
    with tempfile.TemporaryDirectory() as name, ExitStack() as left:
        file = Path(name) / "script.py"
        file.write_text(script)
        of_script, go = os.pipe()
        try:
            started = [
                left.enter_context(zygote(True).start(Path(name), own, environment(), str(file), stdin=of_script))
                for own in arguments
            ]
            for process in started:
                wait_until(lambda process=process: process.printed() == "ready\n", process)
        finally:
            os.close(of_script)
            os.close(go)
        errors = [process.communicate(PATIENCE_S)[1] for process in started]
    failed = [f"{p.returncode}: {e.strip()[-800:]}" for p, e in zip(started, errors, strict=True) if p.returncode]
    if failed:
        pytest.fail("\n\n".join(failed), pytrace=False)
