"""The cost of sending a study's finished trials to MLflow: one by one through its client, and many at once, in turn.

One trial of a study is trained and then copied, each copy with its own identity. Two times are measured: the CPU time
of the process, since a study's trials need the cores too, and the wall-clock time.

`python benchmarks/mirror.py`
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from common import print_setting, print_verdict

from sweep.tracking import journal
from sweep.tracking.folders import RunFolder, StudyFolder
from sweep.tracking.mlflow_client import Uploader
from sweep.tracking.store import Store
from sweep.tracking.study_upload import StudyUpload

TRAIN = [sys.executable, "-m", "sweep.run", "-m", "hydra/sweeper=study", "hydra.sweeper.n_trials=1", "data.n=400"]
BOUND_MS = 5
_N_TOGETHER, _TOGETHER_MS = 32, 1000  # trials in a pass, and how long a pass takes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=300, help="in each of two studies")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--uri", help="of a database of MLflow's to send them to (default: a new SQLite file)")
    given = parser.parse_args()
    print_setting()
    ways: dict[str, Callable[[StudyFolder, Store], object]] = {"singly": _singly, "at once": _at_once}
    costs: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder) / "outputs"
        subprocess.run([*TRAIN, f"trainer.epochs={given.epochs}"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (trained,) = (outputs / "studies").iterdir()
        store = Store(given.uri or f"sqlite:///{outputs}/mlflow.db", outputs / "mlartifacts")
        records = [record for record, _ in journal.read(StudyFolder(trained).trial(0).journal)]
        n_points = sum(len(record["steps"]) * len(record["values"]) for record in records if "values" in record)
        print(f"{n_points} values, {len(records[0]['params'])} params, {len(records[0]['tags'])} tags a trial")
        for i in range(given.rounds):
            for way, send in ways.items():
                study = _copies(StudyFolder(trained), outputs / "studies" / f"{way} {i}", given.trials)
                used, began = time.process_time(), time.perf_counter()
                send(study, store)
                seconds = time.process_time() - used, time.perf_counter() - began
                costs[way].append((1e3 * seconds[0] / given.trials, 1e3 * seconds[1] / given.trials))
                print(f"round {i + 1}, {way}: {costs[way][-1][0]:.2f} ms of a core a trial, {costs[way][-1][1]:.2f} ms")
    ratio = statistics.median(one[0] / all_[0] for one, all_ in zip(*costs.values(), strict=True))
    print(f"at once is {ratio:.1f} times as cheap")
    median = statistics.median(core for core, _ in costs["at once"])
    return 0 if print_verdict("a trial, sent with others,", median, BOUND_MS, " ms of a core") else 1


def _copies(trained: StudyFolder, to: Path, n_trials: int) -> StudyFolder:
    """Make a study of copies of the trained study's first trial, all finished and none sent."""
    study, parent = StudyFolder(to), uuid.uuid4().hex
    study.run.create()
    _copy_run(trained.run, study.run, {"uid": parent})
    for number in range(n_trials):
        run = study.trial(number)
        run.create()
        own = {"uid": uuid.uuid4().hex, "parent": {"uid": parent, "name": to.name, "folder": "../.."}}
        _copy_run(trained.trial(0), run, own, later_ms=_TOGETHER_MS * (number // _N_TOGETHER))
    return study


def _copy_run(source: RunFolder, to: RunFolder, changes: dict[str, object], later_ms: int = 0) -> None:
    for file in (source.config, source.overrides):
        if file.exists():
            shutil.copy(file, to.path)
    records = [record for record, _ in journal.read(source.journal)]
    later_ms += time.time_ns() // 1_000_000 - records[0]["time"]  # times are in the tables' keys
    records = [record | {"time": record["time"] + later_ms} for record in records]
    records[0] |= changes
    to.journal.write_text("".join(json.dumps(record) + "\n" for record in records))


def _singly(study: StudyFolder, store: Store) -> None:
    uploader = Uploader(store)
    for run in (*study.runs(), study.run):
        assert uploader.push(run)


def _at_once(study: StudyFolder, store: Store) -> None:
    """Send all runs as a study's upload process does."""
    uploader = Uploader(store)
    problem = StudyUpload(study, lambda: uploader).finish(lambda n_left: None)
    assert problem is None, problem


if __name__ == "__main__":
    sys.exit(main())
