"""Record what 20 configurations come to, for tests/training/test_reference.py; on a commit whose numbers are right:

    python tests/campaigns/record_reference.py tests/reference/curves.json

The file holds, for one trial after another and for packed trials, the sampled parameters and the curves of each trial.
A change of the code that is to change no number leaves the test passing; one that changes numbers on purpose records
them anew, and says so in the changelog.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from processes import quick, recorded

from sweep.tracking.folders import StudyFolder

N_TRIALS = 20
KINDS = {"sequential": 1, "packed": 8}  # and their `hydra.sweeper.pack`
CONFIG = ("tracking=off", "data.n=200", "trainer.epochs=3", "trainer.threads=1")
_SEARCH = (
    *("-m", *CONFIG, "hydra.sweeper.study_name=s"),
    *("optimizer=sgd,momentum,adam,adamw,rmsprop", "scheduler=constant,cyclic,onecycle,cosine"),
    *("hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=1", "hydra/sweeper/pruner=none"),
    f"hydra.sweeper.n_trials={N_TRIALS}",
)


def trials(cwd: Path, kind: str, *overrides: str) -> list[dict[str, Any]]:
    """Search in an empty folder. Return the parameters and the curves of each trial."""
    done = quick(cwd, *_SEARCH, f"hydra.sweeper.pack={KINDS[kind]}", *overrides)
    assert done.returncode == 0, done.stderr
    folder = StudyFolder(cwd / "outputs" / "studies" / "s")
    storage = JournalStorage(JournalFileBackend(str(folder.storage)))
    stored = optuna.load_study(study_name="s", storage=storage).get_trials(deepcopy=False)
    found = []
    for trial in stored:
        curves = {name: curve for name, curve in recorded(folder.trial(trial.number)).items() if "step" not in name}
        curves = {name: curve for name, curve in curves.items() if not name.startswith("time/")}
        found.append({"params": trial.params, "value": trial.value, "curves": curves})
    return found


if __name__ == "__main__":
    (file,) = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        reference = {}
        for kind in KINDS:
            cwd = Path(folder) / kind
            cwd.mkdir()
            reference[kind] = trials(cwd, kind)
    Path(file).write_text(json.dumps(reference) + "\n")
