"""Kills workers, controllers and upload processes of studies, and starts the same command again until it is complete.

    python tests/campaigns/kill_study.py --kills 200
    python tests/campaigns/kill_study.py --kills 60 --training function application --seed 1

Each study has four workers, sometimes of two controllers at once. In the end it must have exactly its trials, each
once, and MLflow must agree with Optuna on each, and with the journals on each epoch, which it must have once. In every
fourth study a trial may lose its worker once only, and fails at the second death.

`--training function` and `application` train hunted.py, whose curves must be those of an uninterrupted training; one
study saves and restores the state of its trials, the next does not. Exit status: 0, or 1 when anything differs.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import optuna
from hunted import N_EPOCHS, TRACE, losses
from mlflow import MlflowClient
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from sweep.storage.journal_file import JournalFile
from sweep.tracking import journal
from sweep.tracking.folders import StudyFolder

NAME = "hunted"
N_TRIALS, N_WORKERS = 24, 4
STUDY = (f"hydra.sweeper.study_name={NAME}", "hydra.sweeper.max_failure_rate=1")
BUILTIN = ("experiment=debug", "trainer.epochs=12", "data.n=3000", "split.max_samples=3000", "optimizer=sgd,adam")
SWEEP = ("-m", "sweep.run", "-m")
PRUNER = ("hydra/sweeper/pruner=asha", "hydra.sweeper.pruner.min_resource=4")
KINDS = ("controller", "worker", "upload process")
HUNTED = Path(__file__).with_name("hunted.py")
_PATIENT = "hydra.sweeper.max_retries=1000"
_IMPATIENT = "hydra.sweeper.max_retries=1"
PATIENCE_S = 1800.0


@dataclass(frozen=True)
class Training:
    """What the trials of a study train.

    Attributes:
        words: of Python's command line, without the size of the study.
        saves: whether a trial of hunted.py saves and restores its state; None for another training.
    """

    words: tuple[str, ...] = (*SWEEP, *BUILTIN)
    saves: bool | None = None

    @classmethod
    def function(cls, saves: bool) -> "Training":
        own = ("trainer=function", "trainer.call=hunted.train", f"trainer.epochs={N_EPOCHS}", f"+saves={saves}")
        return cls((*SWEEP, *own, *PRUNER, "+x=1.0", '+search.x="interval(0.0,6.0)"'), saves)

    @classmethod
    def application(cls, saves: bool) -> "Training":
        study = ("hydra/sweeper=study", "hydra.sweeper.objective=val/loss", f"hydra.sweeper.max_epochs={N_EPOCHS}")
        return cls((str(HUNTED), "-m", *study, *PRUNER, f"+saves={saves}", "+x=interval(0.0,6.0)"), saves)


def _trainings(kinds: Sequence[str]) -> list[Training]:
    """Return the trainings that the studies take in turn."""
    made = {
        "builtin": [Training()],
        "function": [Training.function(True), Training.function(False)],
        "application": [Training.application(True), Training.application(False)],
    }
    return [training for kind in kinds for training in made[kind]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--per-study", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None, help="of the victims and moments (default: the clock)")
    kinds = ("builtin", "function", "application")
    parser.add_argument("--training", nargs="+", choices=kinds, default=["builtin"], help="of the studies, in turn")
    parser.add_argument("--packed", action="store_true", help="commands pack trials, each as many as it likes")
    arguments = parser.parse_args()
    packs = (1, 4, 16) if arguments.packed else (1,)
    seed = time.time_ns() % 10**6 if arguments.seed is None else arguments.seed
    killed, n_bad, i = Counter[str](), 0, 0
    trainings = _trainings(arguments.training)
    while killed.total() < arguments.kills:
        n = min(arguments.per_study, arguments.kills - killed.total())
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
            training = trainings[i % len(trainings)]
            now, problems = play(Path(place), n, random.Random(f"{seed}/{i}"), i % 4 == 3, packs, training)
        killed += now
        n_bad += bool(problems)
        i += 1
        print(f"study {i}: killed {dict(now)}: {'; '.join(problems) or 'whole'}", flush=True)
    print(f"{i} studies (--seed {seed}), {killed.total()} kills {dict(killed)}, {n_bad} studies are not whole")
    return 1 if n_bad else 0


def play(
    place: Path,
    n_kills: int,
    rng: random.Random,
    may_fail: bool = False,
    packs: Sequence[int] = (1,),
    training: Training = Training(),
    *,
    n_trials: int = N_TRIALS,
    n_workers: int = N_WORKERS,
) -> tuple[Counter[str], list[str]]:
    """Return whom it killed, and what is wrong with the study in the end. packs: of which each command takes one."""
    controllers: list[subprocess.Popen[bytes]] = []
    killed = Counter[str]()
    deadline = time.monotonic() + PATIENCE_S
    scale = (f"hydra.sweeper.n_trials={n_trials}", f"hydra.sweeper.n_jobs={n_workers}")
    command = [sys.executable, *training.words, *STUDY, *scale, _IMPATIENT if may_fail else _PATIENT]
    environment = {**os.environ, "SWEEP_TARGETS": "hunted.*", "PYTHONPATH": str(HUNTED.parent)}
    log = open(place / "log.txt", "ab")  # noqa: SIM115  # closed below
    try:
        while killed.total() < n_kills:
            assert time.monotonic() < deadline, "the study takes too long"
            alive = [c for c in controllers if c.poll() is None]
            if not alive:
                if is_complete(place, n_trials):
                    break
                for _ in range(rng.choice([1, 1, 2])):  # at the same instant
                    own = [*command, *([f"hydra.sweeper.pack={rng.choice(packs)}"] if len(packs) > 1 else [])]
                    controllers.append(
                        subprocess.Popen(
                            own, cwd=place, env=environment, stdout=log, stderr=log, start_new_session=True
                        )
                    )
                continue
            kind = rng.choice(KINDS)
            found = _wait_for(kind, controllers)
            if not found:
                continue
            time.sleep(rng.uniform(0.1, 6.0))
            victim = rng.choice(found)
            try:
                os.kill(victim, signal.SIGKILL)
                killed[kind] += 1
            except ProcessLookupError:
                continue
        for controller in controllers:
            controller.wait(PATIENCE_S)
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    finally:
        for controller in controllers:
            if controller.poll() is None:
                controller.kill()
        log.close()
    if done.returncode != 0:
        return killed, [f"the command ended with {done.returncode}: {done.stderr.strip()[-500:]}"]
    problems = problems_of(place, may_fail, n_trials)
    return killed, problems if training.saves is None else problems + not_as_uninterrupted(place, training.saves)


def _wait_for(kind: str, controllers: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Return the processes of that kind as soon as there is one; an empty list if the controllers end before."""
    while alive := [c for c in controllers if c.poll() is None]:
        if found := [pid for c in alive for pid, own in victims(c.pid) if own == kind]:
            return found
        time.sleep(0.1)
    return []


