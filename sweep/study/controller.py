"""The command that runs a study: checks it, begins or resumes it, launches workers, shows and records what they do."""

import contextlib
import itertools
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from sweep import build
from sweep.composition import config_error
from sweep.config import validate
from sweep.errors import ConfigError, Interrupted, StudyFailed, one_line
from sweep.record.folder import Busy, StudyFolder, write_atomic
from sweep.record.follow import Follower
from sweep.record.journal import Journal
from sweep.record.store import recorded_uri, tracking_store
from sweep.study.composer import override
from sweep.study.failures import too_many_failures
from sweep.study.identity import differences, identity, study_name
from sweep.study.ledger import PROBLEM, Ledger
from sweep.study.lock import StudyLock
from sweep.study.plots import draw_plots
from sweep.study.progress import Watch, print_outcome
from sweep.study.results import StudyRecord, best_trials, new_uid, start_facts, write_results
from sweep.study.samplers import is_grid
from sweep.study.settings import StudySettings
from sweep.study.space import make_space
from sweep.study.storage import open_storage
from sweep.study.worker import Worker

_IDENTITY = "identity"  # user attributes of the study, as is
_UID = "uid"
_POLL_S = 0.2
_MOST_LOST_LAUNCHES = 3  # in a row, without a trial finished between them


