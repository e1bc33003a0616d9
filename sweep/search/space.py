"""The search space of a study: options of config groups, and ranges of values that may depend on those options.

A parameter's name in Optuna is its config key. If its range depends on searched groups, their options are appended, as
in `scheduler.max_lr[sgd]`: a sampler must not learn about one range from values of another.
"""

import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from hydra.core.override_parser.types import Glob, Override
from omegaconf import DictConfig, Node, OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution

from sweep.config.hydra_errors import config_error
from sweep.config.overrides import key_of, sets, value_of
from sweep.config.schema import Config, has_function, is_auto, is_own_key, validate
from sweep.search.batches import TrainingSplits, cut, cut_text, depends_on, largest
from sweep.search.composer import Composer, Starts
from sweep.search.custom import KEY, SuggestingTrial, extend
from sweep.search.ranges import (
    alike,
    contains,
    distribution_of,
    first_of,
    grid_of,
    n_values,
    on_step,
    options_of,
    parse_override,
    range_text,
)
from sweep.search.settings import implied_direction, implied_monitor
from sweep.search.when import in_order, meets
from sweep.trial.application import Application
from sweep.trial.prepare import BATCH_SIZE
from sweep.utils.errors import ConfigError, one_line, require

_MOST_DRAWS = 1000  # attempts to meet the conditions
_NOT_A_TRIALS = re.compile(
    r"(search|where|when|lr_search|lr_range|tracking|compare|hydra)(/|\.|$)|(output_dir|experiment_name|resume|from_study|bounds)$"
)
_HYDRAS = re.compile(r"(search|where|when|hydra)(/|\.|$)")  # of the keys of another application
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


class Configuration(NamedTuple):
    """One point of the space.

    Attributes:
        groups: the option of each searched group.
        values: the other searched values, by config key.
        params: both, by Optuna's names.
        more: the distributions of values that `custom_search_space` chose, by Optuna's names.
    """

    groups: dict[str, str]
    values: dict[str, Any]
    params: dict[str, Any]
    more: Mapping[str, BaseDistribution] | None = None


Suggest = Callable[[str, BaseDistribution], Any]  # (name, distribution) -> value


