"""Memory of a study's workers on a large table: the proportional set size (PSS), so that a shared page counts once.

    python benchmarks/worker_memory.py              # 2 workers; 2 million rows, 30 columns, CSV
    python benchmarks/worker_memory.py --table mine.csv --workers 4

Starts a study whose trials train for long, waits until each worker has trained for some seconds, and prints for its
command and each worker the PSS and what of it belongs to no file. Then it stops the study. The peak is that of the sum
over all processes of the study.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from memory import write_table

_POLL_S = 0.25
_SETTLED_S = 15.0  # after all workers train


def rollup(pid: int) -> dict[str, float]:
    """Return the sizes of a process in MiB; nothing if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    return {line.partition(":")[0]: int(line.split()[1]) / 1024 for line in lines}


def is_worker(process: psutil.Process) -> bool:
    """Return whether a process is one of joblib's."""
    try:
        return "joblib" in " ".join(process.cmdline()) and "resource_tracker" not in " ".join(process.cmdline())
    except psutil.Error:
        return False


def n_training(outputs: Path) -> int:
    """Return how many trials have recorded an epoch."""
    return sum("val/loss" in path.read_text() for path in outputs.rglob("journal.jsonl"))


def main() -> None:
    """Make the table, run the study and print the sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--columns", type=int, default=30)
    parser.add_argument("--table", type=Path, default=None, help="an existing table, instead of making one")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8192)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path = arguments.table or Path(name) / "table.csv"
        if arguments.table is None:
            write_table(path, arguments.rows, arguments.columns)
        measure(path, Path(name) / "outputs", arguments.workers, arguments.batch_size)


def measure(path: Path, outputs: Path, n_workers: int, batch_size: int) -> None:
    """Run a study on the table until its workers have settled, and print the sizes."""
    command = [
        *(sys.executable, "-m", "sweep.run", "-m", "data=table", f"data.path={path}", "data.target=y", "tracking=off"),
        *(f"hydra.sweeper.n_jobs={n_workers}", f"hydra.sweeper.n_trials={n_workers}", "hydra/sweeper/pruner=none"),
        *(f"trainer.batch_size={batch_size}", "trainer.epochs=1000", "scheduler=constant", f"output_dir={outputs}"),
    ]
    study = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    peak, settled = 0.0, float("inf")
    tree = psutil.Process(study.pid)
    try:
        while time.monotonic() < settled:
            if study.poll() is not None:
                raise SystemExit(f"the study ended with {study.returncode}")
            processes = [tree, *tree.children(recursive=True)]
            peak = max(peak, sum(rollup(process.pid).get("Pss", 0) for process in processes))
            if settled == float("inf") and n_training(outputs) == n_workers:
                settled = time.monotonic() + _SETTLED_S
            time.sleep(_POLL_S)
        named = [("command", study.pid)]
        named += [("worker", child.pid) for child in tree.children(recursive=True) if is_worker(child)]
        sizes = [(what, rollup(pid)) for what, pid in named]
        for what, found in sizes:
            print(f"{what:8} PSS {found['Pss']:.0f} MiB, of which private to it {found['Pss_Anon']:.0f} MiB")
        print(f"together PSS {sum(found['Pss'] for _, found in sizes):.0f} MiB, at the peak {peak:.0f} MiB")
    finally:
        os.killpg(study.pid, signal.SIGINT)
        study.wait()


if __name__ == "__main__":
    main()
