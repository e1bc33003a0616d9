"""The settings of a study under `hydra.sweeper`, checked before Optuna is loaded."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import hydra_plugins.hydra_optuna_sweeper.config as hydra_optuna_sweeper
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.config.callback_node import declared
from sweep.config.metrics import DIRECTIONS, OF_ANY_TASK, OF_NOISE, RETURNED, is_curve, returned_names
from sweep.config.nodes import MOST_FOLDS, MOST_SEEDS
from sweep.config.overrides import hydras_own, key_of, option, setting
from sweep.config.schema import has_function
from sweep.config.task_node import direction_of, names_of
from sweep.search.resources import Resources
from sweep.utils.errors import ConfigError, one_line, require

_SAMPLER = "hydra.sweeper.sampler."
_UNKNOWN = object()
_CMAES = "optuna.samplers.CmaEsSampler"  # ignores pruned trials unless `consider_pruned_trials` is set
_COMPLETE_ONLY = (  # learn only from complete trials
    _CMAES,
    "optuna.samplers.GPSampler",
    "hydra_plugins.hydra_optuna_sweeper._impl.create_nsgaii_sampler",
    "hydra_plugins.hydra_optuna_sweeper._impl.create_nsgaiii_sampler",
    "optuna.samplers.NSGAIISampler",
    "optuna.samplers.NSGAIIISampler",
)
NO_PRUNER = "optuna.pruners.NopPruner"
RANDOM_SAMPLER = "optuna.samplers.RandomSampler"
_OPTIONS = {RANDOM_SAMPLER: "random", NO_PRUNER: "none"}  # names of options by target
_EPOCHS = ("hydra.sweeper.max_epochs", "trainer.epochs")  # what a pruner's node may refer to
N_TRIALS, N_TRIALS_OF_APPLICATION = 32, 20  # if n_trials is not set; the second is the stock sweeper's
_OF_APPLICATIONS = (  # further keys of sweep/study/search_path/hydra/sweeper/study.yaml
    *("custom_search_space", "output_dir", "experiment_name", "checkpoint_interval_s", "tracking", "compare"),
)
_ASHA = "optuna.pruners.SuccessiveHalvingPruner"


@dataclass(kw_only=True)
class StudySettings:
    """The keys of conf/hydra/sweeper/study.yaml, where each is explained.

    Once checked, `objective` and `direction` are lists of the same length, `sampler` and `pruner` are nodes with a
    `_target_`, and `resources` are `Resources`.
    """

    study_name: str | None = None
    storage: str | None = None
    n_trials: int | None = None
    timeout: float | None = None
    trial_timeout: float | None = None
    n_jobs: int = 1
    pack: Any = 1
    objective: Any = "val/loss"
    direction: Any = "minimize"
    max_epochs: int | None = None
    seeds: int = 1
    folds: int = 1
    enqueue: list[Any] = field(default_factory=list)
    defaults_first: bool = True
    max_failure_rate: float = 0.5
    max_retries: int = 3
    retry_failed: bool = False
    accept_changes: bool = False
    artifacts: str | None = None
    resources: Any = None
    dry_run: bool = False
    debug: bool = False
    sampler: Any = None
    pruner: Any = None

    def __post_init__(self) -> None:
        self.objective = _texts("objective", self.objective)
        _require(len(set(self.objective)) == len(self.objective), "objective", "names one twice; give each once")
        self.direction = _texts("direction", self.direction)
        _require(self.seeds <= MOST_SEEDS, "seeds", f"must be <= {MOST_SEEDS}, got {self.seeds}")
        _require(self.folds <= MOST_FOLDS, "folds", f"must be <= {MOST_FOLDS}, got {self.folds}")
        for name in ("n_trials", "n_jobs", "seeds", "folds", "max_epochs"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, f"must be >= 1, got {value}")
        message = f"must be a number >= 1 or auto, got {self.pack!r}"
        _require(self.pack == "auto" or (type(self.pack) is int and self.pack >= 1), "pack", message)
        for name in ("timeout", "trial_timeout"):
            value = getattr(self, name)
            _require(value is None or value > 0, name, f"must be > 0 seconds, got {value}")
        _require(self.max_retries >= 0, "max_retries", f"must be >= 0, got {self.max_retries}")
        _require(
            0 <= self.max_failure_rate <= 1, "max_failure_rate", f"must be between 0 and 1, got {self.max_failure_rate}"
        )
        self.resources = Resources.of(self.resources)
        _require(self.artifacts != "", "artifacts", "is empty; name a folder, or a URL such as s3://bucket/folder")
        for direction in self.direction:
            _require(direction in DIRECTIONS, "direction", f"'{direction}' is unknown; choose minimize or maximize")
        _require(
            len(self.direction) == len(self.objective),
            "direction",
            f"names {len(self.direction)} directions for {len(self.objective)} objectives; give one for each",
        )
        for item in self.enqueue:
            _require(isinstance(item, dict) and bool(item), "enqueue", f"must list {{key: value}}, got {item!r}")

    @classmethod
    def of(cls, node: dict[str, Any]) -> "StudySettings":
        """Make the settings of a plain node. Raises ConfigError for an unknown key or a bad value."""
        known = {field.name for field in fields(cls)}
        for key in node.keys() - known:
            problem = f"is no setting of a study; if it is a key of the config, give it as an override: '{key}=...'"
            raise ConfigError(f"hydra.sweeper.{key}", problem)
        enqueue = node.get("enqueue", [])
        _require(isinstance(enqueue, list | tuple), "enqueue", f"must list {{key: value}}, got {enqueue!r}")
        try:
            settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), _plain(node)))
        except OmegaConfBaseException as error:
            raise ConfigError(f"hydra.sweeper.{getattr(error, 'full_key', None) or ''}", one_line(error)) from error
        assert isinstance(settings, cls)
        return settings

    @property
    def n_runs(self) -> int:
        """The number of runs of a trial: one for each seed and fold."""
        return self.seeds * self.folds

    @property
    def prunes(self) -> bool:
        """Whether trials may be pruned. Optuna's pruners need a single objective, and it must be a curve."""
        return len(self.objective) == 1 and is_curve(self.objective[0])

    @property
    def starves_its_sampler(self) -> bool:
        """Whether the sampler learns only from complete trials although the pruner lets few trials complete."""
        target = self.sampler["_target_"]
        considers = target == _CMAES and self.sampler.get("consider_pruned_trials", False)
        return self.prunes and self.pruner["_target_"] != NO_PRUNER and target in _COMPLETE_ONLY and not considers

    def total(self, n_configurations: float, is_grid: bool, usual: int = N_TRIALS) -> int:
        """Return how many trials the study will have.

        Args:
            n_configurations: how many configurations may be tried, infinite if there is no limit.
            is_grid: whether to try all of them unless `n_trials` is set.
            usual: how many it has otherwise, unless `n_trials` is set.
        """
        wanted = math.inf if is_grid and self.n_trials is None else self.n_trials or usual
        return int(min(wanted, n_configurations))


