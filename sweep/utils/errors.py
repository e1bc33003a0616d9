"""Errors that a user can act on: each is one clear line."""

import errno
import math
import re

from sweep.utils.passwords import without_passwords

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # numbers of an OSError

TRACEBACK_HINT = " (HYDRA_FULL_ERROR=1 shows the traceback)"

# What Hydra and OmegaConf append for programmers.
_FOR_PROGRAMMERS = re.compile(r"^\s*(full_key:|reference_type=|object_type=|See https?:).*$", re.MULTILINE)


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of `error` on one line of at most `limit` characters, without passwords; its type if empty."""
    if isinstance(error, DeletedInStore):
        return str(error)  # it ends with a command, which has to stay whole
    words = without_passwords(" ".join(_FOR_PROGRAMMERS.sub("", str(error)).split())) or type(error).__name__
    return words if len(words) <= limit else words[: limit - 1] + "…"


class SweepError(Exception):
    """Shown without a traceback; the process ends with `exit_status`."""

    exit_status = 1


class ConfigError(SweepError):
    """The configuration, or a file it names, cannot be used. `key` is the config key to change."""

    exit_status = 2

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(key, problem)  # both in `args`, so that it survives pickling between processes
        self.key = key
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}"


class BeingTrained(ConfigError):
    """Another process trains the trial in that folder."""


class Damaged(ConfigError):
    """A file that is read back is not as it was written. remedy: what is still usable, and what to do. line: the first
    damaged one, from 1, where it is known."""

    def __init__(self, key: str, path: object, reason: str, remedy: str, line: int | None = None) -> None:
        where = f"'{path}'" if line is None else f"line {line} of '{path}'"
        super().__init__(key, f"{where} is damaged ({reason}); {remedy}")
        self.args = (key, path, reason, remedy, line)  # so that it survives pickling
        self.path, self.reason, self.remedy, self.line = path, reason, remedy, line


class DamagedJournal(Damaged):
    """A journal is not as it was written. line: None if lines are missing at its end."""

    exit_status = 1

    def __init__(
        self, path: object, line: int | None, reason: str, remedy: str = "put back a copy of the file"
    ) -> None:
        super().__init__("journal", path, reason, remedy, line)
        self.args = (path, line, reason, remedy)

    def with_remedy(self, remedy: str) -> "DamagedJournal":
        """The same, for one who knows what else can be done."""
        return DamagedJournal(self.path, self.line, self.reason, remedy)


class Unsent(SweepError):
    """A study went well, but MLflow cannot be told all of it: a record is damaged."""


class DeletedInStore(SweepError):
    """MLflow's users deleted what a run would be written to. The line ends with the command that brings it back."""


class Diverged(SweepError):
    """A loss left the finite numbers at `step` (an optimizer update, from 1), taken with learning rate `lr`."""

    def __init__(
        self, metric: str, value: float, step: int, lr: float, advice: str = "lower the learning rate"
    ) -> None:
        super().__init__(metric, value, step, lr, advice)
        self.advice = advice
        self.metric = metric
        self.value = value
        self.step = step
        self.lr = lr

    def __str__(self) -> str:
        where = f"at step {self.step} with lr {self.lr:.3g}"
        return f"diverged: {self.metric} is {self.value} {where}; {self.advice}"


class TrainingFailed(SweepError):
    """Something raised while training: the user's model, or torch. `step` is the update it happened in, from 1."""

    def __init__(self, reason: str, step: int) -> None:
        super().__init__(reason, step)
        self.reason = reason
        self.step = step

    def __str__(self) -> str:
        return f"training failed at step {self.step}: {self.reason}{TRACEBACK_HINT}"


class StudyFailed(SweepError):
    """So many trials of a study failed that it stopped; `trial` was the first of them, in `folder`."""

    def __init__(self, study: str, trial: int, reason: str, folder: object) -> None:
        super().__init__(study, trial, reason, folder)
        self.study = study
        self.trial = trial
        self.reason = reason
        self.folder = folder

    def __str__(self) -> str:
        return f"study {self.study}: too many trials fail; the first, trial {self.trial}: {self.reason} ({self.folder})"


class DiskFull(SweepError):
    """A write found no room. What was recorded before is whole."""

    def __init__(self, reason: str, resume_command: str) -> None:
        super().__init__(reason, resume_command)
        self.reason = reason
        self.resume_command = resume_command

    def __str__(self) -> str:
        return f"output_dir: {self.reason}; make room and go on with:  {self.resume_command}"


class Pruned(Exception):
    """A study stops a trial that is not worth going on with. No error: the trial ends well, and early."""

    def __init__(self, epoch: int) -> None:
        super().__init__(epoch)
        self.epoch = epoch


class Interrupted(KeyboardInterrupt):
    """A signal stopped the trial after its checkpoint was saved; the exit status is 128 + `signum`, as in a shell."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def is_positive(value: float | None) -> bool:
    """Return whether a number is finite and > 0. None, for "not set", counts as such."""
    return value is None or (math.isfinite(value) and value > 0)


def require(holds: bool, key: str, problem: str) -> None:
    """Raise ConfigError unless it holds."""
    if not holds:
        raise ConfigError(key, problem)


def one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless the value is one of the choices."""
    require(value in choices, key, f"'{value}' is unknown; choose one of {', '.join(choices)}")
