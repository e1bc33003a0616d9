"""Errors that you can act on, each with a message of one clear line."""

import errno
import math
import re
import signal
from collections.abc import Sequence

from sweep.utils.passwords import without_passwords

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # numbers of an OSError

TRACEBACK_HINT = " (HYDRA_FULL_ERROR=1 shows the traceback)"

# Lines that Hydra and OmegaConf append for programmers.
_FOR_PROGRAMMERS = re.compile(r"^\s*(full_key:|reference_type=|object_type=|See https?:).*$", re.MULTILINE)


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return the message of `error` on one line of at most `limit` characters, without passwords.

    Return the name of its type if the message is empty.
    """
    if isinstance(error, DeletedInStore):
        return str(error)  # it ends with a command, which must not be cut
    try:
        text = str(error)
    except Exception:  # of any kind, in a class of the user's own
        text = ""
    words = without_passwords(" ".join(_FOR_PROGRAMMERS.sub("", text).split())) or type(error).__name__
    return words if len(words) <= limit else words[: limit - 1] + "…"


class SweepError(Exception):
    """An error that is shown without a traceback. The process exits with `exit_status`."""

    exit_status = 1


class ConfigError(SweepError):
    """The config, or a file that it names, cannot be used. `key` is the config key to change."""

    exit_status = 2

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(key, problem)  # both in `args`, so that it survives pickling between processes
        self.key = key
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}"


class BeingTrained(ConfigError):
    """Another process is training the trial in that folder."""


class Damaged(ConfigError):
    """A file was changed since sweep wrote it.

    Attributes:
        path: the file.
        reason: what is wrong with it.
        remedy: what to do, and what is still usable.
        line: the first damaged line, counted from 1; None if it is unknown.
    """

    state = "is damaged"

    def __init__(self, key: str, path: object, reason: str, remedy: str, line: int | None = None) -> None:
        where = f"'{path}'" if line is None else f"line {line} of '{path}'"
        super().__init__(key, f"{where} {self.state} ({reason}); {remedy}")
        self.args = (key, path, reason, remedy, line)  # so that it survives pickling
        self.path, self.reason, self.remedy, self.line = path, reason, remedy, line


class DamagedJournal(Damaged):
    """A journal was changed since sweep wrote it. `line` is None if lines are missing at its end."""

    exit_status = 1

    def __init__(
        self, path: object, line: int | None, reason: str, remedy: str = "put back a copy of the file"
    ) -> None:
        super().__init__("journal", path, reason, remedy, line)
        self.args = (path, line, reason, remedy)

    def with_remedy(self, remedy: str) -> "DamagedJournal":
        """Return the same error with another remedy."""
        return type(self)(self.path, self.line, self.reason, remedy)


class UnendedJournal(DamagedJournal):
    """A journal lacks its end, but the run has files that are written then: its process died, or lines are lost."""

    state = "has no end"


class Unsent(SweepError):
    """A study succeeded, but a damaged record keeps some of it from being sent to MLflow."""


class DeletedInStore(SweepError):
    """The run, or its experiment, was deleted in MLflow. The message ends with the command that restores it."""


class Diverged(SweepError):
    """A loss became infinite or NaN at `step`, an optimizer update counted from 1, whose learning rate was `lr`.

    A training function may raise it too, without `lr` if it has none. Its `step` is the epoch that it would report.
    """

    def __init__(
        self, metric: str, value: float, step: int, lr: float | None = None, advice: str = "lower the learning rate"
    ) -> None:
        super().__init__(metric, value, step, lr, advice)
        self.advice = advice
        self.metric = metric
        self.value = value
        self.step = step
        self.lr = lr

    def __str__(self) -> str:
        where = f"at step {self.step}" + ("" if self.lr is None else f" with lr {self.lr:.3g}")
        return f"diverged: {self.metric} is {self.value} {where}; {self.advice}"


class TrainingFailed(SweepError):
    """The user's model, or torch, raised an error while training. `step` is the update, counted from 1."""

    def __init__(self, reason: str, step: int) -> None:
        super().__init__(reason, step)
        self.reason = reason
        self.step = step

    def __str__(self) -> str:
        return f"training failed at step {self.step}: {self.reason}{TRACEBACK_HINT}"


class FunctionFailed(SweepError):
    """A training function of the user's own failed, or called its trial in a way that the contract does not allow."""

    def __init__(self, call: str, reason: str) -> None:
        super().__init__(call, reason)
        self.call = call
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.call}: {self.reason}{TRACEBACK_HINT}"


class TrialTimedOut(SweepError):
    """A trial of a study took longer than `limit_s` seconds, its hydra.sweeper.trial_timeout."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(limit_s)
        self.limit_s = limit_s

    def __str__(self) -> str:
        return f"hydra.sweeper.trial_timeout: the trial took longer than {self.limit_s:g} s; raise it, or train less"


class StudyFailed(SweepError):
    """A study stopped because too many trials failed. `trial` was the first of them, and `folder` is its folder."""

    def __init__(self, study: str, trial: int, reason: str, folder: object) -> None:
        super().__init__(study, trial, reason, folder)
        self.study = study
        self.trial = trial
        self.reason = reason
        self.folder = folder

    def __str__(self) -> str:
        return f"study {self.study}: too many trials fail; the first, trial {self.trial}: {self.reason} ({self.folder})"


class WorkersLost(SweepError):
    """A study stopped because its workers ended again and again without getting further. `reason`: of the last one."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"hydra/launcher: workers end without getting further: {self.reason}; the same command resumes the study"


class DiskFull(SweepError):
    """The disk is full. Everything that was recorded before is complete."""

    def __init__(self, reason: str, resume_command: str) -> None:
        super().__init__(reason, resume_command)
        self.reason = reason
        self.resume_command = resume_command

    def __str__(self) -> str:
        return f"output_dir: {self.reason}; make room, then resume it with:  {self.resume_command}"


class Pruned(Exception):
    """The pruner stopped the trial after `epoch`. This is not a failure."""

    def __init__(self, epoch: int) -> None:
        super().__init__(epoch)
        self.epoch = epoch


class Interrupted(KeyboardInterrupt):
    """A signal stopped the trial, and its checkpoint is saved. The exit status is 128 + `signum`, as in a shell."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}"


def is_positive(value: float | None) -> bool:
    """Return whether a number is finite and > 0. None, which means "not set", counts as positive."""
    return value is None or (math.isfinite(value) and value > 0)


def require(holds: bool, key: str, problem: str) -> None:
    """Raise ConfigError unless the condition holds."""
    if not holds:
        raise ConfigError(key, problem)


def one_of(key: str, value: str, choices: Sequence[str]) -> None:
    """Raise ConfigError unless the value is one of the choices."""
    require(value in choices, key, f"'{value}' is unknown; choose one of {', '.join(choices)}")
