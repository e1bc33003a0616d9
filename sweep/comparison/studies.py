"""The studies of a comparison. Each is an ordinary study with its own name, so it resumes like any other."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.comparison.contenders import TASK, ComparisonSpec, Contender, read_comparison
from sweep.comparison.facts import FACTS
from sweep.config.composition import searchpath_overrides
from sweep.config.nodes import MOST_SEEDS, Compare
from sweep.config.outputs import folder_name
from sweep.config.overrides import command, key_of, program, sets
from sweep.config.schema import Config, is_auto, validate
from sweep.search.composer import override
from sweep.search.ranges import whole_numbers
from sweep.search.samplers import is_grid, is_uniform
from sweep.search.settings import (
    NO_PRUNER,
    RANDOM_SAMPLER,
    StudySettings,
    is_application,
    settings_of,
    spelled_settings,
)
from sweep.search.space import Space
from sweep.study.identity import USUAL_SAMPLER, checked_name, study_name
from sweep.study.prepared import PreparedStudy
from sweep.study.spec import HydraRoot, make_spec
from sweep.trial.prepare import BATCH_SIZE
from sweep.utils.errors import ConfigError, one_line, require
from sweep.utils.files import to_yaml
from sweep.utils.ownership import refuse_existing
from sweep.utils.paths import absolute, refuse_links_in
from sweep.utils.seeds import derive_seed

_N_TRIALS, _N_TRIALS_ONCE = 8, 32  # the default number of trials of a tuning, with and without retuning
_GROUPS = ("hydra/sweeper/sampler", "hydra/sweeper/pruner")
_LONGEST = 60  # a study's name has two parts of this length at most
_NO_SEARCH = {
    "sampler": {"_target_": RANDOM_SAMPLER},
    "pruner": {"_target_": NO_PRUNER},
    "defaults_first": False,
}

Values = dict[str, Any]  # of searched keys


@dataclass
class Plan:
    """The plan of a comparison, read from its config. Making it stores nothing.

    Attributes:
        root: the source of its studies' configs.
        settings: the settings of all its studies.
        field: the contenders and tasks.
        config: the default configuration of the first contender on the first task.
        compare: the comparison's own settings.
        seed: the seed of that configuration.
        name: the comparison's name.
        command: the command that resumes the comparison.
    """

    root: HydraRoot
    settings: StudySettings
    field: ComparisonSpec
    config: Config
    compare: Compare
    seed: int
    name: str
    command: str

    @property
    def n_tunings(self) -> int:
        """The number of tunings of each contender on each task."""
        return self.compare.n_seeds if self.compare.retune else 1

    @property
    def n_trials(self) -> int:
        """The number of trials of each tuning."""
        return self.settings.n_trials or (_N_TRIALS if self.compare.retune else _N_TRIALS_ONCE)

    @property
    def seeds(self) -> list[int]:
        """The fresh seeds. Tuning uses seeds below them."""
        first = self.seed + MOST_SEEDS
        return list(range(first, first + self.compare.n_seeds))

    @property
    def folder(self) -> Path:
        """The folder of the report."""
        return absolute(self.config.output_dir) / "comparisons" / self.name


def refuse_foreign_files(plan: Plan) -> None:
    """Raise ConfigError if the report would overwrite files that are not an earlier report of this comparison."""
    folder = plan.folder
    refuse_links_in(folder, "compare.name")
    facts = folder / FACTS
    if facts.is_file() and facts.read_bytes().startswith(to_yaml({"name": plan.name}).encode()):
        return
    files = [facts, *(facts.with_suffix(suffix) for suffix in (".md", ".png"))]
    refuse_existing("compare.name", folder, files)


def make_plan(root: HydraRoot, arguments: Sequence[str]) -> Plan:
    """Make the plan of a comparison.

    Args:
        root: the source of the comparison's own config.
        arguments: overrides of a trial's keys, as on the command line.

    Raises:
        ConfigError: the comparison would be unfair, or its config cannot be used.
    """
    master, settings = root.like, settings_of(root.like, root.changes)
    compare = _compare(master)
    if root.task is None and is_auto(master.bounds):
        raise ConfigError("bounds", "auto is for a study; a comparison searches the ranges that options declare")
    field = read_comparison(root.context.config_loader, arguments, compare.over, compare.seed)
    root_of_studies = _root_of_studies(root, settings)
    space = make_spec(root_of_studies, field.shared, options=_options(field.contenders[0], field.tasks[0])).space
    first = space.composer.compose({}, {})
    config = validate(first)
    seed = _seed(config, compare)
    _refuse(settings, config, compare, seed)
    choices: dict[str, str | None] = {**first.choices}
    if len(field.tasks) > 1:
        choices[TASK] = "+".join(field.tasks)
    for group in field.contenders[0].options:
        choices[group] = "+".join(dict.fromkeys(c.options[group] for c in field.contenders))
    usual = replace(settings, study_name=None, sampler={"_target_": USUAL_SAMPLER}, defaults_first=True)
    name = study_name(usual if compare.retune else settings, space, choices, field.shared)
    if compare.name is not None:
        name = checked_name("compare.name", compare.name)
    own = [o for o in root.own if not sets(o, "hydra.mode", "hydra.searchpath")] + spelled_settings(root.changes)
    words = [*searchpath_overrides(master.hydra), *own, *arguments]
    application = space.composer.application
    again = (
        command("sweep.compare", *words) if application is None else program("python", application.script, "-m", *words)
    )
    return Plan(root_of_studies, settings, field, config, compare, seed, name, again)


def _compare(master: DictConfig) -> Compare:
    """Return the comparison's own settings. Raise ConfigError for a bad one."""
    node = master.hydra.sweeper.compare if is_application(master) else master.compare
    message = "is needed: the key of your config that the application draws all random numbers from"
    require(not OmegaConf.is_missing(node, "seed"), "hydra.sweeper.compare.seed", message)
    try:
        compare = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Compare), node))
    except OmegaConfBaseException as error:
        raise ConfigError(f"compare.{getattr(error, 'full_key', None) or ''}", one_line(error)) from error
    assert isinstance(compare, Compare)
    return compare