def settings_of(config: DictConfig, changes: Mapping[str, Any] | None = None) -> StudySettings:
    """Return the settings under `hydra.sweeper` of a composed config, with `changes` applied.

    Args:
        config: composed by Hydra.
        changes: values by key, such as "n_trials" or "sampler.seed". A sampler or a pruner is a node with a `_target_`.

    Raises:
        ConfigError: a setting is unknown or has a bad value.
    """
    resolved = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    assert isinstance(resolved, dict)
    node = {str(key): value for key, value in resolved.items() if key not in ("_target_", "params")}
    for key, value in (changes or {}).items():
        name, _, part = key.partition(".")
        node[name] = {**node[name], part: value} if part else value
    for name in ("sampler", "pruner"):
        message = (
            f"must be a node with a _target_, got {node.get(name)!r}; choose an option with hydra/sweeper/{name}=..."
        )
        _require(isinstance(node.get(name) or {}, dict), name, message)
    named = {*map(key_of, hydras_own(config)), *(f"hydra.sweeper.{key}" for key in changes or ())}
    sampler = sampler_node(node["sampler"] or {}, named)
    pruner = dict(node["pruner"] or {})
    is_named = any(key.startswith("hydra.sweeper.pruner.") for key in named)
    if pruner.pop("by_sampler", False) and sampler["_target_"] in _COMPLETE_ONLY and not is_named:
        pruner = {"_target_": NO_PRUNER}
    if sampler["_target_"] == _CMAES and pruner.get("_target_") != NO_PRUNER and not sampler.get("source_trials"):
        sampler = {"consider_pruned_trials": True, **sampler}
    if is_application(config):
        _objective_of_application(node)
    node["objective"] = _texts("objective", node["objective"])
    if (epochs := OmegaConf.select(config, "trainer.epochs")) == node["max_epochs"] and isinstance(epochs, int):
        require(epochs >= 1, "trainer.epochs", f"must be >= 1, got {epochs}")
    if node["max_epochs"] is None and "pruner" not in (changes or {}):
        pruner = _without_epochs(config, pruner, node["objective"])
    if node["direction"] is None and (is_application(config) or has_function(config)):
        node["direction"] = [_direction_of_cost(name) for name in node["objective"]]
    elif node["direction"] is None:
        task, callbacks = (
            OmegaConf.to_container(part, resolve=True) for part in (config.task, config.trainer.callbacks)
        )
        node["direction"] = directions_of(node["objective"], task, callbacks)
    return StudySettings.of({**node, "sampler": sampler, "pruner": pruner})


