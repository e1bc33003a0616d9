"""Workers that submitit starts as jobs, on Slurm or as processes of this machine.

The launcher's own `launch` waits for all of its jobs, and does not say which they are. Here each job is known by its
id: the pool sees when one ends and submits another, and jobs that still wait in the queue can be cancelled.
"""

import os
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

from sweep.utils.errors import ConfigError, one_line

if TYPE_CHECKING:
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
    from submitit import Job

_OF_EXECUTOR = ("max_num_timeout", "python")  # keys of the launcher that submitit wants before all others
_PENDING, _COMPLETED, _GONE = "PENDING", "COMPLETED", "left the queue"
_UNFINISHED = (
    *(_PENDING, "CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "COMPLETING", "STAGE_OUT"),
    *("REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"),
)
_SHORTEST_S, _LONGEST_S = 1.0, 20.0  # between two questions to Slurm
_LONGER = 1.3
_RESULT_PATIENCE_S = 60.0  # until a file that a node has written is seen on a network's file system


class JobLost(Exception):
    """A job ended without a result: it was cancelled, reached its time limit, or its node died."""


class SubmittedJobs:
    """The jobs of one launcher, which have the numbers that they were submitted with."""

    def __init__(self, launcher: "BaseSubmititLauncher") -> None:
        self._launcher = launcher
        self._jobs: dict[int, Job[JobReturn]] = {}  # those that have not ended
        self._missed_since: dict[int, float] = {}  # by job: since when it has ended well, without a result
        self._queue = _SlurmQueue() if _is_slurm(launcher) else None

    def submit(self, overrides: Sequence[str], numbers: Sequence[int]) -> None:
        """Submit a job for each of the numbers. All are jobs with the same overrides.

        Raises:
            Exception: they cannot be submitted.
        """
        arguments = [([*overrides], "hydra.sweep.dir", n, f"job_id_for_{n}", Singleton.get_state()) for n in numbers]
        jobs = self._executor().map_array(self._launcher, *zip(*arguments, strict=True))
        self._jobs |= dict(zip(numbers, jobs, strict=True))
        if self._queue is not None:
            self._queue.watch(job.job_id for job in jobs)

    def __len__(self) -> int:
        """Return how many jobs have not ended."""
        return len(self._jobs)

    def ended(self) -> dict[int, list[Any] | Exception]:
        """Return what the jobs that have ended since the last call returned, a value for each task, or an error."""
        outcomes = {number: self._outcome(number, job) for number, job in self._jobs.items()}
        found = {number: outcome for number, outcome in outcomes.items() if outcome is not None}
        for number in found:
            del self._jobs[number]
        return found

    def cancel_pending(self) -> None:
        """Cancel the jobs that still wait in Slurm's queue. Others go on."""
        if self._queue is None:
            return
        pending = [job.job_id for job in self._jobs.values() if self._queue.state(job.job_id) == _PENDING]
        if pending:  # one may have begun since: then it is not cancelled
            subprocess.run(["scancel", f"--state={_PENDING}", *pending], capture_output=True, check=False)

    def _outcome(self, number: int, job: "Job[JobReturn]") -> list[Any] | Exception | None:
        """Return how a job ended; None if it has not, or if its result may still come."""
        has_ended = job.done() if self._queue is None else self._queue.has_ended(job.job_id, soon=not _missing(job))
        if not has_ended:  # with a result too: Slurm may have requeued it
            return None
        if missing := _missing(job):
            if self._queue is not None and self._queue.state(job.job_id) == _COMPLETED:
                since = self._missed_since.setdefault(number, time.monotonic())
                if time.monotonic() < since + _RESULT_PATIENCE_S:
                    return None
            return JobLost(self._what_is_left(job, missing[0]))
        try:
            return [returned.return_value for returned in job.results()]
        except Exception as error:
            return error

    def _what_is_left(self, job: "Job[JobReturn]", task: "Job[JobReturn]") -> str:
        """Return a line about a job without a result: its state, and what the task said last."""
        state = "ended" if self._queue is None else self._queue.state(job.job_id)
        said = [line for line in (task.stderr() or "").splitlines() if line.strip()]
        return f"job {job.job_id} {state}" + (f": {one_line(Exception(said[-1]), 160)}" if said else "")

    def _executor(self) -> Any:
        import submitit
        from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

        cluster = "local" if self._queue is None else "slurm"
        general = {field.name for field in fields(BaseQueueConf)}
        given = dict(self._launcher.params)
        folder = given.pop("submitit_folder")
        first = {f"{cluster}_{name}": given.pop(name) for name in _OF_EXECUTOR if name in given}
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **first)
        executor.update_parameters(**{n if n in general else f"{cluster}_{n}": value for n, value in given.items()})
        return executor


def submitted_jobs(launcher: Launcher) -> SubmittedJobs | None:
    """Return what submits the jobs of one of submitit's launchers; None if the launcher is another one."""
    if not type(launcher).__module__.startswith("hydra_plugins.hydra_submitit_launcher"):
        return None
    return SubmittedJobs(launcher)  # pyright: ignore[reportArgumentType]


def _missing(job: "Job[JobReturn]") -> "list[Job[JobReturn]]":
    """Return the tasks of a job that have left no result."""
    with suppress(OSError):
        job.paths.folder.chmod(job.paths.folder.stat().st_mode)  # so that NFS looks for new files
    return [task for n in range(job.num_tasks) if not (task := job.task(n)).paths.result_pickle.exists()]


def _is_slurm(launcher: Launcher) -> bool:
    return "slurm" in type(launcher).__name__.lower()


class _SlurmQueue:
    """The states of jobs as squeue prints them.

    submitit itself asks sacct, which not every cluster has, and up to ten minutes late. Slurm is asked often while jobs
    change, and less often while they do not.
    """

    def __init__(self) -> None:
        self._states: dict[str, str] = {}  # by job, as of the last answer
        self._pause_s, self._asked_at = _SHORTEST_S, 0.0

    def watch(self, jobs: Iterable[str]) -> None:
        """Watch jobs that have just been submitted."""
        self._states |= dict.fromkeys(jobs, _PENDING)
        self._pause_s, self._asked_at = _SHORTEST_S, time.monotonic()

    def state(self, job: str) -> str:
        """Return the state of a job that is watched, as of the last answer."""
        return self._states[job]

    def has_ended(self, job: str, soon: bool) -> bool:
        """Return True if a job will not run any more. `soon`: whether it should have ended by now."""
        if soon:
            self._pause_s = _SHORTEST_S
        if time.monotonic() >= self._asked_at + self._pause_s:
            self._ask()
        return self._states[job] not in _UNFINISHED

    def _ask(self) -> None:
        """Ask for the states of all jobs of this user. If Slurm does not answer, nothing has changed.

        Raises:
            ConfigError: there is no squeue.
        """
        options = ("--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%i|%T")
        own = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}  # they filter
        try:
            asked = subprocess.run(["squeue", *options], capture_output=True, text=True, check=False, env=own)
        except OSError as error:
            raise ConfigError("hydra/launcher", f"cannot ask Slurm for the jobs: squeue: {error.strerror}") from error
        states = self._states
        if asked.returncode == 0:
            answer = dict(line.split("|") for line in asked.stdout.split())
            states = {job: answer.get(job, _GONE) for job in self._states}
        self._pause_s = _SHORTEST_S if states != self._states else min(_LONGEST_S, self._pause_s * _LONGER)
        self._states, self._asked_at = states, time.monotonic()
