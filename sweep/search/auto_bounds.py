"""`bounds=auto`: a study that searches learning rates around those that range tests suggest (docs/lr_range.md)."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from math import inf
from typing import Any

import optuna

from sweep.config.schema import Config, validate
from sweep.search.composer import Starts, chosen
from sweep.search.settings import StudySettings
from sweep.search.space import Space
from sweep.storage.lock import StudyLock
from sweep.storage.storage import open_storage
from sweep.tracking.folders import StudyFolder
from sweep.training.range_test import Suggestion, suggest
from sweep.trial.range_test import lr_keys, range_test
from sweep.trial.remembered import RememberedData
from sweep.utils.errors import ConfigError, SweepError
from sweep.utils.wording import short

STARTS = "bounds"  # user attribute of the study in which the suggestions are stored
_RATES = ("scheduler.base_lr", "scheduler.max_lr", "optimizer.lr")
_AROUND = 5.0  # the range reaches this factor below the seeds' lowest value and above their highest
_NO_EFFECT = (  # keys on which the result of a range test does not depend
    "scheduler",
    "lr_bounds",
    "lr_search",
    "search",
    "where",
    "when",
    "bounds",
    "choices",
    "overrides",
    "composed",
)


def stored_starts(settings: StudySettings, name: str, folder: StudyFolder, uid: str) -> Starts | None:
    """Return what the range tests suggested when the study was started; None if there is no such study yet.

    Args:
        settings: of the study.
        name: of the study.
        folder: of the study.
        uid: the user attribute that every started study has.

    Raises:
        ConfigError: the study was started without `bounds=auto`, or its stored suggestions are damaged.
    """
    nothing_yet = not folder.storage.exists() if settings.storage is None else settings.dry_run
    if nothing_yet:
        return None
    storage = open_storage(settings.storage, folder)
    with StudyLock(settings.storage, folder):
        if name not in [study.study_name for study in storage.get_all_studies()]:
            return None
        attributes = optuna.load_study(study_name=name, storage=storage).user_attrs
    if STARTS not in attributes and uid in attributes:
        raise ConfigError(
            "bounds", f"study '{name}' was started without it; leave it out, or set another hydra.sweeper.study_name"
        )
    if STARTS in attributes and not _are_starts(attributes[STARTS]):
        problem = f"the range tests that are stored with study '{name}' are damaged"
        raise ConfigError("bounds", f"{problem}; set another hydra.sweeper.study_name")
    return attributes.get(STARTS)


def _are_starts(stored: Any) -> bool:
    """Return whether `tested_starts` could have returned the value.

    The storage may be somebody else's: a string instead of a number could be an interpolation that OmegaConf resolves.
    """
    if not isinstance(stored, dict) or not all(isinstance(found, dict) for found in stored.values()):
        return False
    return all(key in _RATES and _are_bounds(bounds) for found in stored.values() for key, bounds in found.items())


def _are_bounds(bounds: Any) -> bool:
    """Return whether the value is {value, low, high} with numbers, where 0 < low <= high."""
    if not isinstance(bounds, dict) or set(bounds) != {"value", "low", "high"}:
        return False
    if not all(type(bound) in (int, float) and 0 < bound < inf for bound in bounds.values()):
        return False
    return bounds["low"] <= bounds["high"]


def tested_starts(space: Space, say: Callable[[str], object]) -> Starts:
    """Run range tests for each choice of options that searches learning rates, and return what they suggest.

    Choices for which a test would be the same share one.

    Args:
        space: of the study.
        say: is called with a line of text for each choice.

    Raises:
        ConfigError: no learning rate is searched, or a test suggests nothing.
    """
    load, suggestions, starts = RememberedData(), dict[str, Suggestion](), {}
    for groups, keys in _searched(space):
        config = validate(space.composer.compose(groups, {}))
        what = _tested(config)
        if what not in suggestions:
            try:
                suggestions[what] = suggest(range_test(config, load))
            except SweepError as error:
                options = f" with {' '.join(f'{g}={o}' for g, o in groups.items())}" if groups else ""
                raise ConfigError(
                    "bounds", f"auto finds no learning rates{options} ({error}); leave it out, and give ranges yourself"
                ) from error
        starts[chosen(groups)] = _starts(suggestions[what], keys)
        say(_line(groups, starts[chosen(groups)]))
    if not starts:
        raise ConfigError("bounds", "auto finds no learning rate among the searched keys; leave it out")
    return starts


def covers(starts: Starts, space: Space) -> bool:
    """Return whether `starts` covers every learning rate that is searched, and none that the options do not have."""
    if any(not set(keys) <= set(starts.get(chosen(groups), {})) for groups, keys in _searched(space)):
        return False
    bases = {chosen(groups): space.composer.base(groups) for groups in space.every_choice()}
    return all(bases[choice].has(key) for choice, found in starts.items() if choice in bases for key in found)


def _searched(space: Space) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Yield each choice of options that searches learning rates, and the rates' keys.

    Rates that the command line sweeps are left out: their ranges are given.
    """
    for groups in space.every_choice():
        ranges = space.ranges(groups)
        scheduler = space.composer.base(groups).config.scheduler
        keys = [key for key in lr_keys(scheduler) if key in ranges and key not in space.swept]
        if keys:
            yield groups, keys


def _tested(config: Config) -> str:
    """Return everything that the result of a range test depends on, as JSON."""
    plain = asdict(replace(config, optimizer={k: v for k, v in config.optimizer.items() if k != "lr"}))
    return json.dumps({k: v for k, v in plain.items() if k not in _NO_EFFECT}, sort_keys=True, default=str)


def _starts(suggestion: Suggestion, keys: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return for each key the value where the search starts, and its range.

    A range ends at the rate at which the loss diverges, unless the suggested value is higher.
    """
    starts = {}
    for key in keys:
        interval = suggestion.of(key)
        high = interval.high * _AROUND
        if suggestion.diverged_lr is not None:
            high = min(high, suggestion.diverged_lr.value)
        low, high = (float(f"{bound:.2g}") for bound in (interval.low / _AROUND, max(high, interval.value)))
        starts[key] = {"value": interval.value, "low": low, "high": high}
    return starts


def _line(groups: Mapping[str, str], starts: Mapping[str, Mapping[str, float]]) -> str:
    where = [f"{group}={option}" for group, option in groups.items()]
    parts = [f"{key} {short(s['value'])} ({short(s['low'])} to {short(s['high'])})" for key, s in starts.items()]
    return "  ".join(["bounds=auto:", *where, *parts])
