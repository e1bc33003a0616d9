"""Make a study's search space from a config and overrides."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Glob, Override
from omegaconf import DictConfig
from optuna.distributions import BaseDistribution, CategoricalDistribution

from sweep.config.overrides import key_of, sets
from sweep.search.batches import TrainingSplits
from sweep.search.composer import Composer
from sweep.search.entries import entries_of
from sweep.search.ranges import distribution_of, options_of, parse_override
from sweep.search.settings import implied_direction, implied_monitor
from sweep.search.space import Space
from sweep.trial.application import Application
from sweep.utils.errors import ConfigError, require

_NOT_A_TRIALS = re.compile(
    r"(search|where|when|lr_search|lr_range|tracking|compare|hydra)(/|\.|$)|(output_dir|experiment_name|resume|from_study|bounds)$"
)
_HYDRAS = re.compile(r"(search|where|when|hydra)(/|\.|$)")  # of the keys of another application


def read_command_line(arguments: Sequence[str]) -> tuple[list[Override], list[str]]:
    """Divide overrides into sweeps, and the others as they were given. Raises ConfigError if one cannot be parsed."""
    parsed = [parse_override(argument, key_of(argument)) for argument in arguments]
    sweeps = [o for o in parsed if o.is_sweep_override()]
    return sweeps, [str(o.input_line) for o in parsed if not o.is_sweep_override()]


def make_space(
    loader: Any,
    master: DictConfig,
    arguments: Sequence[str],
    ranges: Mapping[str, BaseDistribution] | None = None,
    objective: Sequence[str] = ("val/loss",),
    n_folds: int = 1,
    direction: Sequence[str] = ("minimize",),
    application: Application | None = None,
    function: Callable[..., Any] | None = None,
) -> Space:
    """Make the search space of a study.

    Args:
        loader: Hydra's config loader.
        master: the sweep's own config.
        arguments: overrides, as on the command line.
        ranges: further ranges by config key, for keys that the overrides do not set.
        objective: of the study.
        n_folds: on how many folds it trains each configuration.
        direction: of each objective.
        application: another Hydra application that is searched; None for sweep's own.
        function: the training function, if a program gives it as an object.

    Raises:
        ConfigError: an override cannot be parsed, or its key cannot be searched.
    """
    sweeps, plain = read_command_line(arguments)
    own = _HYDRAS if application else _NOT_A_TRIALS
    if application is None:
        plain = [o for o in plain if not sets(o, "bounds")]  # for the study, not for a trial
    groups, swept = _swept(loader, sweeps, own)
    groups |= _groups_of_config(loader, master, {*map(key_of, arguments), *(ranges or ())})
    for key in ranges or ():
        _refuse_unsearchable(key, own)
    prefixes = {o.key_or_group: o.get_key_element().partition(o.key_or_group)[0] for o in sweeps}
    monitor, better = implied_monitor(objective), implied_direction(objective, direction)
    composer = Composer(
        loader,
        master,
        plain,
        prefixes,
        monitor=monitor,
        direction=better,
        application=application,
        function=function,
    )
    splits = TrainingSplits(n_folds)
    return Space(composer, groups, {**swept, **(ranges or {})}, frozenset(map(key_of, plain)), splits)


def _groups_of_config(loader: Any, master: DictConfig, given: Collection[str]) -> dict[str, CategoricalDistribution]:
    """Return the options of each group that the config itself searches, as in `search: {optimizer: sgd,adam}`.

    Those that the command line gives are left out.
    """
    found = {}
    for key, text in entries_of(master, "search").items():
        if text is not None and key not in given and (options := loader.get_group_options(key)):
            name = f"search.{key}"
            found[key] = _options_in(name, options, parse_override(f"{key}={text}", name))
    return found


def _options_in(name: str, options: Sequence[str], override: Override) -> CategoricalDistribution:
    """Return the options of a group that an override sweeps over. Raise ConfigError for `name` if it does not."""
    if isinstance(value := override.value(), Glob):
        matching = value.filter([*options])
        require(bool(matching), name, f"has no option that matches; choose one of: {', '.join(options)}")
        return CategoricalDistribution(matching)
    return options_of(override.key_or_group, distribution_of(name, override))


def _swept(
    loader: Any, sweeps: Sequence[Override], not_a_trials: re.Pattern[str]
) -> tuple[dict[str, CategoricalDistribution], dict[str, BaseDistribution]]:
    """Return the options of each swept group, and the range of each swept key. Raises ConfigError."""
    groups: dict[str, CategoricalDistribution] = {}
    ranges: dict[str, BaseDistribution] = {}
    for override in sweeps:
        key = override.key_or_group
        if override.package is not None:
            raise ConfigError(key, f"cannot be searched with a package, @{override.package}; leave the package out")
        if override.is_value_path:
            raise ConfigError(key, "cannot be searched by itself; search the whole list, as in key=[1,2],[3,4]")
        _refuse_unsearchable(key, not_a_trials)
        if options := loader.get_group_options(key):
            groups[key] = _options_in(key, options, override)
        else:
            ranges[key] = distribution_of(key, override)
    return groups, ranges


def _refuse_unsearchable(key: str, not_a_trials: re.Pattern[str]) -> None:
    if not_a_trials.match(key):
        node, _, searched = key.partition(".")
        if node == "search" and searched:
            problem = f"has a range as a text; quote it, as in '{key}=\"interval(0, 1)\"', or search {searched} itself"
            raise ConfigError(key, problem)
        raise ConfigError(key, "is not a setting of a trial, so it cannot be searched; give it one value")
