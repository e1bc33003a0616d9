"""`hydra.sweeper.custom_search_space`: a function of the user's own that chooses further values of a trial.

It is called with the sweep's config and a trial, as by hydra-optuna-sweeper.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from sweep.trial.binding import located_by_setting
from sweep.utils.errors import ConfigError, one_line

KEY = "hydra.sweeper.custom_search_space"


class SuggestingTrial:
    """The part of Optuna's trial that such a function needs.

    Attributes:
        params: what was chosen, by name.
        user_attrs: what the command line sets, by key.
        distributions: of the values that the function has chosen, by name.
    """

    def __init__(
        self,
        suggest: Callable[[str, BaseDistribution], Any],
        params: Mapping[str, Any],
        user_attrs: Mapping[str, Any],
    ) -> None:
        """Make the trial. `suggest` chooses a value of a distribution; the others are as the attributes."""
        self._choose = suggest
        self.params, self.user_attrs = dict(params), dict(user_attrs)
        self.distributions = dict[str, BaseDistribution]()

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return self._suggest(name, FloatDistribution(low, high, log=log, step=step))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return self._suggest(name, IntDistribution(low, high, log=log, step=step))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._suggest(name, CategoricalDistribution(choices))

    def set_user_attr(self, key: str, value: Any) -> None:
        self.user_attrs[key] = value

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        if name not in self.params:
            self.distributions[name] = distribution
            self.params[name] = self._choose(name, distribution)
        return self.params[name]


def extend(path: str, config: DictConfig, trial: SuggestingTrial) -> None:
    """Call the function with this dotted path. Raise ConfigError if it cannot be loaded, or has a mistake."""
    function = located_by_setting(KEY, path, (path,))
    try:
        function(config, trial)
    except (ArithmeticError, AttributeError, LookupError, NameError, TypeError, ValueError) as error:
        raise ConfigError(KEY, f"{path}(cfg, trial) raises {type(error).__name__}: {one_line(error)}") from error
