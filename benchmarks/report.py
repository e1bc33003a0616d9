"""How long the report of a large study takes, and how large its page is.

    python benchmarks/report.py [--trials 1000] [--epochs 60]

The study's records are written one by one, as a command and its workers write them, but nothing is trained.
"""

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import optuna
from common import print_setting, print_verdict
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweep.config.nodes import Tracking
from sweep.execution.attempts import trials_of
from sweep.execution.queue import STOPPED
from sweep.storage.storage import open_storage
from sweep.study.identity import IDENTITY
from sweep.study.results import StudyRecord, best_trials
from sweep.tracking.folders import StudyFolder
from sweep.tracking.journal import Journal
from sweep.tracking.mlflow_client import Uploader
from sweep.tracking.store import tracking_store

NAME = "large"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--keep", type=Path, help="an empty folder to work in, which is left")
    given = parser.parse_args()
    print_setting()
    with tempfile.TemporaryDirectory() as made:
        cwd = given.keep or Path(made)
        folder = StudyFolder(cwd / "outputs" / "studies" / NAME)
        write_study(folder, given.trials, given.epochs)
        print(f"storage: {folder.storage.stat().st_size / 2**20:.1f} MiB")
        Uploader(tracking_store(Tracking(), cwd.absolute() / "outputs"))  # makes the store, as the study's command did
        for tracking in ("true", "false"):
            folder.run.config.write_text(f"tracking: {{mlflow: {tracking}}}\n")
            start, spent = time.perf_counter(), _cpu_s()
            subprocess.run([sys.executable, "-m", "sweep.report", NAME], cwd=cwd, check=True, stdout=subprocess.DEVNULL)
            told = "and sent to MLflow" if tracking == "true" else "alone"
            print_verdict(f"report of {given.trials} trials {told}", time.perf_counter() - start, 10, " s")
            print(f"  of one core, without the helper's: {_cpu_s() - spent:.1f} s")
        print_verdict("page", folder.report.stat().st_size / 1e6, 8, " MB")


def _cpu_s() -> float:
    """Return the CPU seconds of child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_study(folder: StudyFolder, n_trials: int, n_epochs: int) -> None:
    """Write a study with a third of its trials pruned halfway and a range that depends on the optimizer."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.run.create()
    folder.trials.mkdir()
    random = np.random.default_rng(0)
    storage = open_storage(None, folder)
    study = optuna.create_study(storage=storage, study_name=NAME)
    study.set_user_attr(IDENTITY, {"hydra.sweeper.objective": '["val/loss"]'})
    for number in range(n_trials):
        _write_trial(study, folder, number, n_epochs, random)
    with Journal(folder.run.journal) as journal:
        record = StudyRecord(journal, study)
        facts = {"uid": "large", "name": NAME, "experiment": "sweep", "params": {}, "tags": {}, "store": None}
        record.start({**facts, "parent": None, "output_dir": "../..", "storage": None})
        record.end("FINISHED", folder, trials_of(study), best_trials(study))


def _write_trial(
    study: optuna.Study, folder: StudyFolder, number: int, n_epochs: int, random: np.random.Generator
) -> None:
    trial = _sampled(random)
    is_pruned = number % 3 == 0
    best = trial.user_attrs.pop("best")
    losses = best + np.exp(-np.arange(1, n_epochs + 1) / 10)
    losses = losses[: n_epochs // 2] if is_pruned else losses
    study.add_trial(trial)
    trial_id = study.get_trials(deepcopy=False)[number]._trial_id
    for epoch, loss in enumerate(losses, 1):  # as a worker reports to the storage
        study._storage.set_trial_intermediate_value(trial_id, epoch, float(loss))
    if is_pruned:
        study._storage.set_trial_user_attr(trial_id, STOPPED, f"pruned at epoch {len(losses)}")
    study.tell(number, None if is_pruned else float(losses.min()), TrialState.PRUNED if is_pruned else None)
    run = folder.trial(number)
    run.create()
    with Journal(run.journal) as journal:
        facts = {"experiment": "sweep", "output_dir": "../../../..", "store": None, "params": {}, "tags": {}}
        journal.event("start", uid=str(number), name=f"t{number}", parent=None, **facts)
        steps = list(range(1, len(losses) + 1))
        rates = [0.01 * (1 + math.cos(step / 5)) for step in steps]
        journal.metrics(steps, {"train/loss": (losses * 0.9).tolist(), "val/loss": losses.tolist(), "lr": rates})
        journal.event("end", status="FINISHED", steps=[], values={}, tags={}, artifacts=[])


def _sampled(random: np.random.Generator) -> FrozenTrial:
    name = ("sgd", "adam")[random.integers(2)]
    bounds = {"sgd": (1e-2, 1.0), "adam": (1e-4, 1e-1)}[name]
    ranges = {
        "optimizer": CategoricalDistribution(["sgd", "adam"]),
        f"scheduler.max_lr[{name}]": FloatDistribution(*bounds, log=True),
        f"scheduler.base_lr[{name}]": FloatDistribution(bounds[0] / 10, bounds[1] / 10, log=True),
        "trainer.batch_size": CategoricalDistribution([16, 32, 64, 128]),
        "model.dropout": FloatDistribution(0.0, 0.5),
    }
    max_lr, base_lr = (float(np.exp(random.uniform(*np.log([low, 10 * low])))) for low in (bounds[0], bounds[0] / 10))
    params = {
        "optimizer": name,
        f"scheduler.max_lr[{name}]": max_lr,
        f"scheduler.base_lr[{name}]": base_lr,
        "trainer.batch_size": int(random.choice([16, 32, 64, 128])),
        "model.dropout": float(random.uniform(0, 0.5)),
    }
    best = 0.02 + 0.05 * abs(math.log10(max_lr) + 1.5) + 0.02 * random.random()
    return create_trial(state=TrialState.RUNNING, params=params, distributions=ranges, user_attrs={"best": best})


if __name__ == "__main__":
    main()
