"""Faults of a Slurm cluster while a study runs on it, and whether the study is whole in the end.

    PYTHONPATH=tests:tests/campaigns python tests/engines/faults.py --faults 30

starts a real Slurm (slurm.py), runs studies of hunted.py on it, and inflicts one fault after another at random moments:
a time limit, a warning, a cancelled job, a dead node, a dead command. In the end each study must have exactly its
trials, each complete and trained once, and MLflow must agree. Exit status: 0, or 1 when anything differs.
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from campaigns.hunted import N_EPOCHS, TRACE
from campaigns.kill_study import HUNTED, NAME, not_as_uninterrupted, problems_of
from campaigns.kill_study import trials_of as trials_below
from engines.slurm import SlurmCluster
from optuna.trial import TrialState
from waiting import wait_until

from sweep.tracking.folders import StudyFolder

_WORDS = (
    *("trainer=function", "trainer.call=hunted.train", f"trainer.epochs={N_EPOCHS}", "+saves=true", "+x=1.0"),
    *('+search.x="interval(0.0,6.0)"', "hydra/sweeper/pruner=none", f"hydra.sweeper.study_name={NAME}"),
)
PATIENT = ("hydra.sweeper.n_jobs=2", "hydra.sweeper.max_retries=100", "hydra.launcher.cpus_per_task=2")  # a node each
_SLURM = ("hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=5", "hydra.launcher.signal_delay_s=10")


class ClusterStudy:
    """A study that runs on a cluster, as a user starts it.

    Attributes:
        cluster: the cluster.
        place: the folder in which the command is run.
    """

    def __init__(self, cluster: SlurmCluster, place: Path, n_trials: int, epoch_s: float) -> None:
        """Prepare the study, whose epochs take that long."""
        self.cluster, self.place, self.n_trials = cluster, place, n_trials
        self._words = (*_WORDS, f"hydra.sweeper.n_trials={n_trials}", f"+epoch_s={epoch_s}")
        self._command: subprocess.Popen[str] | None = None

    @property
    def command(self) -> subprocess.Popen[str]:
        """The command that was started last."""
        assert self._command is not None
        return self._command

    def start(self, *words: str, launcher: Sequence[str] = _SLURM) -> subprocess.Popen[str]:
        """Start the study's command, as in a terminal of its own. `words`: further overrides."""
        environment = {**os.environ, **self.cluster.env, "SWEEP_TARGETS": "hunted.*", "PYTHONPATH": str(HUNTED.parent)}
        self._command = subprocess.Popen(
            [sys.executable, "-m", "sweep.run", "-m", *self._words, *launcher, *words],
            cwd=self.place,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self._command

    def finish(self) -> str:
        """Wait until the command has ended, with exit status 0. Return what it printed to its standard error."""
        _, err = self.command.communicate(timeout=600)
        assert self.command.returncode == 0, err
        return err

    def trained(self) -> Mapping[int, int]:
        """Return the epochs of each trial that have been trained so far, by number."""
        trials = StudyFolder(self.place / "outputs" / "studies" / NAME).trials
        return {int(trace.parent.name): trace.read_text().count("\n") for trace in trials.glob(f"*/{TRACE}")}

    def running(self) -> list[str]:
        """Return the jobs that run, the oldest first."""
        return [job for job, state in self.cluster.jobs().items() if state == "RUNNING"][::-1]

    def wait_for_workers(self, n: int) -> None:
        """Return once `n` trials are trained at the same time, or the study has fewer left."""
        before = self.trained()

        def busy() -> bool:
            done = {t.number for t in trials_below(self.place) if t.state.is_finished()}
            advanced = [t for t, epochs in self.trained().items() if epochs > before.get(t, 0) and t not in done]
            return len(advanced) >= min(n, self.n_trials - len(done))

        wait_until(busy, self.command, what=f"{n} workers")

    def is_complete(self) -> bool:
        """Return True if all trials are complete."""
        trials = trials_below(self.place)
        return sum(t.state == TrialState.COMPLETE for t in trials) == self.n_trials

    def problems(self) -> list[str]:
        """Return what is wrong with the study, which should be complete."""
        return problems_of(self.place, False, self.n_trials) + not_as_uninterrupted(self.place, saves=True)


def warn(study: ClusterStudy, job: str) -> None:
    """Send the signal that Slurm sends before a job's time is over, or before it is preempted."""
    study.cluster.run("scancel", "--signal=USR2", job)


def cancel(study: ClusterStudy, job: str) -> None:
    """Cancel a job."""
    study.cluster.run("scancel", job)


def end_time(study: ClusterStudy, job: str) -> None:
    """Let a job reach its time limit soon. Slurm looks every half minute; so it looks, and warns the job, before."""
    study.cluster.run("scontrol", "update", f"jobid={job}", "EndTime=now+35")


def requeue(study: ClusterStudy, job: str) -> None:
    """Let Slurm end a job and start it again, as when another job preempts it."""
    study.cluster.run("scontrol", "requeue", job)


def kill_node(study: ClusterStudy, job: str) -> None:
    """Kill the job's node, and start it again later."""
    node = study.cluster.node_of(job)
    study.cluster.kill_node(node)
    time.sleep(2)
    study.cluster.start_node(node)


def kill_command(study: ClusterStudy, job: str) -> None:
    """Kill the study's command, and start it again."""
    os.killpg(study.command.pid, signal.SIGKILL)
    study.command.communicate()
    study.start(*PATIENT)


FAULTS: dict[str, Callable[[ClusterStudy, str], None]] = {
    "warning": warn,
    "cancelled": cancel,
    "time limit": end_time,
    "requeued": requeue,
    "node killed": kill_node,
    "command killed": kill_command,
}


def play(cluster: SlurmCluster, place: Path, n_faults: int, rng: random.Random) -> tuple[Counter[str], list[str]]:
    """Run a study with that many faults. Return which there were, and what is wrong with it in the end."""
    study = ClusterStudy(cluster, place, 4 * n_faults, epoch_s=0.4)
    study.start(*PATIENT)
    happened = Counter[str]()
    kinds = [*FAULTS] * (n_faults // len(FAULTS) + 1)
    rng.shuffle(kinds)
    for kind in kinds[:n_faults]:
        study.wait_for_workers(2)
        time.sleep(rng.uniform(0, 2))
        if study.is_complete():
            break
        FAULTS[kind](study, rng.choice(study.running()))
        happened[kind] += 1
        print(f"  {kind}; {sum(t.state.is_finished() for t in trials_below(place))} trials are finished", flush=True)
    study.finish()
    return happened, study.problems()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        place = Path(folder) / "study"
        place.mkdir()
        with SlurmCluster(Path(folder) / "slurm") as cluster:
            happened, problems = play(cluster, place, given.faults, random.Random(given.seed))
    print(f"--seed {given.seed}: {happened.total()} faults {dict(happened)}: {'; '.join(problems) or 'whole'}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
