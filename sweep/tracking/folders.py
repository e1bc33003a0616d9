"""The folders of runs and studies. Only this module defines the names of the files in them."""

import fcntl
import itertools
import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from sweep.config.outputs import BEST, require_begun_study
from sweep.utils.errors import ConfigError
from sweep.utils.paths import absolute, refuse_links_in


class Busy(Exception):
    """Another process holds the lock."""


class RunFolder:
    """The paths of all files in one run's folder. `create` makes the folder itself."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.config = self.path / "config.yaml"  # composed and resolved
        self.overrides = self.path / "overrides.yaml"  # as given on the command line
        self.journal = self.path / "journal.jsonl"
        self.checkpoint = self.path / "checkpoint.pt"  # to resume from
        self.best = self.path / "best.pt"  # weights of the best epoch
        self.signature = self.path / "model.yaml"  # what the model takes and returns; MLflow's model is made of it
        self.predictions = self.path / "predictions.parquet"  # of the test split
        self.curves = self.path / "curves.png"
        self.diff = self.path / "uncommitted.diff"
        self.artifacts = self.path / "artifacts"  # files that a training function logs
        self.error = self.path / "error.txt"  # the traceback of a trial that failed
        self.sync_state = self.path / "mlflow.json"
        self.log = self.path / "run.log"  # Hydra's, of a run that is a job of its own
        self.lock_file = self.path / ".lock"
        self.copy_mark = self.path / ".copy"  # the files are a copy: the machine that trained the run uploads it
        self.copied = self.path / ".copied"  # how many bytes of the journal a copy elsewhere has
        self._upload_lock = self.path / ".mirror.lock"

    @property
    def written(self) -> list[Path]:
        """Every file and folder that a run writes, except locks, which have no content."""
        files = [self.config, self.overrides, self.journal, self.checkpoint, self.curves, self.diff]
        return [*files, *self.of_model, self.artifacts, self.error, self.sync_state, self.log]

    @property
    def of_model(self) -> list[Path]:
        """The files that describe the trained model. A training function writes them, and logs them as artifacts."""
        return [self.best, self.predictions, self.signature]

    def create(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    def lock(self) -> AbstractContextManager[None]:
        """Return the lock to hold while the trial runs, which distinguishes a slow trial from a dead one.

        Entering it raises Busy if another process holds it.
        """
        return _locked(self.lock_file, patience_s=1.0)  # `is_running` holds it for a moment

    def upload_lock(self) -> AbstractContextManager[None]:
        """Return the lock to hold while the journal is uploaded, so that two processes never send it at once.

        Entering it raises Busy if another process holds it.
        """
        return _locked(self._upload_lock)

    def is_running(self) -> bool:
        """Return whether a process holds the trial's lock."""
        return _is_locked(self.lock_file)


