"""The commands as functions, for a notebook or a script of your own (README, "From Python").

Each function takes Python objects instead of a command line, and returns what the command would print. None of them
needs `hydra.main`. All of them restore Hydra's global state, the signal handlers and the logging.

They are not thread-safe, because Hydra's state is global: call them from one thread at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.types import HydraContext
from omegaconf import DictConfig

from sweep.comparison.comparison import Comparison, ComparisonResult
from sweep.config.composition import compose, load_multirun, own_hydra, searchpath_of
from sweep.config.guard import LOGGING_CLASSES, check_hydra
from sweep.config.output_folders import register
from sweep.config.overrides import is_hydras, key_of
from sweep.config.schema import is_edited, validate
from sweep.reporting.writing import write_page
from sweep.search.ranges import Range, sweep_override
from sweep.search.settings import spelled_settings
from sweep.storage.quiet import quiet_optuna
from sweep.study.progress import Output
from sweep.study.reading import read_study
from sweep.study.runner import StudyRunner
from sweep.study.spec import HydraRoot, make_root, make_spec
from sweep.study.study_result import StudyResult
from sweep.tracking.folders import StudyFolder, begun_study
from sweep.trial.lr_range import RangeResult, check_range_config, read_ramps
from sweep.trial.range_test import range_test
from sweep.trial.range_test_record import RangeFolder
from sweep.trial.run import run_trial as run_trial
from sweep.trial.stored_model import load_model as load_model
from sweep.utils.errors import ConfigError
from sweep.utils.ownership import refuse_existing
from sweep.utils.paths import absolute
from sweep.utils.terminal import say

Base = DictConfig | Sequence[str]  # a config that `compose` returned, or overrides for it


def run_study(
    base: Base = (),
    search: Mapping[str, Range] | None = None,
    *,
    config_dir: str | Path | None = None,
    show: bool = False,
    **settings: Any,
) -> StudyResult:
    """Run a study, like `python -m sweep.run -m`. If the study exists, resume it.

    The same arguments always name the same study. So after an interruption or a crash, the same call resumes it.

    Args:
        base: the configuration that all trials share: a composed config, or overrides as on the command line.
        search: further ranges to search besides those that the options declare, by config key or group. A range is a
            text in Hydra's sweep grammar such as "tag(log, interval(1e-4, 1e-1))" or "sgd,adam", a list of values, or a
            distribution of Optuna's.
        config_dir: a folder with options of your own, like Hydra's --config-dir.
        show: True prints what the command prints.
        settings: keys of conf/hydra/sweeper/study.yaml: n_trials, sampler="random", pruner="none", seeds, pack, n_jobs,
            storage, study_name and so on.

    Returns:
        The study, when it is complete or its timeout is over.

    Raises:
        ConfigError: the study cannot be run. Nothing is trained then.
        StudyFailed: too many trials failed.
        DiskFull: there is no room. What was recorded before stays complete.
        Interrupted: Ctrl-C, or another signal. It is a KeyboardInterrupt.
        Unsent: the study is complete, but MLflow cannot get all of it, because a record is damaged.
    """
    with _hydra("config", base, search, config_dir, settings) as call:
        runner = StudyRunner(make_spec(*call), Output.ALL if show else Output.NOTHING)
        study = runner.run()
        assert study is not None
        return StudyResult.of(study, runner.folder)


def load_study(study: str | Path, *, output_dir: str | Path = "outputs", storage: str | None = None) -> StudyResult:
    """Load a study as it is now, complete or not. Nothing is written.

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
    folder = _folder_of(study, output_dir)
    with quiet_optuna():
        return StudyResult.of(read_study(folder, storage), folder)


