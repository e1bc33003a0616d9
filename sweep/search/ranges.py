"""Ranges: reading Hydra's sweep grammar as Optuna's distributions, and formatting, counting and listing them."""

import math
from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import Any

from hydra._internal.grammar.utils import escape_special_characters
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, Quote, QuotedString
from hydra.errors import HydraException
from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from sweep.config.hydra_errors import NO_KEY, config_error
from sweep.config.overrides import key_of, spelled, value_of
from sweep.storage.optuna_internals import contains_number
from sweep.utils.errors import ConfigError, one_line, require

Range = str | Sequence[Any] | BaseDistribution  # as a program gives it


def parse_override(text: str, key: str) -> Override:
    """Parse an override. Raises ConfigError for `key`."""
    try:
        override = OverridesParser.create().parse_overrides([text])[0]
    except Exception as error:
        refusal = config_error(error, [text])
        if refusal is None:
            raise
        raise ConfigError(key, refusal.problem) from error
    require(bool(override.key_or_group), "config", NO_KEY)
    return override


def range_text(distribution: BaseDistribution) -> str:
    """Format a range as a person would write it."""
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    step = f", step {distribution.step:g}" if distribution.step not in (None, 1) else ""
    return f"{distribution.low:g} to {distribution.high:g}{', log' if distribution.log else step}"


def spelled_range(distribution: BaseDistribution) -> str:
    """Format a range in Hydra's sweep grammar. `distribution_of` reads it as the same range."""
    if isinstance(distribution, CategoricalDistribution):
        return f"choice({','.join(map(str, distribution.choices))})"  # texts are in that grammar already
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    if distribution.log:
        interval = f"tag(log,interval({low},{high}))"
        return f"int({interval})" if isinstance(distribution, IntDistribution) else interval
    if step is None:
        return f"interval({low},{high})"
    end = Decimal(str(high)) + Decimal(str(step))  # Hydra excludes the end
    return f"range({low},{end})" if step == 1 and isinstance(low, int) else f"range({low},{end},{step})"


def sweep_override(key: str, value: Range) -> str:
    """Return the override that sweeps `key` over a range given by a program. Raises ConfigError if it is not one."""
    if isinstance(value, str):
        return f"{key}={value}"
    if isinstance(value, FloatDistribution | IntDistribution):
        return f"{key}={spelled_range(value)}"
    choices = value.choices if isinstance(value, CategoricalDistribution) else value
    if not isinstance(choices, list | tuple) or not choices:
        message = f"must be a text in Hydra's sweep grammar, a list or a distribution, got {value!r}"
        raise ConfigError(key_of(key), message)
    words = ",".join(map(spelled, choices))  # a comma-separated list, since `choice` does not accept null
    return f"{key}={words}" if len(choices) > 1 else f"{key}=choice({words})"


def distribution_of(key: str, override: Override) -> BaseDistribution:
    """Convert a sweep to a distribution. Raises ConfigError for `key` if it is not a range."""
    if not override.is_sweep_override():
        problem = f"'{override.input_line}' is not a range; write interval(a, b), range(a, b) or choice(...)"
        raise ConfigError(key, problem)
    if isinstance(override.value(), Glob):
        raise ConfigError(key, "has no options for a glob; list its values")
    if override.is_choice_sweep():
        _refuse_mixed(key, override)
    try:
        found = create_optuna_distribution_from_override(override)
    except (ValueError, AssertionError, NotImplementedError) as error:
        text = value_of(str(override.input_line))
        raise ConfigError(key, f"{text} is not a range to search: {one_line(error)}") from error
    if override.is_choice_sweep():
        sweep = override.value()
        assert isinstance(sweep, ChoiceSweep)
        texts = [text for text in sweep.list if isinstance(text, str)]
        return CategoricalDistribution([_read_back(c) if c in texts else c for c in found.choices])
    if isinstance(found, FloatDistribution) and found.step is not None and not _is_exact(found):
        text = value_of(str(override.input_line))
        raise ConfigError(key, f"{text} has steps too fine for its values; take larger steps, or an interval")
    return found


