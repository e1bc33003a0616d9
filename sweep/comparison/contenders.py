"""Read from the command line what is compared: the contenders, and the tasks."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Glob, Override

from sweep.config.overrides import key_of, sets
from sweep.search.making import read_command_line
from sweep.search.ranges import distribution_of, options_of, parse_override
from sweep.utils.errors import ConfigError

TASK = "data"  # the options of this group are tasks, not contenders
_ORDER = ("optimizer", "scheduler", "model")  # the order of the options in a contender's name


class Contender(NamedTuple):
    """One of the compared choices. `options` has one option of each compared group, by group."""

    name: str
    options: dict[str, str]


class ComparisonSpec(NamedTuple):
    """What is compared.

    Attributes:
        contenders: every combination of the compared options.
        tasks: the options of `data` if there are several, otherwise a single empty text.
        shared: overrides that every study of the comparison has.
    """

    contenders: list[Contender]
    tasks: list[str]
    shared: list[str]


def read_comparison(
    loader: ConfigLoader, arguments: Sequence[str], over: Mapping[str, Any], seed: str = "seed"
) -> ComparisonSpec:
    """Read the contenders and tasks of a comparison.

    Args:
        loader: Hydra's loader of configs, which has the options of each group.
        arguments: the overrides of the command line. A group with several options is compared.
        over: `compare.over`, the options by group. The command line replaces those of the groups it names.
        seed: the key of the seed.

    Raises:
        ConfigError: an option does not exist, or there are fewer than two contenders.
    """
    sweeps, _ = read_command_line(arguments)
    given = set(map(key_of, arguments))
    own = [parse_override(f"{group}={options}", "compare.over") for group, options in over.items()]
    axes: dict[str, list[str]] = {}
    for override in [*(o for o in own if o.key_or_group not in given), *sweeps]:
        key = override.key_or_group
        if known := loader.get_group_options(key):
            axes[key] = _options(key, override, known)
        elif override in own:
            raise ConfigError(
                f"compare.over.{key}", "is not a group with options; choose a group such as optimizer or scheduler"
            )
    if seed in {o.key_or_group for o in sweeps}:
        raise ConfigError(seed, "is what each contender is trained on many of; set compare.n_seeds")
    shared = [argument for argument in arguments if not sets(argument, *axes)]
    tasks = axes.pop(TASK, [""])
    groups = sorted(axes, key=lambda group: (_ORDER.index(group) if group in _ORDER else len(_ORDER), group))
    contenders = [
        Contender("-".join(map(_plain, options)), dict(zip(groups, options, strict=True)))
        for options in itertools.product(*(axes[group] for group in groups))
    ]
    if len(contenders) < 2:
        raise ConfigError("compare", "needs two contenders or more; give a group several options: optimizer=sgd,adam")
    return ComparisonSpec(contenders, tasks, shared)


def _options(group: str, override: Override, known: Sequence[str]) -> list[str]:
    """Return the options that an override chooses. Raise ConfigError for one that is not among the known options."""
    value = override.value()
    if isinstance(value, Glob):
        options = value.filter(list(known))
    elif override.is_sweep_override():
        options = [str(option) for option in options_of(group, distribution_of(group, override)).choices]
    else:
        options = [str(value)]
    if unknown := [option for option in options if option not in known]:
        raise ConfigError(group, f"no option '{unknown[0]}'; choose one of: {', '.join(known)}")
    return options


def _plain(option: str) -> str:
    return option.replace("/", "_")
