"""The commands as functions, for a notebook or a script of your own (README, "From Python").

Each takes what a command line says as objects, and returns what the command prints. None needs `hydra.main`, and all
leave Hydra's global state, signal handlers and logging as they were. Not for two threads at once: Hydra's state is the
process's.
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
from sweep.utils.errors import ConfigError
from sweep.utils.ownership import refuse_existing
from sweep.utils.paths import absolute
from sweep.utils.terminal import say

Base = DictConfig | Sequence[str]  # what `compose` gives, or overrides for it


def run_study(
    base: Base = (),
    search: Mapping[str, Range] | None = None,
    *,
    config_dir: str | Path | None = None,
    show: bool = False,
    **settings: Any,
) -> StudyResult:
    """Begin a study, or go on with it, and return it once it is complete, or its timeout over. Like `sweep.run -m`.

    Args:
        base: the configuration that all trials share: a composed config, or overrides as on the command line.
        search: what to search beside what the options declare, by config key or group: a text in Hydra's sweep grammar
            such as "tag(log, interval(1e-4, 1e-1))" or "sgd,adam", a list of values, or a distribution of Optuna's.
        config_dir: a folder with options of your own.
        show: whether to print what the command prints.
        settings: keys of conf/hydra/sweeper/study.yaml: n_trials, sampler="random", pruner="none", seeds, pack, n_jobs,
            storage, study_name and so on.

    Raises:
        ConfigError: before anything is trained or stored.
        StudyFailed: too many trials failed.
        Interrupted: Ctrl-C, or another signal; the same call goes on with the study.
    """
    with _hydra("config", base, search, config_dir, settings) as call:
        runner = StudyRunner(make_spec(*call), Output.ALL if show else Output.NOTHING)
        study = runner.run()
        assert study is not None
        return StudyResult.of(study, runner.folder)


def load_study(study: str | Path, *, output_dir: str | Path = "outputs", storage: str | None = None) -> StudyResult:
    """A study, finished or not, as it is now.

    Args:
        study: its name, below `output_dir`, or its folder.
        storage: its hydra.sweeper.storage, where that is no file below the `output_dir` that the study is in.

    Raises:
        ConfigError: there is no such study, or its storage cannot be read.
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
    """Tune contenders alike, train each choice on fresh seeds, and judge. Like `python -m sweep.compare`.

    Args:
        base: what all share, with keys such as "compare.n_seeds=10"; as for `run_study`.
        contenders: options by group, such as {"optimizer": ["sgd", "adam"]}; those of "data" are tasks. Ranges of other
            keys replace those that the options declare.
        config_dir: a folder with options of your own.
        show: whether to print what the command prints.
        settings: of the studies, as for `run_study`; n_trials is that of each tuning.

    Raises:
        ConfigError: before anything is trained or stored.
        NothingToCompare: fewer than two contenders came to anything.
        Interrupted: as for `run_study`.
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
    """Find between which learning rates it is worth training. Like `python -m sweep.lr_range`.

    Args:
        base: the configuration, with keys such as "lr_range.n_seeds=4": a composed config, or overrides.
        config_dir: a folder with options of your own.
        folder: where to write losses.csv, lr_range.yaml and lr_range.png; by default nothing is written.
        show: whether to print how a batch size that is too large was lowered.

    Raises:
        ConfigError: a config that cannot train, or ramps that say nothing.
        TrainingFailed: the model fails.
    """
    cfg = base if isinstance(base, DictConfig) else compose(base, config_dir)
    config = check_range_config(validate(cfg))
    if is_edited(config, cfg):
        config.overrides = None  # edited since: they would make another test
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
    """Write a study's HTML page and pictures; return where the page is. Like `python -m sweep.report`.

    Args:
        study: its name, below `output_dir`, or its folder, or the study itself.
        trials: whose curves are shown; by default the best.
        page: where the page goes; by default into the study's folder, whence MLflow gets it too.
        storage: as for `load_study`.
        show: whether to print what the command prints.

    Raises:
        ConfigError: there is no such study, trial or place, or its record is damaged.
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
    """A call as a command line with root `name` would say it, while Hydra has our conf/. Raises ConfigError."""
    overrides = [*searchpath_of(config_dir), *_overrides(base)]
    given = set(map(key_of, overrides))
    if (twice := next((key for key in search or () if key_of(key) in given), None)) is not None:
        raise ConfigError(twice, "is both set and searched; leave one of them out")
    if "hydra/sweeper" in given:
        raise ConfigError("hydra/sweeper", "is what this function does; leave it out")
    if settings.get("dry_run"):
        raise ConfigError("hydra.sweeper.dry_run", "prints, and has no result; use it on the command line")
    options = {key: value for key, value in settings.items() if key in ("sampler", "pruner")}
    for key, value in options.items():
        if not isinstance(value, str):
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
    """The overrides that compose `base`. Raises ConfigError."""
    if isinstance(base, str):
        raise ConfigError("base", f"must be a list of texts, got the text '{base}'")
    if not isinstance(base, DictConfig):
        return [*base]
    config = validate(base)
    if config.overrides is None or is_edited(config, base):
        raise ConfigError("base", "was edited since it was composed; give `compose` the changes as overrides")
    return config.overrides


def _folder_of(study: str | Path, output_dir: str | Path) -> StudyFolder:
    path = Path(study)
    if isinstance(study, str) and len(path.parts) == 1:
        return begun_study(absolute(output_dir), study)
    path = absolute(path)
    if path.parent.name != "studies":
        raise ConfigError("study", f"'{path}' is no study's folder, which is <output_dir>/studies/<name>")
    return begun_study(path.parent.parent, path.name)
