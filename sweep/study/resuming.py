"""How to resume a study that was loaded: read its command from its record, which somebody else may have written."""

import shlex
from collections.abc import Sequence

from sweep.config.overrides import is_hydras, key_of, known_command, setting
from sweep.config.stored_overrides import refuse_resolvers, stored_overrides
from sweep.tracking import journal
from sweep.tracking.folders import StudyFolder
from sweep.utils.command_line import hydra_arguments
from sweep.utils.errors import ConfigError

_KEY = "study"
_SETTINGS = ("hydra.sweeper.", "hydra/sweeper/")
_OURS = ("output_dir", "hydra.sweeper.storage", "hydra.sweeper.study_name", "hydra.mode", "hydra.searchpath")


def recorded_call(folder: StudyFolder, given: Sequence[str]) -> list[str]:
    """Return the overrides that resume a study, as for `run_study`: those of its recorded command, then the given ones.

    Args:
        folder: the study's folder.
        given: the caller's own overrides, which replace recorded ones.

    Raises:
        ConfigError: the record names no command, or its command sets something that only the caller may set.
    """
    start = journal.last_of(folder.run.journal, "start") or {}
    command = known_command((start.get("tags") or {}).get("command"))
    words = [] if command is None else shlex.split(command)
    if words[2:3] != ["sweep.run"]:
        raise ConfigError(_KEY, f"the record of '{folder.path.name}' names no command; call run_study as before")
    own = set(map(key_of, given))
    recorded = [o for o in hydra_arguments(words[3:]).overrides if key_of(o) not in own]
    settings = [o for o in recorded if key_of(o).startswith(_SETTINGS) and key_of(o) not in _OURS]
    for override in settings:
        refuse_resolvers(override, _KEY)
    others = [o for o in recorded if not is_hydras(o)]
    kept = stored_overrides([*others, *(o for o in recorded if key_of(o) == "hydra.searchpath")], given, _KEY)
    missing = [o for o in recorded if o not in (*settings, *kept) and key_of(o) not in _OURS]
    if missing:
        problem = f"its command sets {missing[0]}, which only your own call may; if you want that, give it"
        raise ConfigError(_KEY, f"{problem}: resume(overrides=[{missing[0]!r}])")
    output_dir = setting("output_dir", str(folder.path.parent.parent))
    return [*([] if "output_dir" in own else [output_dir]), *settings, *kept, *given]
