"""Files that join a run's record after its end, and so its artifacts in MLflow."""

import time
from collections.abc import Sequence

from sweep.tracking import journal
from sweep.tracking.chunks import artifact_names
from sweep.tracking.folders import RunFolder
from sweep.tracking.journal import Journal


def add_artifacts(run: RunFolder, names: Sequence[str]) -> None:
    """Ends the record again as it ended, with further files of the run's folder named; mirrors then send all of them.

    A run whose process died without an end was KILLED. Raises Busy while it runs, OSError where nothing can be written.
    """
    with run.lock(), Journal(run.journal) as record:
        ended = journal.last_end(run.journal)
        before = [] if ended is None else artifact_names(run, ended)
        record.event(
            "end",
            time=time.time_ns() // 1_000_000 if ended is None else ended["time"],
            status="KILLED" if ended is None else ended["status"],
            steps=[],
            values={},
            tags={},
            artifacts=list(dict.fromkeys([*before, *names])),
        )
        record.sync()