class Controller:
    """One `python -m sweep.run -m`. Its methods stand in the order in which they are called."""

    def __init__(
        self, context: HydraContext, config: DictConfig, settings: StudySettings, arguments: Sequence[str]
    ) -> None:
        self._context, self._settings = context, settings
        self._master = _with_launcher(context, config, settings, arguments)
        self._space = make_space(context.config_loader, self._master, arguments)
        self._base = self._space.composer.compose(self._default_groups(), {})
        self._name = study_name(settings, self._space, self._base.choices, self._space.composer.fixed)
        output_dir = Path(self._base.output_dir).absolute()
        self._folder = StudyFolder(output_dir / "studies" / self._name)
        self._master.hydra.sweep.dir = str(self._folder.path)  # some launchers put files of their own there
        self._stopped_by: int | None = None

    def run(self) -> float | None:
        """Returns the best value. Raises ConfigError, StudyFailed or Interrupted."""
        worker = self._check()
        if self._settings.dry_run:
            from sweep.study.dry_run import dry_run

            dry_run(worker, self._base)
            return None
        study = self._open(worker)
        before = study.get_trials(deepcopy=False)
        n_done = sum(t.state.is_finished() for t in before[: worker.n_trials])
        self._announce(n_done, worker.n_trials)
        worker = replace(worker, first=len(before), stop_before=time.time() + (self._settings.timeout or float("inf")))
        with ExitStack() as stack:
            record = stack.enter_context(self._record(study, worker))
            watch = stack.enter_context(Watch(study, worker.n_trials, record, live=sys.stderr.isatty()))
            stack.enter_context(self._signals(worker))
            if n_done < worker.n_trials:
                self._launch(study, worker)
            watch.close()
            trials = study.get_trials(deepcopy=False)
            failure = too_many_failures(trials[worker.first :], self._settings.max_failure_rate)
            with StudyLock(self._settings.storage, self._folder):  # another controller may be doing the same
                write_results(study, self._folder, self._space)
            unfinished = any(not t.state.is_finished() for t in trials[: worker.n_trials])
            complete = len(trials) >= worker.n_trials and not unfinished
            if record is not None:
                draw_plots(study, self._folder.plots)
                record.end("FAILED" if failure else "FINISHED" if complete else "KILLED", self._folder)
        print_outcome(study, self._folder, worker.n_trials)
        if failure is not None:
            told = failure.user_attrs.get(PROBLEM, "no reason recorded")
            raise StudyFailed(self._name, failure.number, told, self._folder.trial(failure.number).path)
        if self._stopped_by is not None:
            raise Interrupted(self._stopped_by)
        best = best_trials(study)
        return best[0].value if best and len(study.directions) == 1 else None

    def _default_groups(self) -> dict[str, str]:
        """The configured option of each sampled group where it is among those sampled, else the first."""
        choices = self._master.hydra.runtime.choices
        first = self._space.first_groups()
        return {g: choices[g] if choices.get(g) in d.choices else first[g] for g, d in self._space.groups.items()}

    def _check(self) -> Worker:
        """Everything that can be refused before a worker starts. Raises ConfigError."""
        settings, space = self._settings, self._space
        build.pruner(settings.pruner)
        grid = list(space.everything()) if is_grid(settings.sampler) else None
        if grid is not None and not grid:
            raise ConfigError("where", "leaves nothing of the grid; change it, or the ranges")
        seed = settings.sampler.get("seed")
        seed = int(self._base.seed if seed is None else seed)
        for groups in space.each_group_alone():
            validate(space.composer.compose(groups, {}))
        store = tracking_store(validate(self._base).tracking, Path(self._base.output_dir).absolute())
        if settings.storage and store.uri and _without_driver(settings.storage) == _without_driver(store.uri):
            raise ConfigError(
                "hydra.sweeper.storage", "is MLflow's database too, and their tables clash; give each one of its own"
            )
        worker = Worker(
            settings=settings,
            name=self._name,
            folder=self._folder,
            space=space,
            n_trials=settings.total(None if grid is None else len(grid)),
            known=[] if grid is not None else self._known(),
            grid=grid,
            uid=new_uid(),
            seed=seed,
            n_shares=1 if "slurm" in str(self._master.hydra.launcher._target_).lower() else settings.n_jobs,
            launch=uuid.uuid4().hex[:8],
        )
        for configuration in worker.rehearse([min(len(worker.known), worker.n_trials - 1)]):
            validate(space.compose(configuration))
            space.composer.check(configuration.groups, configuration.values)
        return worker

    def _known(self) -> list[dict[str, Any]]:
        """Parameters of the first trials: the defaults, then what is enqueued."""
        known = []
        if self._settings.defaults_first:
            defaults = self._space.defaults(self._default_groups())
            known.append(defaults if self._meets_conditions(defaults) else {})
        return [*known, *(self._enqueued(item) for item in self._settings.enqueue)]

    def _meets_conditions(self, params: dict[str, Any]) -> bool:
        try:
            configuration = self._space.configuration(lambda name, distribution: params[name])
        except KeyError:  # the sampler completes it
            return True
        return self._space.broken_condition(configuration) is None

    def _enqueued(self, item: dict[str, Any]) -> dict[str, Any]:
        groups = self._default_groups() | {str(k): str(v) for k, v in item.items() if k in self._space.groups}
        ranges = self._space.ranges(groups)
        known: dict[str, Any] = dict(groups)
        for key, value in item.items():
            if key in self._space.groups:
                continue
            if key not in ranges:
                raise ConfigError("hydra.sweeper.enqueue", f"'{key}' is not searched; choose of: {', '.join(ranges)}")
            name, distribution = ranges[key]
            try:
                inside = distribution._contains(distribution.to_internal_repr(value))
            except (ValueError, TypeError):
                inside = False
            if not inside:
                raise ConfigError("hydra.sweeper.enqueue", f"{key} = {value!r} lies outside of its range")
            known[name] = value
        if not self._meets_conditions(known):
            raise ConfigError("hydra.sweeper.enqueue", f"{item} breaks a condition of where")
        return known

    def _open(self, worker: Worker) -> optuna.Study:
        """Begins the study, or finds it as it was begun. Raises ConfigError."""
        settings = self._settings
        facts = identity(settings, self._space, self._space.composer.compose(self._space.first_groups(), {}))
        storage = open_storage(settings.storage, self._folder)
        with StudyLock(settings.storage, self._folder):
            names = [s.study_name for s in storage.get_all_studies()]
            if self._name not in names:
                study = optuna.create_study(storage=storage, study_name=self._name, directions=settings.direction)
                study.set_user_attr(_UID, worker.uid)
                study.set_user_attr(_IDENTITY, facts)
                return study
            study = optuna.load_study(study_name=self._name, storage=storage)
            directions = [d.name.lower() for d in study.directions]
            if directions != settings.direction:
                raise ConfigError(
                    "hydra.sweeper.direction",
                    f"study '{self._name}' was begun with {', '.join(directions)}; set hydra.sweeper.study_name",
                )
            changed = differences(study.user_attrs.get(_IDENTITY, {}), facts)
            if changed and not settings.accept_changes:
                raise ConfigError(
                    "hydra.sweeper.study_name",
                    f"study '{self._name}' was begun with {'; '.join(changed[:5])}{' ...' if changed[5:] else ''}; "
                    "choose another name, or go on with hydra.sweeper.accept_changes=true",
                )
            if changed:
                study.set_user_attr(_IDENTITY, facts)
            worker.uid = study.user_attrs[_UID]
        return study

    def _announce(self, n_done: int, n_trials: int) -> None:
        where = os.path.relpath(self._folder.path)
        if n_done:
            print(f"study {self._name}: goes on, {n_done} of {n_trials} trials are done; in {where}")
        else:
            print(f"study {self._name}: {n_trials} trials; in {where}")

    @contextlib.contextmanager
    def _record(self, study: optuna.Study, worker: Worker) -> Iterator[StudyRecord | None]:
        """The study's own record and the helper that mirrors all; None while another process keeps the record."""
        config = validate(self._base.copy())
        output_dir = Path(config.output_dir).absolute()
        store = tracking_store(config.tracking, output_dir)
        run = self._folder.run
        with ExitStack() as stack:
            self._folder.trials.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(run.lock())
            except Busy:
                yield None
                return
            follower = Follower(output_dir / "mirror.log")
            stack.callback(follower.close)
            write_atomic(run.config, OmegaConf.to_yaml(OmegaConf.structured(config)))
            journal = stack.enter_context(Journal(run.journal))
            record = StudyRecord(journal, study)
            where = os.path.relpath(output_dir, self._folder.path)
            record.start(
                start_facts(
                    self._name,
                    worker.uid,
                    self._settings,
                    self._space,
                    self._base,
                    where,
                    recorded_uri(store, output_dir),
                )
            )
            follower.follow_study(self._folder, store)
            yield record
            if problem := follower.finish_study(self._folder, config.tracking.close_timeout_s):
                print(
                    f"warning: MLflow lacks some of the study ({problem}). Nothing is lost; later:  "
                    f"python -m sweep.sync {output_dir}",
                    file=sys.stderr,
                )

    @contextlib.contextmanager
    def _signals(self, worker: Worker) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM has all workers stop at a checkpoint; the second ends this command at once."""

        def stop(signum: int, frame: FrameType | None) -> None:
            if self._stopped_by is not None:
                os._exit(128 + signum)
            self._stopped_by = signum
            self._folder.workers.mkdir(parents=True, exist_ok=True)
            worker.stop_request.touch()

        before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            worker.stop_request.unlink(missing_ok=True)

    def _launch(self, study: optuna.Study, worker: Worker) -> None:
        """Launches workers until the study is complete or stops; a pool that breaks is launched again."""
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self._context, task_function=worker, config=self._master
        )
        storage, settings = open_storage(self._settings.storage, self._folder), self._settings
        lock = StudyLock(settings.storage, self._folder)
        ledger = Ledger(storage, self._name, self._folder, lock, "controller", settings.max_retries)
        first_job = itertools.count(0, self._settings.n_jobs)
        n_lost = 0
        while True:
            n_before = _n_finished(study)
            lost: Exception | None = None
            try:
                returns = launcher.launch(self._worker_jobs(worker), initial_job_idx=next(first_job))
                signals = [r.return_value for r in returns]
                self._stopped_by = self._stopped_by or next((s for s in signals if s is not None), None)
            except ConfigError:
                raise
            except Exception as error:
                lost = error
            self._await_workers(worker)
            while not self._is_over(study, worker) and not ledger.has_work(worker.n_trials):
                time.sleep(_POLL_S)  # other commands have the last trials
            if self._is_over(study, worker):
                return
            n_lost = n_lost + 1 if _n_finished(study) == n_before else 0
            if n_lost > max(_MOST_LOST_LAUNCHES, self._settings.max_retries):
                raise lost or RuntimeError("the launcher's workers end without running a trial")
            if lost is not None:
                print(f"warning: workers were lost ({one_line(lost, 120)}); launching them again", file=sys.stderr)

    def _worker_jobs(self, worker: Worker) -> list[list[str]]:
        groups = [override(*choice) for choice in self._space.first_groups().items()]
        job = [
            *self._space.composer.fixed,
            *groups,
            f"hydra.sweep.dir='{self._folder.path}'",
            f"hydra.sweep.subdir=workers/{worker.launch}-${{hydra.job.num}}",
            "hydra.output_subdir=null",
            "hydra/job_logging=worker",
        ]
        return [job] * self._settings.n_jobs

    def _await_workers(self, worker: Worker) -> None:
        """Some launchers return while workers of theirs are still running."""
        mine = list(self._folder.workers.glob(f"{worker.launch}-*.lock"))
        while any(self._folder.worker_lives(lock.stem) for lock in mine):
            time.sleep(_POLL_S)

    def _is_over(self, study: optuna.Study, worker: Worker) -> bool:
        if self._stopped_by is not None or time.time() >= worker.stop_before:
            return True
        trials = study.get_trials(deepcopy=False)
        if too_many_failures(trials[worker.first :], self._settings.max_failure_rate):
            return True
        mine = [t for t in trials if t.number < worker.n_trials]
        return len(mine) == worker.n_trials and all(t.state.is_finished() for t in mine)


def _without_driver(uri: str) -> str:
    return re.sub(r"^(\w+)\+\w+:", r"\1:", uri)


def _n_finished(study: optuna.Study) -> int:
    return sum(t.state.is_finished() for t in study.get_trials(deepcopy=False))


def _with_launcher(
    context: HydraContext, config: DictConfig, settings: StudySettings, arguments: Sequence[str]
) -> DictConfig:
    """The sweep's config with what workers need of Hydra: quiet logging, and a launcher that runs `n_jobs` at once."""
    own = list(config.hydra.overrides.hydra)
    own.append("hydra/hydra_logging=study")
    launcher = config.hydra.runtime.choices.get("hydra/launcher")
    if settings.n_jobs > 1 and launcher == "basic":
        launcher = "joblib"
        own.append("hydra/launcher=joblib")
    if launcher == "joblib" and not any(o.startswith("hydra.launcher.n_jobs=") for o in own):
        own.append(f"hydra.launcher.n_jobs={settings.n_jobs}")
    overrides = [*own, *arguments]
    try:
        master = context.config_loader.load_configuration(config.hydra.job.config_name, overrides, RunMode.MULTIRUN)
    except Exception as error:
        raise config_error(error, overrides) or error from error
    OmegaConf.copy_cache(from_config=config, to_config=master)
    with open_dict(master):
        master.hydra.mode = RunMode.MULTIRUN
    return master
