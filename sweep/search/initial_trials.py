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
        known.append(_accepted(space, space.defaults(groups)) or {})
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
    accepted = _accepted(space, known)
    if accepted is None:
        raise ConfigError(_KEY, f"{dict(item)} breaks a condition of where")
    for key in item:
        if key in ranges and ranges[key][0] not in accepted:
            raise ConfigError(_KEY, f"{key} is not searched in {dict(item)}, as when.{key} says; leave it out")
    return accepted


def _accepted(space: Space, params: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return those parameters that are searched beside the others; None if they break a condition of `where`.

    All are returned if they are incomplete: the sampler has to choose one before that is known.
    """
    try:
        configuration = space.configuration(lambda name, distribution: params[name])
    except KeyError:
        return dict(params)
    return None if space.broken_condition(configuration) else configuration.params