def whole_numbers(values: Collection[int]) -> BaseDistribution:
    """Return the range of whole numbers from the smallest of the values to the largest."""
    low, high = min(values), max(values)
    return IntDistribution(low, high) if low < high else CategoricalDistribution([low])


def _is_exact(distribution: FloatDistribution) -> bool:
    """Return whether Optuna accepts each value as on a step: rounding must stay below its tolerance, 1e-8 steps."""
    assert distribution.step is not None
    return math.ulp(max(abs(distribution.low), abs(distribution.high))) < 1e-9 * distribution.step


def _read_back(text: str) -> str:
    """Return a text that Hydra parses as `text`, in quotes if necessary: it parses sampled texts a second time."""
    if text == escape_special_characters(text):
        return text
    try:
        again = OverridesParser.create().parse_override(f"key={text}").value()
    except HydraException:
        again = None
    return text if again == text else QuotedString(text, Quote.double).with_quotes()


def _refuse_mixed(key: str, override: Override) -> None:
    """Raise ConfigError for choices of several kinds, which are mostly a slip. null may be among any kind."""
    sweep = override.value()
    assert isinstance(sweep, ChoiceSweep)
    kinds = {_kind(value) for value in sweep.list if value is not None}
    if len(kinds) > 1:
        text = value_of(str(override.input_line))
        raise ConfigError(key, f"mixes {' and '.join(sorted(kinds))} in {text}; give values of one kind")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "numbers"
    return "lists" if isinstance(value, list | dict) else "texts"


def options_of(key: str, distribution: BaseDistribution) -> CategoricalDistribution:
    """Return the options of a config group as names. Raises ConfigError if they are a range, or one is named twice."""
    if not isinstance(distribution, CategoricalDistribution):
        raise ConfigError(key, "is a config group; give its options, such as optimizer=sgd,adam")
    options = [_name(key, option) for option in distribution.choices]
    if twice := [option for option in options if options.count(option) > 1]:
        raise ConfigError(key, f"names {twice[0]} twice; name each option once")
    return CategoricalDistribution(options)


def _name(key: str, option: object) -> str:
    value = parse_override(f"{key}={option}", key).value()
    return value if isinstance(value, str) else str(option)


def alike(one: Any, other: Any) -> bool:
    """Return whether two plain values are equal. Unlike in Python, true is not 1, not even inside lists and dicts."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Return whether the value lies in the range and on a step."""
    if isinstance(distribution, CategoricalDistribution):
        return any(alike(choice, value) for choice in distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return contains_number(distribution, value)


def on_step(distribution: BaseDistribution, value: Any) -> Any:
    """Return the value as Hydra's range would: 0.3 instead of 0.1 + 2 * 0.1 = 0.30000000000000004 from a sampler."""
    if not isinstance(distribution, FloatDistribution) or distribution.step is None:
        return value
    return _nth(distribution, round((value - distribution.low) / distribution.step))


def _nth(distribution: FloatDistribution, n: int) -> float:
    """Return the value `n` steps above the lowest, computed in decimals like Hydra's ranges."""
    return float(Decimal(str(distribution.low)) + n * Decimal(str(distribution.step)))


def first_of(distribution: BaseDistribution) -> Any:
    """Return the lowest value, or the first choice."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return distribution.low


def n_values(distribution: BaseDistribution) -> float:
    """Count the values. The result is infinite if the range is continuous."""
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.single():
        return 1
    if distribution.step is None or distribution.log:
        return math.inf
    return round((distribution.high - distribution.low) / distribution.step) + 1


def grid_of(key: str, distribution: BaseDistribution) -> list[Any]:
    """List all values. Raises ConfigError for `key` if the range is continuous or logarithmic."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.single():
        return [distribution.low]
    if distribution.step is None or distribution.log:
        raise ConfigError(
            key,
            f"ranges over {range_text(distribution)}, which is not a grid; list its values, or choose another sampler",
        )
    n = round((distribution.high - distribution.low) / distribution.step) + 1
    if isinstance(distribution, FloatDistribution):
        return [_nth(distribution, i) for i in range(n)]
    return [distribution.low + i * distribution.step for i in range(n)]