def run_comparison(
    base: Base = (),
    contenders: Mapping[str, Range] | None = None,
    *,
    config_dir: str | Path | None = None,
    show: bool = False,
    **settings: Any,
) -> ComparisonResult:
    """Run a comparison, like `python -m sweep.compare`. If it exists, resume it.

    Every contender is tuned with the same budget. What a tuning chose is trained on fresh seeds, and the runs are
    judged.

    Args:
        base: the configuration that all contenders share, as for `run_study`. It may have keys such as
            "compare.n_seeds=10".
        contenders: the options to compare, by group, such as {"optimizer": ["sgd", "adam"]}. The options of "data" are
            tasks. Ranges of other keys replace those that the options declare.
        config_dir: a folder with options of your own, like Hydra's --config-dir.
        show: True prints what the command prints.
        settings: settings of the studies, as for `run_study`. n_trials is the number of trials of each tuning.

    Returns:
        The result, with a verdict for each task and the folder of the report.

    Raises:
        ConfigError: the comparison cannot be run. Nothing is trained then.
        NothingToCompare: fewer than two contenders can be compared.
        DiskFull, Interrupted, Unsent: as for `run_study`.
    """
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
    config = check_range_config(validate(cfg))
    if is_edited(config, cfg):
        config.overrides = None  # they no longer compose this config
    kept = None if folder is None else RangeFolder(absolute(folder))
    if kept is not None:
        refuse_existing("folder", kept.path, kept.written)
    return read_ramps(config, range_test(config, say=say if show else lambda line: None), kept)


def write_report(
    study: str | Path | StudyResult,
    *,
    output_dir: str | Path = "outputs",
    trials: Sequence[int] | None = None,
    page: str | Path | None = None,
    storage: str | None = None,
    show: bool = False,
) -> Path:
    """Write the report of a study, an HTML page with plots, like `python -m sweep.report`.

    Args:
        study: the name of a study in `output_dir`, the folder of a study, or a study that was loaded or run.
        output_dir: the folder that results go to. It is used only if you give a name.
        trials: the numbers of the trials whose curves are shown; by default the best.
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
    folder = _folder_of(study.folder if isinstance(study, StudyResult) else study, output_dir)
    place = None if page is None else Path(page)
    return write_page(folder, trials, place, storage, say if show else lambda line: None)


@contextmanager
def _hydra(
    name: str,
    base: Base,
    search: Mapping[str, Range] | None,
    config_dir: str | Path | None,
    settings: Mapping[str, Any],
) -> Iterator[tuple[HydraRoot, list[str]]]:
    """Hold Hydra initialised with our conf/, and yield a call in the form of a command line.

    Args:
        name: the name of the primary config.
        base: as for `run_study`.
        search: as for `run_study`.
        config_dir: as for `run_study`.
        settings: as for `run_study`.

    Yields:
        The source of the configs, and the overrides of a trial's keys.

    Raises:
        ConfigError: the arguments contradict each other, or their config cannot be composed.
    """
    overrides = [*searchpath_of(config_dir), *_overrides(base)]
    given = set(map(key_of, overrides))
    if (twice := next((key for key in search or () if key_of(key) in given), None)) is not None:
        raise ConfigError(twice, "is both set and searched; leave one of them out")
    if "hydra/sweeper" in given:
        raise ConfigError("hydra/sweeper", "is what this function does; leave it out")
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
        config = load_multirun(loader, name, [*own, *arguments])
        check_hydra(config.hydra)
        context = HydraContext(loader, Callbacks(), LOGGING_CLASSES[:1])
        yield make_root(context, config, changes, embedded=True), arguments


def _overrides(base: Base) -> list[str]:
    """Return the overrides that compose `base`. Raise ConfigError if it was edited, or is a single text."""
    if isinstance(base, str):
        raise ConfigError("base", f"must be a list of texts, got the text '{base}'")
    if not isinstance(base, DictConfig):
        return [*base]
    config = validate(base)
    if config.overrides is None or is_edited(config, base):
        raise ConfigError("base", "was edited since it was composed; give `compose` the changes as overrides")
    return config.overrides


def _folder_of(study: str | Path, output_dir: str | Path) -> StudyFolder:
    """Return the folder of a study, given by name or by path. Raise ConfigError if there is no study."""
    path = Path(study)
    if isinstance(study, str) and len(path.parts) == 1:
        return begun_study(absolute(output_dir), study)
    path = absolute(path)
    if path.parent.name != "studies":
        raise ConfigError("study", f"'{path}' is not the folder of a study, which is <output_dir>/studies/<name>")
    return begun_study(path.parent.parent, path.name)