def victims(controller: int) -> list[tuple[int, str]]:
    """The controller and its descendants that work, by kind; a mirror is among them."""
    found = [(controller, "controller")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(process.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            command = process.joinpath("cmdline").read_bytes()
        except (OSError, ValueError, IndexError):
            continue
        if parent == controller:
            kind = "upload process" if b"sweep.tracking.upload_process" in command else "worker"
            if b"resource_tracker" not in command:
                found.append((int(process.name), kind))
    return found


def trials_of(place: Path) -> list[FrozenTrial]:
    folder = StudyFolder(place / "outputs" / "studies" / NAME)
    if not folder.storage.exists():
        return []
    try:
        study = optuna.load_study(study_name=NAME, storage=JournalStorage(JournalFile(folder.storage)))
    except KeyError:
        return []
    return study.get_trials(deepcopy=False)


def is_complete(place: Path, n_trials: int) -> bool:
    trials = trials_of(place)
    return len(trials) == n_trials and all(t.state.is_finished() for t in trials)


def problems_of(place: Path, may_fail: bool, n_trials: int) -> list[str]:
    """What is wrong with the study below `place`, which should be complete, and with what MLflow has of it."""
    trials = trials_of(place)
    problems = []
    if [t.number for t in trials] != list(range(n_trials)):
        problems.append(f"the numbers are {[t.number for t in trials]}")
    if unfinished := [t.number for t in trials if not t.state.is_finished()]:
        problems.append(f"trials {unfinished} are not finished")
    if not may_fail and (failed := [t for t in trials if t.state == TrialState.FAIL]):
        problems.append(f"trial {failed[0].number} failed: {failed[0].user_attrs}")
    folder = StudyFolder(place / "outputs" / "studies" / NAME)
    folders = sorted(int(path.name) for path in folder.trials.iterdir())
    if folders != list(range(n_trials)):
        problems.append(f"the folders are {folders}")
    sync = [sys.executable, "-m", "sweep.sync", str(place / "outputs")]
    synced = subprocess.run(sync, capture_output=True, text=True, check=False)
    while "another process is sending it" in synced.stderr:  # the helper of a killed controller
        synced = subprocess.run(sync, capture_output=True, text=True, check=False)
    if synced.returncode != 0:
        return [*problems, f"cannot be synced: {synced.stderr.strip()}"]
    return problems + disagreements(place, trials)


def not_as_uninterrupted(place: Path, saves: bool) -> list[str]:
    """Return where trials of hunted.py trained or recorded something else than uninterrupted ones would.

    Where the state is saved, a resumed trial may train again only the epoch that it was killed in. Otherwise it begins
    again.
    """
    problems = []
    for trial in trials_of(place):
        folder = StudyFolder(place / "outputs" / "studies" / NAME).trial(trial.number)
        trace = folder.path / TRACE
        trained = [int(line) for line in trace.read_text().split()] if trace.exists() else []
        for before, epoch in pairwise([0, *trained]):
            if epoch not in (before + 1, max(before, 1) if saves else 1):
                problems.append(f"trial {trial.number} trained epoch {epoch} after {before}")
        curve = journal.curves(folder.journal).get("val/loss")
        values = [] if curve is None else curve.values.tolist()
        if trial.state == TrialState.COMPLETE and len(values) != N_EPOCHS:
            problems.append(f"trial {trial.number} is complete with {len(values)} epochs")
        if values != losses(trial.params["x"], len(values)):
            problems.append(f"trial {trial.number} recorded {values}")
    return problems


def disagreements(place: Path, trials: list[FrozenTrial]) -> list[str]:
    """Where MLflow says other than Optuna, trial by trial: state, parameters, value; and doubled or missing epochs."""
    store = MlflowClient(f"sqlite:///{place}/outputs/mlflow.db")
    runs = store.search_runs([e.experiment_id for e in store.search_experiments()], max_results=1000)
    parents = [r for r in runs if r.data.tags.get("kind") == "study"]
    problems = [] if len(parents) == 1 else [f"MLflow has {len(parents)} parents"]
    children = {r.data.tags["trial"]: r for r in runs if "trial" in r.data.tags}
    if len(children) != len(runs) - len(parents) or len(children) != len(trials):
        problems.append(f"MLflow has {len(runs)} runs, of {len(children)} trials")
    for trial in trials:
        run = children.get(str(trial.number))
        if run is None:
            problems.append(f"MLflow lacks trial {trial.number}")
            continue
        status = "FAILED" if trial.state == TrialState.FAIL else "FINISHED"
        if run.data.tags.get("state") != trial.state.name or run.info.status != status:
            state = f"{run.data.tags.get('state')}, {run.info.status}"
            problems.append(f"trial {trial.number} is {trial.state.name}, in MLflow {state}")
        if parents and run.data.tags.get("mlflow.parentRunId") != parents[0].info.run_id:
            problems.append(f"trial {trial.number} has another parent")
        if trial.state == TrialState.FAIL and run.data.tags["error"].partition(": ")[2] != trial.user_attrs["problem"]:
            problems.append(f"trial {trial.number} failed for {trial.user_attrs}, in MLflow {run.data.tags['error']}")
        for name, value in trial.params.items():
            key = name.partition("[")[0]
            own = run.data.tags["optimizer"] if key == "optimizer" else run.data.params[key]
            if own != str(value):
                problems.append(f"trial {trial.number} has {key} = {value}, in MLflow {own}")
        points = sorted((p.step, p.value) for p in store.get_metric_history(run.info.run_id, "val/loss"))
        if [step for step, _ in points] != [*range(1, len(points) + 1)]:
            problems.append(f"trial {trial.number} has the epochs {points} in MLflow")
        best = run.data.metrics.get("best/val_loss", min((value for _, value in points), default=None))
        if trial.values is not None and best != trial.values[0]:
            problems.append(f"trial {trial.number} has the value {trial.values[0]}, in MLflow {best}")
    return problems


if __name__ == "__main__":
    sys.exit(main())