@dataclass
class Space:
    """The search space of a study.

    Attributes:
        composer: composes configs.
        groups: the options of each searched group.
        swept: ranges of the command line, by config key. They replace the options' own. Options that do not have the
            key have no such parameter, unless the command line adds it with `+`.
        fixed: keys that the command line sets, which are not searched.
        splits: sizes of training splits, to which the batch sizes are cut.
    """

    composer: Composer
    groups: dict[str, CategoricalDistribution]
    swept: dict[str, BaseDistribution]
    fixed: frozenset[str]
    splits: TrainingSplits = field(default_factory=TrainingSplits)

    @property
    def is_conditional(self) -> bool:
        """Whether it depends on some params which others a trial has."""
        return bool(self.groups or any(map(self.conditions, self.combinations())))

    def starting_from(self, starts: Starts) -> "Space":
        """Return the same space with learning rates, and their ranges, from range tests."""
        return replace(self, composer=replace(self.composer, starts=starts))

    @property
    def bounds_are_auto(self) -> bool:
        """Whether range tests choose where to search learning rates. Raises ConfigError if `bounds` has a bad value."""
        return not self.composer.application and is_auto(self.composer.master.bounds)

    @property
    def custom(self) -> str | None:
        """The dotted path of another application's `custom_search_space`; None if there is none."""
        return self.composer.application and self.composer.application.custom_search_space

    def __post_init__(self) -> None:
        self._cuts: dict[str, None] = {}
        self._named: dict[tuple[str, ...], dict[str, tuple[str, BaseDistribution]]] = {}
        self._declared: dict[tuple[str, ...], dict[str, BaseDistribution]] = {}
        self._conditions: dict[tuple[str, ...], dict[str, str]] = {}
        self._conditional: dict[str, None] = {}
        self._depends: dict[str, list[str]] = {}
        self._combinations: list[dict[str, str]] = []
        self._of_options: dict[tuple[str, ...], Config] = {}

    def ranges(self, groups: Mapping[str, str]) -> dict[str, tuple[str, BaseDistribution]]:
        """Return the name and the distribution of each searched key under those options. Raises ConfigError."""
        chosen = tuple(groups.values())
        if chosen not in self._named:
            found = self._found(groups)
            self.combinations()
            self._named[chosen] = {
                key: (_name(key, [groups[g] for g in self._depends.get(key, self.groups)]), distribution)
                for key, distribution in found.items()
            }
        return self._named[chosen]

    def conditions(self, groups: Mapping[str, str]) -> dict[str, str]:
        """Return the condition of `when` of each searched key that has one under those options. Raises ConfigError."""
        self._found(groups)
        return self._conditions[tuple(groups.values())]

    def distributions(self, configuration: Configuration) -> dict[str, BaseDistribution]:
        """Return the distribution of each of the configuration's parameters, by Optuna's names."""
        named = {**self.groups, **dict(self.ranges(configuration.groups).values()), **(configuration.more or {})}
        return {name: distribution for name, distribution in named.items() if name in configuration.params}

    def configuration(self, suggest: Suggest) -> Configuration:
        """Choose a configuration: the options first, and then the values that are searched under them."""
        groups = {name: suggest(name, distribution) for name, distribution in self.groups.items()}
        named = self.ranges(groups)
        values: dict[str, Any] = {}
        for key, (name, distribution) in named.items():
            if self._is_searched(groups, key, values):
                values[key] = on_step(distribution, suggest(name, distribution))
        params = {**groups, **{named[key][0]: value for key, value in values.items()}}
        if self.custom is None:
            return Configuration(groups, values, params)
        trial = SuggestingTrial(suggest, {**groups, **values}, {key_of(o): value_of(o) for o in self.composer.fixed})
        extend(self.custom, self.composer.master, trial)
        chosen = {name: trial.params[name] for name in trial.distributions}
        for name in chosen:
            if key_of(name) in self.fixed:
                raise ConfigError(name, f"is set on the command line, but {KEY} searches it; leave it out there")
        values |= {key_of(name): value for name, value in chosen.items()}
        return Configuration(groups, values, params | chosen, trial.distributions)

    def accepted(self, suggest: Suggest, again: Callable[[], None] = lambda: None) -> Configuration:
        """Choose a configuration that meets the conditions of `where`.

        Args:
            suggest: chooses one parameter.
            again: is called before each further attempt.

        Raises:
            ConfigError: none of 1000 attempts met the conditions.
        """
        broken = None
        for _ in range(_MOST_DRAWS):
            configuration = self.configuration(suggest)
            broken = self.broken_condition(configuration)
            if broken is None:
                return configuration
            again()
        if broken == BATCH_SIZE:
            raise ConfigError(BATCH_SIZE, f"none of {_MOST_DRAWS} configurations has enough training samples; lower it")
        raise ConfigError(f"where.{broken}", f"none of {_MOST_DRAWS} configurations met it; change it, or the ranges")

    def compose(self, configuration: Configuration) -> DictConfig:
        """Compose the configuration, for a trial."""
        return self.composer.compose(configuration.groups, configuration.values)

    def of_options(self, groups: Mapping[str, str]) -> Config:
        """Return the validated config with those options and no searched value set. Raises ConfigError."""
        chosen = tuple(groups.values())
        if chosen not in self._of_options:
            self._of_options[chosen] = validate(self.composer.compose(groups, {}))
        return self._of_options[chosen]

    def broken_condition(self, configuration: Configuration) -> str | None:
        """Return the name of the first condition under `where` that does not hold; None if all hold.

        If the size of the training split is searched too, a batch must fit in it. This condition comes first and is
        named `trainer.batch_size`.

        Raises ConfigError if a condition cannot be evaluated.
        """
        if self._cuts_batches(configuration.values) and any(map(depends_on, configuration.values)):
            config = self.composer.validated(configuration.groups, configuration.values)
            if config.trainer.batch_size > self.splits.size(config):
                return BATCH_SIZE
        if not _node(self.composer.base(configuration.groups).config, "where"):
            return None
        config = self.composer.readable(configuration.groups, configuration.values)
        for name, condition in config["where"].items():
            if condition is not None and not meets(f"where.{name}", condition, config):
                return str(name)
        return None

    def _is_searched(self, groups: Mapping[str, str], key: str, values: Mapping[str, Any]) -> bool:
        """Return whether the key's condition of `when` holds for the values of the keys before it, or is missing."""
        if key not in self.conditions(groups):
            return True
        config = self.composer.readable(groups, values)
        return meets(f"when.{key}", _flat(config["when"])[key], config)

    def defaults(self, groups: Mapping[str, str]) -> dict[str, Any]:
        """Return the composed config's value of each searched parameter, by Optuna's names, if it is in its range."""
        config = self.composer.base(groups).config
        found: dict[str, Any] = {name: option for name, option in groups.items() if name in self.groups}
        for key, (name, distribution) in self.ranges(groups).items():
            if not self.composer.base(groups).has(key):
                continue
            value = OmegaConf.select(config, key)
            if self._cuts_batches([key]) and isinstance(value, int) and value > self._n_train(groups):
                value = largest(distribution, self._n_train(groups))
            value = self.as_sampled(groups, key, distribution, value)
            if contains(distribution, value):
                found[name] = on_step(distribution, value)
        return found

    def as_sampled(self, groups: Mapping[str, str], key: str, distribution: BaseDistribution, value: Any) -> Any:
        """Return the choice for a value of the config: lists and null, for example, are sampled as texts."""
        if not isinstance(distribution, CategoricalDistribution):
            return value
        value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        return next(
            (choice for choice in distribution.choices if alike(self.meaning(groups, key, choice), value)), value
        )

    def meaning(self, groups: Mapping[str, str], key: str, sampled: Any) -> Any:
        """Return the config's value if a sampler gives `sampled`: a text may represent a list or a reference."""
        if "${" in str(sampled):
            config = self.composer.readable(groups, {key: sampled})
            found = OmegaConf.select(OmegaConf.create(dict(config)), key)
            return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
        return self.composer.plain(key, sampled)

    def everything(self) -> Iterator[Configuration]:
        """Yield every configuration of a grid that meets the conditions. The last key varies fastest.

        Raises ConfigError if a range cannot be listed.
        """
        for groups in self.every_choice():
            named = self.ranges(groups)
            for values in self._points(groups):
                params = {named[key][0]: value for key, value in values.items()}
                configuration = Configuration(groups, values, {**groups, **params})
                if self.broken_condition(configuration) is None:
                    yield configuration

    def _points(self, groups: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Yield the values of each point of the grid under those options, ignoring `where`. Raises ConfigError."""
        points: Iterator[dict[str, Any]] = iter([{}])
        for key, (_, distribution) in self.ranges(groups).items():
            points = self._extended(points, groups, key, grid_of(key, distribution))
        return points

    def _extended(
        self, points: Iterable[dict[str, Any]], groups: Mapping[str, str], key: str, grid: Sequence[Any]
    ) -> Iterator[dict[str, Any]]:
        """Yield each point with each value of a further key. A point that does not search the key stays one point."""
        for point in points:
            if self._is_searched(groups, key, point):
                yield from ({**point, key: value} for value in grid)
            else:
                yield point

    def has_at_most(self, n: int) -> bool:
        """Return whether the space has at most so many configurations, ignoring `where`. False if one is continuous."""
        numbers = [n_values(distribution) for distribution in self.named_ranges().values()]
        if self.custom is not None or max(numbers, default=0) > n:  # avoids composing every choice of options
            return False
        points = itertools.chain.from_iterable(map(self._points, self.every_choice()))
        return next(itertools.islice(points, n, None), None) is None

    def every_choice(self) -> Iterator[dict[str, str]]:
        """Yield each combination of options of the searched groups."""
        for options in itertools.product(*(d.choices for d in self.groups.values())):
            yield dict(zip(self.groups, map(str, options), strict=True))

    def first_groups(self) -> dict[str, str]:
        """Return the first option of each searched group."""
        return {name: str(distribution.choices[0]) for name, distribution in self.groups.items()}

    def configured_groups(self) -> dict[str, str]:
        """Return the configured option of each searched group, or the first if that one is not searched."""
        choices, first = self.composer.master.hydra.runtime.choices, self.first_groups()
        return {g: choices[g] if choices.get(g) in d.choices else first[g] for g, d in self.groups.items()}

    def each_group_alone(self) -> list[dict[str, str]]:
        """Return the first options, and choices in which one group has another option."""
        first = self.first_groups()
        others = [first | {name: str(o)} for name, d in self.groups.items() for o in d.choices[1:]]
        return [first, *others]

    def combinations(self) -> list[dict[str, str]]:
        """Return choices of options in which every searched key occurs with every range that it can have."""
        if not self._combinations:
            self._explore()
        return self._combinations

    def named_ranges(self) -> dict[str, BaseDistribution]:
        """Return every parameter of the space, by Optuna's names, the groups first."""
        named: dict[str, BaseDistribution] = dict(self.groups)
        for groups in self.combinations():
            named |= dict(self.ranges(groups).values())
        return named

    def _explore(self) -> None:
        """Find the groups that each key's range depends on.

        Start from choices in which one group differs from the first options. For a choice with a new key, vary one
        group at a time: the key's range depends on the groups that change it. The varied choices are explored in turn,
        since they may have further keys.
        """
        todo = self.each_group_alone()
        for pivot in todo:  # the list grows in the loop
            new = [key for key in self._found(pivot) if key not in self._depends]
            if not new:
                continue
            for key in new:
                self._depends[key] = []
            for group, distribution in self.groups.items():
                variants = [pivot | {group: str(option)} for option in distribution.choices]
                todo += [groups for groups in variants if groups not in todo]
                found = [self._found(groups) for groups in variants]
                for key in new:
                    if any(one.get(key) != found[0].get(key) for one in found):
                        self._depends[key].append(group)
        self._combinations = todo
        for key, distribution in self.swept.items():
            if key not in self._depends:  # no option has it
                self.composer.refuse_unknown(self.first_groups(), key, first_of(distribution))
        for key in self._conditional:
            if key not in self._depends:
                problem = "is the condition of a key that is not searched; give the key a range, or leave this out"
                raise ConfigError(f"when.{key}", problem)

    def _found(self, groups: Mapping[str, str]) -> dict[str, BaseDistribution]:
        """Return the distribution of each searched key under those options. The result is cached."""
        chosen = tuple(groups.values())
        if chosen not in self._declared:
            found = self._read(groups)
            conditions = self._read_conditions(groups, found)
            plain = self.composer.base(groups).plain.unresolved({}) if conditions else {}
            self._declared[chosen] = {key: found[key] for key in in_order(found, conditions, plain)}
            self._conditions[chosen] = conditions
            for key in conditions:  # a mistake shows before the first trial
                self._is_searched(groups, key, {key: first_of(d) for key, d in found.items()})
        return self._declared[chosen]

    def _read_conditions(self, groups: Mapping[str, str], found: Collection[str]) -> dict[str, str]:
        """Return the condition of `when` of each key in `found` that has one. Raises ConfigError."""
        base, conditions = self.composer.base(groups), {}
        for key, text in _entries_of(base.config, "when").items():
            if text is None or key in self.fixed or (base.has(key) and self._is_fixed(key, base.config)):
                continue
            if self.composer.loader.get_group_options(key):
                raise ConfigError(f"when.{key}", "is a group; a condition is for a key that has a range of values")
            if key in found:
                conditions[key] = str(text)
            elif key not in _entries_of(base.config, "search"):  # else the data have left nothing of its range
                self._conditional[key] = None
        return conditions

    def _read(self, groups: Mapping[str, str]) -> dict[str, BaseDistribution]:
        """Read the ranges that the options declare under `search`, and add those of the command line."""
        base = self.composer.base(groups)
        config = base.config
        search = {
            k: text for k, text in _entries_of(config, "search").items() if text is not None and not self._is_group(k)
        }
        found, is_application = {}, self.composer.application is not None
        may_lack = is_application or has_function(config)
        for key, text in (search | base.searched).items():
            is_own = is_application or is_own_key(key)
            if may_lack and is_own and not base.has(key):
                message = f"the config has no key '{key}'; correct it, or add the key with its default: +{key}=..."
                raise ConfigError(f"search.{key}", message)
            if key not in self.swept and not self._is_fixed(str(key), config):
                found[str(key)] = distribution_of(f"search.{key}", parse_override(f"{key}={text}", f"search.{key}"))
        prefixes = self.composer.prefixes
        found |= {key: d for key, d in self.swept.items() if prefixes.get(key) or base.has(key)}
        if self._cuts_batches(found) and not any(map(depends_on, found)):
            self._cut_batch_size(found, groups)
        return found

    def _is_group(self, key: str) -> bool:
        """Return whether `search` names a group. Raise ConfigError if only one of the searched options does so."""
        if not self.composer.loader.get_group_options(key):
            return False
        if key not in self.groups and key not in self.fixed:
            problem = "is a group, and an option that is searched cannot search another; name it beside that option"
            raise ConfigError(f"search.{key}", problem)
        return True

    def _cuts_batches(self, keys: Collection[str]) -> bool:
        """Return whether one of the keys is sweep's own batch size, which must fit the data."""
        return BATCH_SIZE in keys and self.composer.application is None

    def _cut_batch_size(self, found: dict[str, BaseDistribution], groups: Mapping[str, str]) -> None:
        """Remove from `found` the batch sizes that are larger than the training split.

        Raises ConfigError if the command line gives the range and nothing of it is left.
        """
        searched, n_train = found[BATCH_SIZE], self._n_train(groups)
        left = cut(searched, n_train)
        if left == searched:
            return
        if left is not None:
            found[BATCH_SIZE] = left
        elif BATCH_SIZE in self.swept:
            raise ConfigError(
                BATCH_SIZE,
                f"searches {range_text(searched)}, but there are {n_train} samples to train on; give smaller ones",
            )
        else:
            del found[BATCH_SIZE]
        self._cuts[cut_text(searched, left, n_train)] = None

    def _n_train(self, groups: Mapping[str, str]) -> int:
        return self.splits.size(self.of_options(groups))

    def cuts(self) -> list[str]:
        """Return a line for the user about each range that the data cut."""
        for groups in self.combinations():
            keys = self.ranges(groups)
            if self._cuts_batches(keys) and any(map(depends_on, keys)):
                self._cuts[f"{BATCH_SIZE}: a batch larger than the training split of its own trial is not tried"] = None
        return [*self._cuts]

    def _is_fixed(self, key: str, config: DictConfig) -> bool:
        """Return whether the command line sets the key, or the key that it refers to, as in ${lr_bounds.max_lr}."""
        if key in self.fixed:
            return f"search.{key}" not in self.fixed  # with a range, the value is what the first trial has
        node: Any = config
        for part in key.split("."):
            node = node._get_node(part) if isinstance(node, DictConfig) and isinstance(node._value(), dict) else None
        text = node._value() if isinstance(node, Node) else None  # not resolved
        reference = _REFERENCE.fullmatch(text) if isinstance(text, str) else None
        return reference is not None and reference[1] in self.fixed


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


def _node(config: DictConfig, name: str) -> dict[str, Any]:
    """Return one of the nodes `search`, `where` and `when`; empty if another application has something else there.

    Only `search` is resolved: conditions may refer to values that are searched.
    """
    node = config.get(name)
    plain = OmegaConf.to_container(node, resolve=name == "search") if OmegaConf.is_dict(node) else {}
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return entries by full key. `+search.gan.lr=...` on a command line makes a node of its own for each dot."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        is_node = isinstance(value, dict | DictConfig)
        found |= _flat(value, f"{prefix}{key}.") if is_node else {f"{prefix}{key}": value}
    return found


def _entries_of(config: DictConfig, name: str) -> dict[str, Any]:
    """Return the node `search` or `when`, by full key or group. Raise ConfigError if it cannot be read."""
    try:
        return _flat(_node(config, name))
    except Exception as error:
        raise config_error(error, ()) or ConfigError(name, one_line(error)) from error


def _groups_of_config(loader: Any, master: DictConfig, given: Collection[str]) -> dict[str, CategoricalDistribution]:
    """Return the options of each group that the config itself searches, as in `search: {optimizer: sgd,adam}`.

    Those that the command line gives are left out.
    """
    found = {}
    for key, text in _entries_of(master, "search").items():
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


def _name(key: str, options: Sequence[str]) -> str:
    """Return a parameter's name in Optuna. options: those that its range depends on."""
    return f"{key}[{','.join(options)}]" if options else key
