"""Kills runs at random moments and resumes them, again and again; each must end as if nothing had been.

    python tests/campaigns/kill_resume.py --rounds 15

A round takes one random configuration, trains it undisturbed, then once more with up to four `kill -9` at random
moments: while a process starts, in the middle of an epoch or of a checkpoint, after the end. It compares every curve
and the test values bitwise, and what MLflow has of them. Exit status: 0, or 1 when anything differs.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

from mlflow import MlflowClient

from sweep import compose, run_trial
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder

N_EPOCHS = 150
CHOICES = {
    "optimizer": ("sgd", "nesterov", "adam", "radam", "rmsprop", "adagrad"),
    "scheduler": ("constant", "cyclic", "cyclic_exp_range", "onecycle", "cosine_restarts", "exponential", "plateau"),
    "model.dropout": ("0.0", "0.3"),
    "trainer.batch_size": ("16", "7"),
    "trainer.checkpoint_interval_s": ("0", "0.01", "0.1", "1000"),  # between: in the middle of epochs
    "trainer.patience": ("null", "40"),
    "seed": ("0", "1", "2"),
}
POLL_S = 0.002
PATIENCE_S = 120.0
Values = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=None, help="of the configurations and moments (default: the clock)")
    arguments = parser.parse_args()
    seed = time.time_ns() % 10**6 if arguments.seed is None else arguments.seed
    moments, n_bad = Counter[str](), 0
    for i in range(arguments.rounds):
        rng = random.Random(f"{seed}/{i}")
        overrides = [f"{key}={rng.choice(values)}" for key, values in CHOICES.items()]
        overrides = ["experiment=debug", "model.widths=[8]", f"trainer.epochs={N_EPOCHS}", *overrides]
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
            kills, problems = play(Path(place), overrides, rng)
        moments.update(kills)
        n_bad += bool(problems)
        print(f"round {i + 1}: {' '.join(overrides[3:])}; killed {', '.join(kills) or 'never'}: ", end="")
        print("; ".join(problems) or "equal", flush=True)
    counted = ", ".join(f"{n} {moment}" for moment, n in sorted(moments.items())) or "none"
    print(f"{arguments.rounds} rounds (--seed {seed}), {moments.total()} kills ({counted}), {n_bad} rounds differ")
    return 1 if n_bad else 0


def play(place: Path, overrides: list[str], rng: random.Random) -> tuple[list[str], list[str]]:
    """When the run was killed, and what is wrong with it in the end."""
    run_trial(compose([*overrides, "tracking=off"]), folder=place / "undisturbed")
    undisturbed = RunFolder(place / "undisturbed")
    folder, kills = None, []
    for attempt in range(rng.randint(1, 4)):
        cwd = place / f"attempt-{attempt}"  # one that was killed before it was a run leaves nothing to resume
        cwd.mkdir()
        command = overrides if folder is None else [f"resume={folder.path}"]
        folder = kill_at_random(cwd, command, folder, rng)
        kills.append(moment(folder))
        if folder is not None and journal.status(folder.journal) == "FINISHED":
            break
    if folder is None or journal.status(folder.journal) != "FINISHED":
        cwd = place / "last"
        cwd.mkdir()
        command = overrides if folder is None else [f"resume={folder.path}"]
        done = subprocess.run([sys.executable, "-m", "sweep.run", *command], cwd=cwd, capture_output=True, text=True)
        if done.returncode != 0:
            return kills, [f"cannot be resumed: {done.stderr.strip()}"]
        folder = folder or find(cwd)
        assert folder is not None
    return kills, compare(folder, undisturbed)


def kill_at_random(cwd: Path, command: list[str], folder: RunFolder | None, rng: random.Random) -> RunFolder | None:
    """The folder of the killed run; None when it was killed before it could be resumed."""
    target = rng.randint(1, N_EPOCHS)  # epochs
    delay_s = rng.uniform(0, 0.03) if rng.random() < 0.7 else rng.uniform(0, 8)  # after it, or after the start
    by_epoch = delay_s <= 0.03
    with subprocess.Popen(
        [sys.executable, "-m", "sweep.run", *command],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + PATIENCE_S
        while by_epoch and n_epochs(folder or find(cwd)) < target and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(POLL_S)
        try:
            process.wait(delay_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return folder or find(cwd)


def find(cwd: Path) -> RunFolder | None:
    """The run that was started in `cwd`, once it can be resumed."""
    configs = list(cwd.glob("outputs/runs/*/config.yaml"))
    return RunFolder(configs[0].parent) if configs else None


def n_epochs(folder: RunFolder | None) -> int:
    curve = None if folder is None else journal.curves(folder.journal).get("val/loss")
    return 0 if curve is None else len(curve.steps)


def moment(folder: RunFolder | None) -> str:
    if folder is None:
        return "before the run"
    if journal.status(folder.journal) == "FINISHED":
        return "after the end"
    return f"in training{'' if folder.checkpoint.exists() else ' before a checkpoint'}"


def compare(folder: RunFolder, undisturbed: RunFolder) -> list[str]:
    problems = []
    own, right = curves(folder), curves(undisturbed)
    problems += [f"{name} differs" for name in own.keys() | right.keys() if own.get(name) != right.get(name)]
    if final_values(folder) != final_values(undisturbed):
        problems.append("the final values differ")
    output_dir = folder.path.parent.parent
    synced = subprocess.run([sys.executable, "-m", "sweep.sync", str(output_dir)], capture_output=True, text=True)
    while "another process is sending it" in synced.stderr:  # the helper of the killed one
        synced = subprocess.run([sys.executable, "-m", "sweep.sync", str(output_dir)], capture_output=True, text=True)
    if synced.returncode != 0:
        return [*problems, f"cannot be synced: {synced.stderr.strip()}"]
    return problems + compare_with_mlflow(output_dir, own)


def compare_with_mlflow(output_dir: Path, own: Values) -> list[str]:
    store = MlflowClient(f"sqlite:///{output_dir}/mlflow.db")
    runs = store.search_runs([e.experiment_id for e in store.search_experiments()])
    if len(runs) != 1:
        return [f"MLflow has {len(runs)} runs"]
    problems = [] if runs[0].info.status == "FINISHED" else [f"MLflow says {runs[0].info.status}"]
    for name, curve in own.items():
        points = sorted(store.get_metric_history(runs[0].info.run_id, name), key=lambda p: p.step)
        if ([p.step for p in points], [p.value for p in points]) != curve:
            problems.append(f"MLflow's {name} differs")
    return problems


def curves(folder: RunFolder) -> Values:
    return {name: (c.steps.tolist(), c.values.tolist()) for name, c in journal.curves(folder.journal).items()}


def final_values(folder: RunFolder) -> list[Values]:
    """Of each recorded end, without its times; there should be one."""
    ends = [record for record, _ in journal.read(folder.journal) if record.get("status") == "FINISHED"]
    return [{name: v for name, v in end["values"].items() if not name.startswith("time/")} for end in ends]


if __name__ == "__main__":
    sys.exit(main())