def _seed(config: Config, compare: Compare) -> int:
    """Return the seed of a configuration. Raise ConfigError if `compare.seed` names none."""
    if config.hydra_application is None:
        require(compare.seed == "seed", "compare.seed", "is for another application; sweep's own seed is seed")
        return config.seed
    node: Any = config.hydra_application
    for part in compare.seed.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    message = f"names '{compare.seed}', which is {node}; name a key that is a whole number, from 0"
    require(type(node) is int and node >= 0, "hydra.sweeper.compare.seed", message)
    return node


def _root_of_studies(root: HydraRoot, settings: StudySettings) -> HydraRoot:
    """Return the source of the studies' configs: that of `sweep.run`, with the comparison's settings for studies."""
    choices = root.like.hydra.runtime.choices
    own = [o for o in root.own if key_of(o) not in ("hydra.mode", "hydra/help", "hydra/sweeper", *_GROUPS)]
    options = {group: choices[group] for group in _GROUPS}
    changes = {"defaults_first": settings.defaults_first, **root.changes}
    if root.task is None:
        return replace(root, name="config", own=own, options=options, changes={"pack": settings.pack, **changes})
    own = [o for o in own if not f"{key_of(o)}.".startswith("hydra.sweeper.compare.")]
    return replace(root, own=own, options={"hydra/sweeper": "study", **options}, changes=changes)


def _refuse(settings: StudySettings, config: Config, compare: Compare, seed: int) -> None:
    """Raise ConfigError for settings that would make the comparison unfair, or have no meaning for it."""
    if not config.is_application:
        message = f"must be one of the test split, such as test/loss, got '{compare.metric}'"
        require(compare.metric.startswith("test/"), "compare.metric", message)
    if settings.study_name is not None:
        raise ConfigError("hydra.sweeper.study_name", "a comparison has many studies; set compare.name")
    if settings.retry_failed:
        raise ConfigError("hydra.sweeper.retry_failed", "is for a study; a comparison counts what failed as it did")
    if settings.folds > 1:
        raise ConfigError("hydra.sweeper.folds", "is for a study; a comparison judges on the test split")
    if settings.timeout is not None:
        raise ConfigError("hydra.sweeper.timeout", "would leave contenders with unequal budgets; leave it out")
    if len(settings.objective) > 1:
        raise ConfigError("hydra.sweeper.objective", "a comparison tunes for one objective; name one")
    if seed + settings.seeds > MOST_SEEDS:
        raise ConfigError(compare.seed, f"{seed} is too large for a comparison; choose one below 900")
    if config.trainer.seed != config.seed:
        raise ConfigError("trainer.seed", "would be the same for every run; set seed, which it follows")
    if not compare.retune:
        return
    message = "set compare.retune=false to tune each contender once"
    if not is_uniform(settings.sampler):
        raise ConfigError(
            "hydra/sweeper/sampler", f"only random draws make tunings of one study independent; {message}"
        )
    if not settings.pruner["_target_"].endswith(".NopPruner"):
        raise ConfigError(
            "hydra/sweeper/pruner", f"would make the tunings of one study depend on each other; {message}"
        )
    for key in ("enqueue", "defaults_first"):
        if getattr(settings, key):
            raise ConfigError(f"hydra.sweeper.{key}", f"would favour one tuning of many; {message}")


