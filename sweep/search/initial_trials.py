"""The initial trials of a study, which are not sampled: the defaults, then those that you enqueue."""

from collections.abc import Mapping
from typing import Any

from sweep.search.ranges import contains, on_step, range_text
from sweep.search.settings import StudySettings
from sweep.search.space import Space
from sweep.utils.errors import ConfigError

_KEY = "hydra.sweeper.enqueue"


def initial_params(settings: StudySettings, space: Space, groups: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the parameters of each initial trial, by Optuna's names. The sampler chooses those that are missing.

    Args:
        settings: of the study.
        space: of the study.
        groups: the option of each searched group, unless an enqueued trial gives another.

    Raises:
        ConfigError: an enqueued value is not searched, lies outside its range, or breaks a condition.
    """
    known = []
    if settings.defaults_first:
        defaults = space.defaults(groups)
        known.append(defaults if _meets_conditions(space, defaults) else {})
    return [*known, *(_enqueued(space, groups, item) for item in settings.enqueue)]


def _enqueued(space: Space, groups: Mapping[str, str], item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of one enqueued trial, by Optuna's names. Raises ConfigError."""
    chosen = dict(groups)
    for group, distribution in space.groups.items():
        if group in item:
            chosen[group] = str(item[group])
            if chosen[group] not in distribution.choices:
                raise ConfigError(
                    _KEY, f"{group} = {chosen[group]} is not searched; choose one of: {range_text(distribution)}"
                )
    ranges = space.ranges(chosen)
    known: dict[str, Any] = dict(chosen)
    for key, value in item.items():
        if key in space.groups:
            continue
        if key not in ranges:
            raise ConfigError(_KEY, f"'{key}' is not searched; choose one of: {', '.join([*space.groups, *ranges])}")
        name, distribution = ranges[key]
        if not contains(distribution, value):
            value = space.as_sampled(chosen, key, distribution, value)
        if not contains(distribution, value):
            raise ConfigError(_KEY, f"{key} = {value!r} lies outside its range, {range_text(distribution)}")
        known[name] = on_step(distribution, value)
    if not _meets_conditions(space, known):
        raise ConfigError(_KEY, f"{dict(item)} breaks a condition of where")
    return known


def _meets_conditions(space: Space, params: Mapping[str, Any]) -> bool:
    """Return whether the parameters meet the conditions, or are incomplete."""
    try:
        configuration = space.configuration(lambda name, distribution: params[name])
    except KeyError:  # the sampler has to choose one first
        return True
    return space.broken_condition(configuration) is None
