"""The identity of a study: its name, and the facts that must not change while it grows."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from sweep.config.function_node import shown_call
from sweep.config.outputs import folder_name
from sweep.config.schema import named_call, own_defaults
from sweep.config.task_node import AUTO_TASK
from sweep.search.custom import KEY as CUSTOM
from sweep.search.ranges import range_text
from sweep.search.settings import StudySettings
from sweep.search.space import Space
from sweep.utils.errors import ConfigError

IDENTITY = "identity"  # the user attribute of a study that holds the facts of `identity`

# Keys that set where and how a trial runs, not what it is. They may change within a study.
_INCIDENTAL = {
    "output_dir",
    "experiment_name",
    "resume",
    "from_study",
    "overrides",
    "composed",
    "choices",
    "search",
    "lr_search",
    "lr_range",
    "bounds",
    "tracking",
    "compare",
    "trainer.device",
    "trainer.threads",
    "trainer.checkpoint_interval_s",
}
# What studies of earlier versions did, which do not have these keys. The other keys' defaults are `own_defaults`.
_BEFORE_TASKS = {f"task.{key}": value for key, value in AUTO_TASK.items()}
_BEFORE_TABLES = {  # keys of conf/data/table.yaml
    "data.drop": None,
    "data.categorical": None,
    "data.max_one_hot": 32,
    "data.missing": "error",
    "data.dates": None,
    "data.weight": None,
}
_BEFORE: dict[str, Any] = {**_BEFORE_TASKS, **_BEFORE_TABLES, "hydra.sweeper.folds": 1}
_NAMING = ("optimizer", "scheduler", "model", "data")
_SETTINGS = ("objective", "direction", "seeds", "folds", "enqueue", "defaults_first")
_LONGEST_NAME = 120
USUAL_SAMPLER = "optuna.samplers.TPESampler"


def study_name(settings: StudySettings, space: Space, choices: Mapping[str, str | None], plain: Sequence[str]) -> str:
    """Return the configured name, or one made of the chosen options, with a digest of the other overrides if any.

    So the same command always names the same study.

    Args:
        settings: the study's settings.
        space: its search space.
        choices: the option of each group in the default configuration.
        plain: the overrides that every trial has.

    Raises:
        ConfigError: the configured name is not a valid folder name.
    """
    if settings.study_name is not None:
        return checked_name("hydra.sweeper.study_name", settings.study_name)
    application = space.composer.application
    call = application.name if application else named_call(space.composer.base(space.configured_groups()).config)
    parts = [] if call is None else [shown_call(call)]
    parts += [
        "+".join(map(str, space.groups[group].choices)) if group in space.groups else str(choices.get(group))
        for group in _NAMING
        if call is None or group in space.groups or choices.get(group) is not None
    ]
    others = [
        o
        for o in plain
        if o.partition("=")[0] not in (*_NAMING, "output_dir") and not o.startswith(("tracking", "compare."))
    ]
    others += [f"{key}={range_text(distribution)}" for key, distribution in space.swept.items()]
    others += [f"{g}={d.choices}" for g, d in space.groups.items() if g not in _NAMING]
    defaults = StudySettings()
    others += [
        f"{key}={getattr(settings, key)}" for key in _SETTINGS if getattr(settings, key) != getattr(defaults, key)
    ]
    sampler = str(settings.sampler["_target_"])
    if sampler != USUAL_SAMPLER:
        parts.append(sampler.rpartition(".")[2].removesuffix("Sampler").removeprefix("create_").lower())
    name = "-".join(parts)
    if others or len(name) > _LONGEST_NAME or name != folder_name(name):
        digest = hashlib.sha256("\n".join([*sorted(others), name]).encode()).hexdigest()[:6]
        return f"{folder_name(name)[: _LONGEST_NAME - 7]}-{digest}"
    return name


def checked_name(key: str, name: str) -> str:
    """Return the name. Raise ConfigError, about `key`, if it is not a valid folder name."""
    if not re.fullmatch(r"[\w+@,=-][\w.+@,=-]*", name) or len(name) > _LONGEST_NAME:
        raise ConfigError(key, f"'{name}' cannot name a folder; use letters, digits, and any of _ - + . @ , =")
    return name


def identity(settings: StudySettings, space: Space) -> dict[str, str]:
    """Return every fact that the trials of a study depend on, as JSON by config key.

    The sampler and the pruner are not among them: they may change within a study.
    """
    facts: dict[str, str] = {}
    first = space.first_groups()
    for options in space.each_group_alone():
        resolves = space.composer.application is None  # another application's may need the job to be resolved
        plain = OmegaConf.to_container(space.composer.base(options).config, resolve=resolves)
        searched = space.ranges(options).keys() - space.conditions(options).keys()  # without those that may be left out
        suffix = "".join(f" ({group}={option})" for group, option in options.items() if option != first.get(group))
        assert isinstance(plain, dict)
        for key, value in _flat("", plain):
            if key == "trainer.monitor" and value == (space.composer.monitor or "val/loss"):
                value = None  # it follows from the objective
            if key == "trainer.direction" and value == space.composer.direction:
                value = None
            if key not in searched and facts.get(key) != json.dumps(value):
                facts[f"{key}{suffix}"] = json.dumps(value)
    facts |= {f"search.{name}": range_text(distribution) for name, distribution in space.named_ranges().items()}
    if space.custom is not None:
        facts[CUSTOM] = json.dumps(space.custom)
    own = {f"hydra.sweeper.{key}": getattr(settings, key) for key in _SETTINGS}
    return facts | {key: json.dumps(value) for key, value in own.items()}


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return one text for each fact that differs, such as "trainer.epochs = 60, now 20".

    A side that lacks a key is from a version without it, and stands for what that version did.
    """
    keys = [*before, *(key for key in now if key not in before)]
    return [
        f"{key} = {before.get(key, 'unset')}, now {now.get(key, 'unset')}"
        for key in keys
        if before.get(key, meant := _without(key)) != now.get(key, meant)
    ]


def _without(key: str) -> str | None:
    """Return the fact that a study without this key stands for; None if every version has recorded the key."""
    known, name = {**own_defaults(), **_BEFORE}, key.partition(" ")[0]
    return json.dumps(known[name]) if name in known else None


def only_one_run(attrs: Mapping[str, Any]) -> str | None:
    """Return a note that `from_study` trains only one of several runs; None if the study's trials have one run each.

    Args:
        attrs: the user attributes of the study.
    """
    facts = attrs.get(IDENTITY, {})
    n_seeds, n_folds = (json.loads(facts.get(f"hydra.sweeper.{key}", "1")) for key in ("seeds", "folds"))
    parts = [f"the first of its {n_seeds} seeds alone"] if n_seeds > 1 else []
    parts += [f"on the whole training split instead of {n_folds} folds"] if n_folds > 1 else []
    if not parts:
        return None
    return f"trains {', '.join(parts)}, so with another value: that of the study is their mean"


def _flat(prefix: str, node: Any) -> list[tuple[str, Any]]:
    """Return the values of a node by full config key, without the incidental ones."""
    if prefix in _INCIDENTAL:
        return []
    if not isinstance(node, dict) or not node:
        return [(prefix, node)]
    return [leaf for key, child in node.items() for leaf in _flat(f"{prefix}.{key}" if prefix else str(key), child)]
