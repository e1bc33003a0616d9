"""Where a study was started: what its workers take over from the process that launches them.

Joblib keeps its worker processes for the next study. They would otherwise read relative paths, import modules and trust
code as it was when they were started.
"""

import os
import sys
from dataclasses import dataclass

from sweep.config.targets import TRUSTED


@dataclass(frozen=True)
class Origin:
    """The process that launches the workers of a study.

    Attributes:
        pid: its id.
        directory: its working directory.
        import_path: its `sys.path`.
        trusted: the targets that its user has vouched for, as in SWEEP_TARGETS.
    """

    pid: int
    directory: str
    import_path: tuple[str, ...]
    trusted: str

    @classmethod
    def of_this_process(cls) -> "Origin":
        """Describe this process."""
        return cls(os.getpid(), os.getcwd(), tuple(sys.path), os.environ.get(TRUSTED, ""))

    def take_over(self) -> None:
        """Trust here what was trusted there. A child of that process also takes over its directory and import path."""
        is_child = os.getppid() == self.pid
        if is_child or self.trusted:
            os.environ[TRUSTED] = self.trusted
        if is_child:
            os.chdir(self.directory)
            sys.path[:] = self.import_path
