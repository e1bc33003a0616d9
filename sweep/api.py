"""The commands as functions, for a notebook or a script of your own (README, "From Python").

Each function takes Python objects instead of a command line, and returns what the command would print. None of them
needs `hydra.main`. All of them restore Hydra's global state, the signal handlers and the logging.

They may be called from any thread. Calls that compose configs take turns, because Hydra's state is global.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

from hydra._internal.callbacks import Callbacks
from hydra.types import HydraContext
from omegaconf import DictConfig

from sweep.comparison.comparison import Comparison, ComparisonResult
from sweep.config.composition import compose, load_multirun, own_hydra, searchpath_of
from sweep.config.function_node import CALL, given_call, is_given
from sweep.config.guard import LOGGING_CLASSES, check_hydra
from sweep.config.output_folders import register
from sweep.config.overrides import is_hydras, key_of, setting, value_of
from sweep.config.schema import is_edited, validate
from sweep.reporting.writing import write_page_of
from sweep.search.ranges import Range, sweep_override
from sweep.search.settings import spelled_settings
from sweep.storage.quiet import quiet_optuna
from sweep.study.handle import StudyHandle
from sweep.study.prepared import PreparedStudy
from sweep.study.progress import Output
from sweep.study.reading import read_study, trusted_storage
from sweep.study.resuming import recorded_call
from sweep.study.runner import StudyRunner
from sweep.study.spec import HydraRoot, make_root, make_spec
from sweep.study.study_result import StudyResult
from sweep.tracking.folders import StudyFolder, study_at
from sweep.tracking.syncing import sync_outputs as sync_outputs
from sweep.trial.lr_range import RangeResult, read_ramps, train_ramps
from sweep.trial.model_export import export_model as export_model
from sweep.trial.range_test_record import RangeFolder
from sweep.trial.run import run_trial as run_trial
from sweep.trial.stored_model import load_model as load_model
from sweep.utils.errors import ConfigError, require
from sweep.utils.notebook import is_notebook
from sweep.utils.paths import absolute
from sweep.utils.terminal import say

Base = DictConfig | Sequence[str]  # a config that `compose` returned, or overrides for it


@overload
def run_study(
    base: Base = (),
    search: Mapping[str, Range] | None = None,
    *,
    train: Callable[..., Any] | None = None,
    space: Mapping[str, Range] | None = None,
    config_dir: str | Path | None = None,
    show: bool | None = None,
    wait: Literal[True] = True,
    **settings: Any,
) -> StudyResult: ...


@overload
def run_study(
    base: Base = (),
    search: Mapping[str, Range] | None = None,
    *,
    train: Callable[..., Any] | None = None,
    space: Mapping[str, Range] | None = None,
    config_dir: str | Path | None = None,
    show: bool | None = None,
    wait: Literal[False],
    **settings: Any,
) -> StudyHandle: ...


def run_study(
    base: Base = (),
    search: Mapping[str, Range] | None = None,
    *,
    train: Callable[..., Any] | None = None,
    space: Mapping[str, Range] | None = None,
    config_dir: str | Path | None = None,
    show: bool | None = None,
    wait: bool = True,
    **settings: Any,
) -> StudyResult | StudyHandle:
    """Run a study, like `python -m sweep.run -m`. If the study exists, resume it.

    The same arguments always name the same study. So after an interruption or a crash, the same call resumes it.

    >>> import sweep
    >>> base = ["experiment=debug", "tracking=off"]
    >>> study = sweep.run_study(base, {"optimizer": ["sgd", "adam"]}, n_trials=2, pruner="none")
    >>> study.trials().state.tolist()
    ['complete', 'complete']

    With a training function of your own, that is all it takes:

    >>> def train(cfg, trial):
    ...     return {"val/loss": (cfg.x - 3) ** 2}
    >>> study = sweep.run_study(["tracking=off"], train=train, space={"x": [1, 3, 5]}, sampler="grid")
    >>> study.best.params, study.value
    ({'x': 3}, 0.0)

    Args:
        base: the configuration that all trials share: a composed config, or overrides as on the command line. Sweeps
            among them are searched too, such as "optimizer=sgd,adam".
        search: further ranges to search besides those that the options declare, by config key or group. A range is a
            text in Hydra's sweep grammar such as "tag(log, interval(1e-4, 1e-1))" or "sgd,adam", a list of values, or a
            distribution of Optuna's.
        train: a training function, called as `train(cfg, trial)` (docs/functions.md). The study knows it by its name.
            Several workers, or one with a `trial_timeout`, are processes to which it is sent, by value if need be.
        space: ranges for `train`, like `search`. Keys that the config lacks are added to it.
        config_dir: a folder with options of your own, like Hydra's --config-dir.
        show: True prints what the command prints; False shows nothing. None shows progress in the cell of a notebook,
            and nothing elsewhere.
        wait: False runs the study in a thread. Mistakes in the arguments are raised at once all the same.
        settings: keys of conf/hydra/sweeper/study.yaml: n_trials, sampler="random", pruner="none", seeds, pack, n_jobs,
            storage, study_name and so on.

    Returns:
        The study, when it is complete or its timeout is over. With wait=False, a handle at once: `done()`,
        `result()`, `study()` for the study as it is now, and `stop()`.

    Raises:
        ConfigError: the study cannot be run. Nothing is trained then.
        StudyFailed: too many trials failed.
        DiskFull: there is no room. What was recorded before stays complete.
        Interrupted: Ctrl-C, or another signal. It is a KeyboardInterrupt.
        Unsent: the study is complete, but MLflow cannot get all of it, because a record is damaged.
    """

    def resume(**more: Any) -> Any:
        """Make the same call, with other settings. The name stays, whatever they are."""
        options: dict[str, Any] = {"train": train, "space": space, "config_dir": config_dir, "show": show}
        return run_study(base, search, **{**options, "study_name": prepared.name, **settings, **more})

    def result() -> StudyResult:
        with quiet_optuna():
            study = StudyRunner(prepared, _output(show)).run()
            assert study is not None
            return StudyResult.of(study, prepared.folder, resume)

    if train is None and space is not None:
        raise ConfigError("space", "is for a training function; give it as train=, or call it search")
    given = _overrides(base) if train is None else _with_function(train, _overrides(base))
    with _hydra("config", given, search, config_dir, settings, space) as (root, arguments):
        prepared = PreparedStudy(make_spec(replace(root, function=train), arguments))
        if not prepared.space.bounds_are_auto:
            prepared.check()
    return result() if wait else StudyHandle(prepared, result)


def load_study(study: str | Path, *, output_dir: str | Path = "outputs", storage: str | None = None) -> StudyResult:
    """Load a study as it is now, complete or not. Nothing is written.

    >>> import sweep
    >>> base = ["experiment=debug", "tracking=off"]
    >>> _ = sweep.run_study(base, n_trials=2, pruner="none", study_name="first")
    >>> study = sweep.load_study("first")
    >>> study.status.counted()
    '2 of 2 trials: 2 complete'
    >>> study = study.resume(n_trials=3)  # with the command in its record
    >>> len(study.results)
    3

    The method `resume` of the result takes `overrides` and `config_dir` besides settings. You need them if the record
    names a place that somebody else could have chosen: a launcher, a tracking store or a folder of options.

    Args:
        study: the name of a study in `output_dir`, or the folder of a study.
        output_dir: the folder that results go to. It is not used if you give a folder.
        storage: the study's hydra.sweeper.storage. You need it if the trials are in a database, or in a file outside
            the `output_dir` that contains the study.

    Returns:
        A copy of the study. It does not change while the study runs.

    Raises:
        ConfigError: there is no such study, or its storage cannot be read or lacks trials.
    """
    folder = study_at(study, output_dir)
    with quiet_optuna():
        return StudyResult.of(read_study(folder, storage), folder, partial(_resume_recorded, folder, storage))


def _resume_recorded(
    folder: StudyFolder,
    storage: str | None,
    overrides: Sequence[str] = (),
    config_dir: str | Path | None = None,
    **settings: Any,
) -> Any:
    """Resume a study with the command in its record. See `recorded_call` for `overrides`."""
    base = recorded_call(folder, [*searchpath_of(config_dir), *overrides])
    own = {"study_name": folder.path.name}
    if (url := trusted_storage(folder, storage)) is not None:
        own["storage"] = url
    return run_study(base, **{**own, **settings})


def _output(show: bool | None) -> Output:
    if show is None and is_notebook():
        return Output.NOTEBOOK
    return Output.ALL if show else Output.NOTHING


def run_comparison(
    base: Base | Mapping[str, Range] = (),
    contenders: Mapping[str, Range] | None = None,
    *,
    config_dir: str | Path | None = None,
    show: bool = False,
    **settings: Any,
) -> ComparisonResult:
    """Run a comparison, like `python -m sweep.compare`. If it exists, resume it.

    Every contender is tuned with the same budget. What a tuning chose is trained on fresh seeds, and the runs are
    judged.

    >>> import sweep
    >>> base = ["experiment=debug", "tracking=off", "compare.n_seeds=2"]
    >>> compared = sweep.run_comparison(base, {"model": ["mlp", "linear"]}, n_trials=1)
    >>> list(compared.table().contender)
    ['mlp', 'linear']
    >>> compared.verdict[:25]
    'no detectable difference '

    Args:
        base: the configuration that all contenders share, as for `run_study`. It may have keys such as
            "compare.n_seeds=10". You may leave it out: `run_comparison({"optimizer": ["sgd", "adam"]})`.
        contenders: the options to compare, by group, such as {"optimizer": ["sgd", "adam"]}. The options of "data" are
            tasks. Ranges of other keys replace those that the options declare.
        config_dir: a folder with options of your own, like Hydra's --config-dir.
        show: True prints what the command prints.
        settings: settings of the studies, as for `run_study`. n_trials is the number of trials of each tuning.

    Returns:
        The result, with the verdict, the table, the plot and the folder of the report.

    Raises:
        ConfigError: the comparison cannot be run. Nothing is trained then.
        NothingToCompare: fewer than two contenders can be compared.
        DiskFull, Interrupted, Unsent: as for `run_study`.
    """
    if isinstance(base, Mapping) and not isinstance(base, DictConfig):
        if contenders is not None:
            raise ConfigError("base", "must be overrides or a composed config, as contenders are given too")
        base, contenders = (), base
    with _hydra("compare", base, contenders, config_dir, settings) as call:
        result = Comparison(*call, says=show).run()
        assert result is not None
        return result


def run_lr_range(
    base: Base = (),
    *,
    config_dir: str | Path | None = None,
    folder: str | Path | None = None,
    show: bool = False,
) -> RangeResult:
    """Suggest bounds for the learning rate by a range test, like `python -m sweep.lr_range`.

    Args:
        base: the configuration: a composed config, or overrides as on the command line. It may have keys such as
            "lr_range.n_seeds=4".
        config_dir: a folder with options of your own, like Hydra's --config-dir.
        folder: where to write losses.csv, lr_range.yaml and lr_range.png; by default nothing is written.
        show: True prints a line if the default batch size was lowered to fit the data.

    Returns:
        The suggested bounds, and the losses of every ramp.

    Raises:
        ConfigError: the config cannot be used, the ramps suggest no bounds, or the folder has such files already.
        TrainingFailed: the model raises an error while it trains.
    """
    cfg = base if isinstance(base, DictConfig) else compose(base, config_dir)
    kept = None if folder is None else RangeFolder(absolute(folder))
    config, ramps = train_ramps(cfg, kept, "folder", say if show else lambda line: None)
    return read_ramps(config, ramps, kept)


def write_report(
    study: str | Path | StudyResult | ComparisonResult,
    *,
    output_dir: str | Path = "outputs",
    trials: Sequence[int] | None = None,
    page: str | Path | None = None,
    storage: str | None = None,
    show: bool = False,
) -> Path:
    """Write the report of a study or a comparison, an HTML page, like `python -m sweep.report`.

    A study may be running, and need not have a finished trial.

    >>> import sweep
    >>> study = sweep.run_study(["experiment=debug", "tracking=off"], n_trials=3, pruner="none", study_name="first")
    >>> sweep.write_report(study).name
    'report.html'

    Args:
        study: the name of a study or a comparison in `output_dir`, the path of its folder, or a result.
        output_dir: the folder that results go to. It is used only if you give a name.
        trials: the numbers of the trials whose curves are shown; by default the best. Not for a comparison.
        page: where the page goes; its plots go to plots/ beside it. By default it is report.html in the study's folder,
            which is uploaded to MLflow too.
        storage: as for `load_study`.
        show: True prints what the command prints.

    Returns:
        The path of the page.

    Raises:
        ConfigError: there is no such study or trial, the page cannot be written there, or a record is damaged.
        OSError: the study cannot be read.
    """
    named = study if isinstance(study, str | Path) else study.folder
    place = None if page is None else Path(page)
    return write_page_of(named, output_dir, trials, place, storage, say if show else lambda line: None)


@contextmanager
def _hydra(
    name: str,
    base: Base,
    search: Mapping[str, Range] | None,
    config_dir: str | Path | None,
    settings: Mapping[str, Any],
    added: Mapping[str, Range] | None = None,
) -> Iterator[tuple[HydraRoot, list[str]]]:
    """Hold Hydra initialised with our conf/, and yield a call in the form of a command line.

    Args:
        name: the name of the primary config.
        base: as for `run_study`.
        search: as for `run_study`.
        config_dir: as for `run_study`.
        settings: as for `run_study`.
        added: further ranges, by config key. Keys that the config lacks are added.

    Yields:
        The source of the configs, and the overrides of a trial's keys.

    Raises:
        ConfigError: the arguments contradict each other, or their config cannot be composed.
    """
    overrides = [*searchpath_of(config_dir), *_overrides(base)]
    for argument, ranges in (("contenders" if name == "compare" else "search", search), ("space", added)):
        is_mapping = isinstance(ranges or {}, Mapping) and all(isinstance(key, str) for key in ranges or ())
        require(is_mapping, argument, f"must map config keys to ranges, such as {{'lr': [0.1, 0.2]}}, got {ranges!r}")
    given = set(map(key_of, overrides))
    searched = [*map(key_of, (*(search or ()), *(added or ())))]
    for key in searched:
        require(key not in given, key, "is both set and searched; leave one of them out")
        require(searched.count(key) == 1, key, "is searched twice; name it once, in search= or in space=")
    if "hydra/sweeper" in given:
        raise ConfigError("hydra/sweeper", "is what this function does; leave it out")
    if any(key.partition(".")[0] == "params" for key in settings):
        raise ConfigError("hydra.sweeper.params", "is for a command line; give these ranges as search={key: range}")
    if settings.get("dry_run"):
        raise ConfigError("hydra.sweeper.dry_run", "prints, and has no result; use it on the command line")
    options = {key: value for key, value in settings.items() if key in ("sampler", "pruner", "max_epochs")}
    for key, value in options.items():
        if not isinstance(value, str) and key != "max_epochs":  # a number, to which nodes of pruners refer
            raise ConfigError(f"hydra.sweeper.{key}", f"must be the name of an option, such as random, got {value!r}")
    changes = {key: value for key, value in settings.items() if key not in options}
    own = [*(o for o in overrides if is_hydras(o)), *spelled_settings(options)]
    arguments = [o for o in overrides if not is_hydras(o)]
    arguments += [sweep_override(key, value) for key, value in (search or {}).items()]
    register()
    with quiet_optuna(), own_hydra() as loader:
        for key, value in (added or {}).items():
            adds = not (key.startswith("+") or loader.get_group_options(key))
            arguments.append(sweep_override(f"++{key}" if adds else key, value))
        config = load_multirun(loader, name, [*own, *arguments])
        check_hydra(config.hydra)
        context = HydraContext(loader, Callbacks(), LOGGING_CLASSES[:1])
        yield make_root(context, config, changes, embedded=True), arguments


def _with_function(train: Callable[..., Any], overrides: list[str]) -> list[str]:
    """Return the overrides of a study that a function given as an object trains.

    Raises ConfigError if it is no function, or the overrides name another.
    """
    if not callable(train):
        raise ConfigError("train", f"must be a function of a config and a trial, got {train!r}")
    kept = [o for o in overrides if not (key_of(o) == CALL and is_given(value_of(o).strip("'\"")))]  # of a record
    keys = {*map(key_of, kept)}
    if CALL in keys:
        raise ConfigError(CALL, "names a training function, and another is given as train=; leave one of them out")
    option = [] if "trainer" in keys else ["trainer=function"]
    return [*option, setting(CALL, given_call(train)), *kept]


def _overrides(base: Base) -> list[str]:
    """Return the overrides that compose `base`. Raise ConfigError if it was edited, or is a single text."""
    if isinstance(base, str):
        raise ConfigError("base", f"must be a list of texts, got the text '{base}'")
    if not isinstance(base, DictConfig):
        if isinstance(base, Mapping) or not all(isinstance(override, str) for override in base):
            raise ConfigError("base", f"must be a list of texts, or a config of sweep.compose, got {base!r}")
        return [*base]
    config = validate(base)
    if config.overrides is None or is_edited(config, base):
        raise ConfigError("base", "was edited since it was composed; give `compose` the changes as overrides")
    return config.overrides