def tuning(plan: Plan, contender: Contender, task: str) -> PreparedStudy:
    """Return the study that tunes a contender.

    Its trial i belongs to tuning i modulo `n_tunings`. So if the budget grows, each tuning keeps its trials and gets
    more.
    """
    changes: dict[str, Any] = {}
    if not (is_grid(plan.settings.sampler) and plan.settings.n_trials is None):
        changes["n_trials"] = plan.n_trials * plan.n_tunings
    if not is_grid(plan.settings.sampler):
        seed = plan.settings.sampler.get("seed")
        seed = derive_seed(plan.seed if seed is None else int(seed), f"{contender.name} {task}") % 2**31
        changes["sampler.seed"] = seed
    return _study(plan, contender, task, "tuning", changes)


def fresh(
    plan: Plan, contender: Contender, task: str, chosen: Sequence[tuple[int, Values]], space: Space
) -> PreparedStudy:
    """Return the study that trains the chosen configurations on the fresh seeds.

    Args:
        plan: the plan.
        contender: the contender.
        task: the task.
        chosen: seeds and values. The trials have this order.
        space: the search space that the values were chosen from.
    """
    items = [{plan.compare.seed: seed, **values} for seed, values in chosen]
    texts = ["{" + ",".join(override(*pair).replace("=", ":", 1) for pair in item.items()) + "}" for item in items]
    digest = hashlib.sha256("".join(texts).encode()).hexdigest()[:6]  # different choices make a different study
    enqueue = [{key: space.meaning({}, key, value) for key, value in item.items()} for item in items]
    changes = {**_no_search(plan), "n_trials": len(items), "enqueue": enqueue}
    ranges = {plan.compare.seed: whole_numbers([seed for seed, _ in chosen])}
    return _study(plan, contender, task, f"chosen-{digest}", changes, ranges=ranges)


def untuned(plan: Plan, contender: Contender, task: str, like: PreparedStudy) -> PreparedStudy:
    """Return the study that trains the contender's untuned defaults on the fresh seeds.

    `like` is the contender's tuning. The keys that it searches are fixed to their defaults.
    """
    config = like.space.composer.base({}).config
    values = {key: OmegaConf.select(config, key) for key in like.space.ranges({})}
    if BATCH_SIZE in values and not plan.config.is_application:
        values[BATCH_SIZE] = like.default_config.trainer.batch_size
    changes = {**_no_search(plan), "n_trials": plan.compare.n_seeds, "enqueue": []}
    ranges = {plan.compare.seed: whole_numbers(plan.seeds)}
    return _study(plan, contender, task, f"defaults-{plan.compare.n_seeds}", changes, values, ranges)


def _no_search(plan: Plan) -> dict[str, Any]:
    """Return the settings of a study that trains what is given. An application has no setting `seeds`."""
    return _NO_SEARCH if plan.config.is_application else {**_NO_SEARCH, "seeds": 1}


def _study(
    plan: Plan,
    contender: Contender,
    task: str,
    part: str,
    changes: Mapping[str, Any],
    values: Mapping[str, Any] | None = None,
    ranges: Mapping[str, Any] | None = None,
) -> PreparedStudy:
    """Return a study of the comparison.

    Args:
        plan: the plan.
        contender: the contender.
        task: the task.
        part: the last part of the study's name.
        changes: settings that replace the user's.
        values: values of config keys that replace the user's.
        ranges: ranges to search, which replace the user's.
    """
    who = "--".join(filter(None, [contender.name, task, part]))
    name = f"{_shortened(plan.name)}--{_shortened(who)}"
    spec = make_spec(
        plan.root,
        plan.field.shared,
        {"study_name": name, **changes},
        ranges,
        options=_options(contender, task),
        values=values,
    )
    return PreparedStudy(spec)


def _options(contender: Contender, task: str) -> dict[str, str]:
    """Return the option of each compared group, by group."""
    return {TASK: task, **contender.options} if task else contender.options


def _shortened(name: str) -> str:
    """Return a folder name of at most 60 characters, with a digest if it differs from the given name."""
    if len(name) <= _LONGEST - 1 and name == folder_name(name):
        return name
    return f"{folder_name(name)[: _LONGEST - 8]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