def params_of(config: DictConfig, arguments: Sequence[str]) -> list[str]:
    """Return the overrides of `hydra.sweeper.params`, the stock sweeper's key, that the command line does not replace.

    Args:
        config: composed by Hydra.
        arguments: the overrides of a trial's keys on the command line.

    Raises:
        ConfigError: it is not a mapping.
    """
    params = OmegaConf.select(config, "hydra.sweeper.params")
    plain = OmegaConf.to_container(params, resolve=True) if OmegaConf.is_config(params) else params or {}
    message = "must map keys to ranges, such as {optimizer.lr: 'interval(0.01, 0.1)'}"
    if not isinstance(plain, dict):
        raise ConfigError("hydra.sweeper.params", message)
    given = {key_of(argument) for argument in arguments}
    return [f"{key}={value}" for key, value in plain.items() if key_of(str(key)) not in given]


def is_application(config: DictConfig) -> bool:
    """Return whether a composed config is of another Hydra application, whose task function trains the trials."""
    return "experiment_name" in (config.hydra.sweeper or {})


def _objective_of_application(node: dict[str, Any]) -> None:
    """Set objective and direction of an application: what it returns, one value for each direction, unless named."""
    direction = node["direction"]
    n = len(direction) if isinstance(direction, list | tuple) else 1
    if node["objective"] is None:
        node["objective"], node["direction"] = returned_names(n), direction or "minimize"
    for key in ("seeds", "folds", "pack"):
        _require(key not in node, key, "needs sweep's own loop; leave it out")
    for key in _OF_APPLICATIONS:
        node.pop(key, None)


def _without_epochs(config: DictConfig, pruner: dict[str, Any], objective: Sequence[str]) -> dict[str, Any]:
    """Return the pruner of trials whose number of epochs is not known. Raise ConfigError if it needs that number."""
    sweeper: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=False)
    needs = any(f"{{{key}}}" in str(sweeper["pruner"]) for key in _EPOCHS)
    if pruner.get("_target_") == NO_PRUNER or not needs:
        return pruner
    if len(objective) > 1 or not is_curve(objective[0]):  # nothing is pruned
        return {"_target_": NO_PRUNER}
    if pruner["_target_"] == _ASHA:
        kept = {key: value for key, value in pruner.items() if key != "min_resource"}
        return {**kept, "_target_": "sweep.search.pruners.HalvingByFirstTrial"}
    message = "is what this pruner has to know: the last epoch that your function reports; set it or trainer.epochs, or"
    raise ConfigError("hydra.sweeper.max_epochs", f"{message} choose hydra/sweeper/pruner=none")


def direction_of_function(metric: str, settings: StudySettings) -> str:
    """Return the direction of a metric that a training function returns: that of an objective of the same name.

    So test/accuracy has the direction of val/accuracy, and what the function returns that of a single objective. Raise
    ConfigError if there is none, and it is not a loss.
    """
    if metric == RETURNED and len(settings.direction) == 1:
        return settings.direction[0]
    name = metric.rpartition("/")[2]
    for objective, direction in zip(settings.objective, settings.direction, strict=True):
        if objective.rpartition("/")[2] == name:
            return direction
    if not _is_cost(metric):
        message = f"'{metric}' has no known direction; give the objective the same name, such as val/{name}"
        raise ConfigError("compare.metric", message)
    return "minimize"


