"""The end of a trial's record: how it ended, in the journal and so in MLflow."""

import traceback
from collections.abc import Mapping

from sweep.tracking.folders import RunFolder
from sweep.tracking.journal import Journal
from sweep.tracking.start import Membership
from sweep.utils.errors import DISK_FULL, Diverged, Pruned
from sweep.utils.files import write_atomic
from sweep.utils.passwords import without_passwords
from sweep.utils.terminal import safe


def write_end(
    journal: Journal,
    run: RunFolder,
    error: BaseException | None,
    member: Membership | None,
    values: Mapping[str, float] | None = None,
) -> None:
    """error: what ended the trial early. values: what it came to, by metric name.

    MLflow's status is KILLED for one that may be resumed. In a study the tag `state` is Optuna's, to which a trial that
    diverged is one that was pruned, so that the sampler learns from it.
    """
    status, state, tags = "FINISHED", "COMPLETE", {}
    no_room = isinstance(error, OSError) and error.errno in DISK_FULL
    if isinstance(error, KeyboardInterrupt) or (no_room and member is not None):  # the study will go on with it
        journal.event("end", status="KILLED", steps=[], values={}, tags={}, artifacts=[])
        return
    if isinstance(error, Pruned):
        state, tags = "PRUNED", {"pruned.epoch": str(error.epoch)}
    elif error is not None:
        status, state, tags = "FAILED", "FAIL", {"error": without_passwords(f"{type(error).__name__}: {error}")}
        if isinstance(error, Diverged):
            tags |= {"diverged": "true", "diverged.step": str(error.step), "diverged.lr": str(error.lr)}
            if member is not None:
                status, state = "FINISHED", "PRUNED"
        else:
            write_atomic(run.error, safe("".join(traceback.format_exception(error))))
    if member is not None:
        tags["state"] = state
    columns = {name: [value] for name, value in (values or {}).items()}
    steps = [0] if columns else []  # step 0: bars in MLflow
    artifacts = [run.config.name, run.overrides.name, run.error.name]
    if member is None:
        artifacts += [run.best.name, run.curves.name, run.diff.name]
    journal.event("end", status=status, steps=steps, values=columns, tags=tags, artifacts=artifacts)