class StudyFolder:
    """The paths of all files in one study's folder, `<output_dir>/studies/<name>`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.run = RunFolder(path)  # the parent run: its journal and its upload state
        self.storage = self.path / "optuna.log"  # the embedded storage
        self.trials = self.path / "trials"
        self.workers = self.path / "workers"  # logs of the workers, and the locks they hold while they live
        self.results = self.path / "optimization_results.yaml"
        self.best = self.path / BEST  # the number of the best trial, and the overrides that compose it
        self.option = self.path / "experiment" / "best.yaml"  # the same as an option of the group `experiment`
        self.plots = self.path / "plots"
        self.report = self.path / "report.html"
        self._lock = self.path / ".study.lock"
        self._node_lock = self.path / ".node.lock"

    @property
    def written(self) -> list[Path]:
        """Every file and folder that a study writes, except its storage and its lock."""
        files = [self.run.config, self.run.journal, self.run.sync_state, self.results, self.best, self.option]
        return [*files, self.report, self.plots, self.trials, self.workers]

    def trial(self, number: int, replicate: int | None = None) -> RunFolder:
        """Return the folder of a trial or, if it has several runs, of one of these, counted from 0."""
        folder = self.trials / str(number)
        return RunFolder(folder if replicate is None else folder / f"seed-{replicate}")

    def set_aside(self, number: int, n_failed: int) -> None:
        """Rename the folder of a trial whose `n_failed`-th attempt failed, so that the next one gets a new folder."""
        aside = self.trials / f"{number}.failed-{n_failed}"  # at the same depth, since the journal holds relative paths
        if not aside.exists() and (self.trials / str(number)).exists():
            os.rename(self.trials / str(number), aside)

    def set_lost_aside(self, number: int) -> None:
        """Rename the folder of a trial that began anew on another machine, which had nothing of what is here."""
        asides = (self.trials / f"{number}.lost-{n}" for n in itertools.count(1))
        os.rename(self.trials / str(number), next(path for path in asides if not path.exists()))

    def launch_mark(self, launch: str) -> Path:
        """Return the file of a command that launches workers. A worker that cannot see it has another folder."""
        return self.workers / f"{launch}.command"

    def launch_stop_request(self, launch: str) -> Path:
        """Return the file whose existence asks all workers of a launch, and the command that launched them, to stop."""
        return self.workers / f"{launch}.stop"

    def stop_request(self, number: int) -> Path:
        """Return the path of the file that asks one trial to stop. The trial then waits until it is resumed."""
        return self.workers / f"trial-{number}.stop"

    def is_stopped(self, number: int) -> bool:
        """Return whether the file that asks one trial to stop exists."""
        return self.stop_request(number).exists()

    def stopped_trials(self) -> set[int]:
        """Return the numbers of all trials that have the file that asks one trial to stop."""
        names = os.listdir(self.workers) if self.workers.exists() else []
        return {int(found[1]) for name in names if (found := re.fullmatch(r"trial-(\d+)\.stop", name))}

    def runs(self) -> list[RunFolder]:
        """Return every child run that has begun."""
        begun = [*self.trials.glob("*/journal.jsonl"), *self.trials.glob("*/seed-*/journal.jsonl")]
        return [RunFolder(journal.parent) for journal in begun]

    def with_model(self) -> list[RunFolder]:
        """Return every child run that has a model.yaml: those of trials that were the best when a command ended."""
        name = self.run.signature.name
        return [
            RunFolder(file.parent) for pattern in ("*", "*/seed-*") for file in self.trials.glob(f"{pattern}/{name}")
        ]

    def lock(self) -> AbstractContextManager[None]:
        """Return the lock to hold while claiming trials or beginning the study. Entering it waits without a limit."""
        self.path.mkdir(parents=True, exist_ok=True)
        return _locked(self._lock, patience_s=math.inf)

    def node_lock(self) -> AbstractContextManager[None]:
        """Return the lock of the one worker whose upload process sends the runs of this machine.

        Entering it raises Busy if another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        return _locked(self._node_lock)

    def worker_lock(self, worker: str) -> AbstractContextManager[None]:
        """Return the lock that a worker holds as long as it lives."""
        self.workers.mkdir(parents=True, exist_ok=True)
        return _locked(self.workers / f"{worker}.lock", patience_s=1.0)

    def new_worker(self, name: str) -> str:
        """Return a name that no worker has had: `name`, or `name` with a number. Its lock file is made here.

        Slurm starts a job that it requeues with the number that it had, perhaps on another machine.
        """
        self.workers.mkdir(parents=True, exist_ok=True)
        for n in itertools.count():
            new = f"{name}.{n}" if n else name
            with suppress(FileExistsError):
                os.close(os.open(self.workers / f"{new}.lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
                return new
        raise AssertionError("the loop has no end")

    def live_workers(self) -> set[str]:
        """Return the names of the workers on this machine that are alive."""
        return {path.stem for path in self.workers.glob("*.lock") if _is_locked(path)}

    def worker_lives(self, worker: str) -> bool | None:
        """Return whether a worker on this machine is alive; None if its lock file is not here."""
        path = self.workers / f"{worker}.lock"
        return _is_locked(path) if path.exists() else None


def study_at(study: str | Path, output_dir: str | Path) -> StudyFolder:
    """Return the folder of a study that has begun, finished or not.

    Args:
        study: the study's name, or the path of its folder.
        output_dir: the folder that results go to, for a name.

    Raises:
        ConfigError: there is no such study, or its folder contains links.
    """
    path = Path(study)
    if isinstance(study, str) and len(path.parts) == 1:
        return begun_study(absolute(output_dir), study)
    path = absolute(path)
    if path.parent.name != "studies":
        raise ConfigError("study", f"'{path}' is not the folder of a study, which is <output_dir>/studies/<name>")
    return begun_study(path.parent.parent, path.name)


def begun_study(output_dir: Path, name: str) -> StudyFolder:
    """Return the folder of a study that has begun, finished or not.

    Raises ConfigError if there is no such study, or if its folder contains links.
    """
    require_begun_study(output_dir, name)
    folder = StudyFolder(output_dir / "studies" / name)
    refuse_links_in(folder.path, "study")
    return folder


def _is_locked(path: Path) -> bool:
    """Return whether a process holds the lock. The lock file is not created if it is missing."""
    if not path.exists():
        return False
    try:
        with _locked(path):
            return False
    except Busy:
        return True


@contextmanager
def _locked(path: Path, patience_s: float = 0.0) -> Iterator[None]:
    """Hold an flock, which the kernel releases when the process dies.

    Raises Busy if another process still holds it after `patience_s` seconds.
    """
    deadline = time.monotonic() + patience_s
    with open(path, "a") as file:
        if patience_s == math.inf:
            fcntl.flock(file, fcntl.LOCK_EX)
        while patience_s < math.inf:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Busy(str(path)) from None
                time.sleep(0.02)
        yield