def _direction_of_cost(name: str) -> str:
    """Return minimize. Raise ConfigError unless the metric of a training function is a loss or a time."""
    message = f"is needed for '{name}', which your function reports; set minimize or maximize"
    _require(_is_cost(name), "direction", message)
    return "minimize"


def _is_cost(name: str) -> bool:
    return name.rpartition("/")[2] == "loss" or name == "time/train_s"


def directions_of(objective: Sequence[str], task: Any, callbacks: Any = ()) -> list[str]:
    """Return minimize or maximize for each objective.

    Args:
        objective: names of metrics.
        task: the config's node.
        callbacks: the nodes of `trainer.callbacks`. They are loaded only if the task lacks an objective.

    Raises:
        ConfigError: neither the task nor a callback has an objective, or says which direction is better.
    """
    known = [*names_of(task), *OF_ANY_TASK, *OF_NOISE]
    if not {*objective} <= {*known}:
        known += declared(callbacks)
    for name in objective:
        others = "task/metrics=[...] adds others" + (
            ", and so does a callback's attribute `metrics`" if callbacks else ""
        )
        _require(name in known, "objective", f"'{name}' is unknown; choose one of: {', '.join(known)}; {others}")
    return [direction_of(name, task, callbacks) for name in objective]


def spelled_settings(changes: Mapping[str, Any]) -> list[str]:
    """Return overrides with the same effect as `changes` of `settings_of`.

    A sampler or a pruner may be given as an option's name or as a node.
    """
    spelled = []
    for key, value in changes.items():
        if key in ("sampler", "pruner"):
            name = value if isinstance(value, str) else _OPTIONS[value["_target_"]]
            spelled.append(option(f"hydra/sweeper/{key}", name))
        else:
            spelled.append(setting(f"hydra.sweeper.{key}", value))
    return spelled


def implied_monitor(objective: Any) -> str | None:
    """Return what trials monitor if `trainer.monitor` is not set: the first objective, if it is a curve.

    Return None if that is the validation loss, which is the default, or not a curve. objective: as in the config.
    """
    first = objective if isinstance(objective, str) else objective[0]
    if first.partition("/")[0] == RETURNED:
        return None
    return first if is_curve(first) and first != "val/loss" else None


def implied_direction(objective: Sequence[str], direction: Sequence[str]) -> str | None:
    """Return the direction that a training function's trials have unless they set one; None if it is the default."""
    return direction[0] if is_curve(objective[0]) and direction[0] != "minimize" else None


def sampler_node(node: dict[str, Any], named: Collection[str]) -> dict[str, Any]:
    """Return the sampler's node without the defaults of hydra-optuna-sweeper's config, so that Optuna's defaults hold.

    For TPE, for example, hydra-optuna-sweeper sets `multivariate: false`.

    Args:
        node: the sampler's node.
        named: config keys that you set, which are kept.
    """
    defaults: dict[str, Any] = {}
    for config in vars(hydra_optuna_sweeper).values():
        if dataclasses.is_dataclass(config) and getattr(config, "_target_", None) == node.get("_target_"):
            defaults = {f.name: f.default for f in dataclasses.fields(config)}
    kept = {
        key: value for key, value in node.items() if f"{_SAMPLER}{key}" in named or value != defaults.get(key, _UNKNOWN)
    }
    return {"_target_": node.get("_target_"), **kept}


def _texts(name: str, value: Any) -> list[str]:
    """Return a text or a list of texts as a list. Raises ConfigError for anything else, or if it is empty."""
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else []
    _require(bool(texts) and all(isinstance(t, str) for t in texts), name, f"must be a name or a list, got {value!r}")
    return texts


def _plain(value: Any) -> Any:
    """Return a value with numbers of Python's instead of those of numpy, as a table of pandas has them."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _require(holds: bool, name: str, problem: str) -> None:
    if not holds:
        raise ConfigError(f"hydra.sweeper.{name}", problem)
