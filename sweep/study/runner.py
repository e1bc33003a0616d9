"""The command that runs a study: checks it, begins or resumes it, has workers do it, shows and records what they do."""

import contextlib
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, open_dict
from optuna.distributions import check_distribution_compatibility
from optuna.trial import FrozenTrial, TrialState

from sweep.config.composition import load_multirun, searchpath_overrides
from sweep.config.overrides import sets
from sweep.config.schema import Config, is_auto, validate
from sweep.execution.attempts import failed, n_failed, numbered, retry, trials_of
from sweep.execution.failures import too_many_failures
from sweep.execution.objective import check_objectives
from sweep.execution.plan import WorkerPlan
from sweep.execution.queue import PROBLEM, is_complete
from sweep.execution.worker import Worker
from sweep.execution.worker_pool import WorkerPool
from sweep.search.auto_bounds import STARTS, covers, stored_starts, tested_starts
from sweep.search.composer import Starts
from sweep.search.initial_trials import known_params
from sweep.search.pruners import check_pruner
from sweep.search.samplers import is_grid, is_uniform, shuffled
from sweep.search.settings import StudySettings
from sweep.search.space import Configuration, make_space
from sweep.storage.lock import StudyLock
from sweep.storage.storage import open_storage
from sweep.storage.url import recorded_url, without_driver
from sweep.study.identity import IDENTITY, differences, identity, study_name
from sweep.study.progress import Watch, print_outcome
from sweep.study.reading import refuse_lost_trials
from sweep.study.recording import Recording
from sweep.study.results import best_trials, start_facts, write_results
from sweep.study.trial_result import TrialResult, tried
from sweep.tracking.folders import StudyFolder
from sweep.tracking.journal import first, status
from sweep.tracking.start import stored_text
from sweep.tracking.store import Store, tracking_store
from sweep.tracking.upload_process import UploadProcess
from sweep.trial.prepare import BATCH_SIZE, check_data, check_monitor, smaller_batch_in_words
from sweep.utils.errors import ConfigError, Damaged, Interrupted, StudyFailed
from sweep.utils.ownership import refuse_existing
from sweep.utils.paths import absolute, refuse_links_at, refuse_links_in
from sweep.utils.signals import interrupts_kept_from_children, stopping_signals
from sweep.utils.terminal import say

_UID = "uid"  # user attribute of the study, as is IDENTITY
_MOST_CHECKED = 2  # first configurations that Hydra composes too, in 65 ms each
_STARVES = (
    "hydra/sweeper/pruner: this sampler learns from complete trials alone, and the pruner leaves it few; "
    "with hydra/sweeper/pruner=none it learns from all"
)
_SMALL = 1000  # configurations, of which random draws would repeat some


class StudyRunner:
    """One `python -m sweep.run -m`. Its methods stand in the order in which they are called.

    follower: the helper that mirrors the study where it is part of something larger, which then says itself what there
    is to say of it; by default it has one of its own.
    """

    def __init__(
        self,
        context: HydraContext,
        config: DictConfig,
        settings: StudySettings,
        arguments: Sequence[str],
        follower: Callable[[Path], UploadProcess] | None = None,
    ) -> None:
        self._began = time.time()
        self._follower = follower
        self._plan: WorkerPlan | None = None
        self._context, self._settings, self._arguments = context, settings, arguments
        self._hydra_overrides = list(config.hydra.overrides.hydra)
        self._master = _with_launcher(context, config, settings, arguments)
        self.space = make_space(context.config_loader, self._master, arguments)
        self._base = self.space.composer.compose(self._default_groups(), {})
        self._starts: Starts | None = None
        auto = ["bounds=auto"] if is_auto(self._master.bounds) else []
        self.name = study_name(settings, self.space, self._base.choices, [*self.space.composer.fixed, *auto])
        self._output_dir = absolute(self._base.output_dir)
        self.folder = StudyFolder(self._output_dir / "studies" / self.name)
        refuse_links_at(self._output_dir)
        refuse_links_in(self.folder.path, "hydra.sweeper.study_name")
        self._master.hydra.sweep.dir = str(self.folder.path)  # some launchers put files of their own there
        self._stopped_by: int | None = None
        self._lowered: dict[str, None] = {}

    def run(self) -> float | None:
        """Returns the best value. Raises ConfigError, StudyFailed or Interrupted."""
        if is_auto(self._master.bounds):
            self._find_bounds()
        plan = self.check()
        if alone := self._follower is None:
            for line in self.adjustments():
                say(line)
            if self._settings.starves_its_sampler:
                say(_STARVES)
        if self._settings.dry_run:
            from sweep.study.dry_run import dry_run

            dry_run(plan, self._base)
            return None
        study, uid = self._open(plan.uid)
        n_before = len(study.get_trials(deepcopy=False))  # attempts that failed included
        before = trials_of(study)
        again = failed(before, plan.n_trials)
        if alone:
            self._announce(before, plan.n_trials, again)
        if again and self._settings.retry_failed:
            self._retry(study, again)
            before = trials_of(study)
        stop_before = self._began + (self._settings.timeout or float("inf"))
        plan = replace(plan, uid=uid, first=n_before, stop_before=stop_before)
        with contextlib.closing(self._recording(study, plan)) as recording:
            recording.update(before)
            watch = Watch(
                study, plan.n_trials, recording, live=sys.stderr.isatty() and not self._settings.debug, lines=alone
            )
            with self._signals(plan), watch:
                if not self._is_over(study, plan):
                    signum = self._work(study, plan)
                    self._stopped_by = self._stopped_by or signum
            trials, failure = trials_of(study), self._failure(study, plan)
            with StudyLock(self._settings.storage, self.folder):  # another controller may be doing the same
                write_results(study, self.folder, self.space)
            complete = is_complete(trials, plan.n_trials)
            ending = "FAILED" if failure else "FINISHED" if complete else "KILLED"
            recording.end(ending, self._config.tracking.close_timeout_s)
        if alone:
            print_outcome(study, self.folder, plan.n_trials, self._store.uri)
        if failure is not None:
            told = failure.user_attrs.get(PROBLEM, "no reason recorded")
            raise StudyFailed(self.name, failure.number, told, self.folder.trial(failure.number).path)
        if self._stopped_by is not None:
            raise Interrupted(self._stopped_by)
        if recording.damage is not None:
            raise recording.damage
        best = best_trials(study)
        return best[0].value if best and len(study.directions) == 1 else None

    def _work(self, study: optuna.Study, plan: WorkerPlan) -> int | None:
        """Have workers train the trials. Return the number of the signal that stopped one, if one did."""
        if self._settings.debug:
            return Worker(replace(plan, n_shares=1)).work()
        return WorkerPool(self._context, self._master, study, plan, lambda: self._is_over(study, plan)).work()

    @property
    def is_recorded(self) -> bool:
        """Whether a command has come to the study's end."""
        return status(self.folder.run.journal) == "FINISHED"

    def tried(self) -> list[TrialResult] | None:
        """What the study tried, if it is complete. Raises ConfigError where it was begun as another."""
        plan = self.check()
        trials = trials_of(self._open(plan.uid)[0])
        return [tried(t) for t in trials[: plan.n_trials]] if is_complete(trials, plan.n_trials) else None

    def _find_bounds(self) -> None:
        """Has the space start from what range tests suggest, or did when the study was begun. Raises ConfigError."""
        validate(self._base)  # before anything is trained
        starts = stored_starts(self._settings, self.name, self.folder, _UID)
        if starts is None or self._settings.accept_changes:  # of what has changed, the old tests say nothing
            starts = tested_starts(self.space)
        elif not covers(starts, self.space):
            raise ConfigError(
                "bounds",
                f"the tests of study '{self.name}' were of other options; choose another hydra.sweeper.study_name, or "
                "test these with hydra.sweeper.accept_changes=true",
            )
        self._starts = starts
        splits = self.space.splits
        self.space = make_space(self._context.config_loader, self._master, self._arguments, self._starts, splits)
        self._base = self.space.composer.compose(self._default_groups(), {})

    @cached_property
    def _config(self) -> Config:
        """The default configuration. Raises ConfigError."""
        return validate(self._base)

    @cached_property
    def _store(self) -> Store:
        """Where the study is mirrored to. Raises ConfigError."""
        return tracking_store(self._config.tracking, self._output_dir)

    def _default_groups(self) -> dict[str, str]:
        """The configured option of each sampled group where it is among those sampled, else the first."""
        choices = self._master.hydra.runtime.choices
        first = self.space.first_groups()
        return {g: choices[g] if choices.get(g) in d.choices else first[g] for g, d in self.space.groups.items()}

    def check(self) -> WorkerPlan:
        """Everything that can be refused before a worker starts, looked at once. Raises ConfigError."""
        if self._plan is None:
            self._plan = self._checked()
        return self._plan

    def _checked(self) -> WorkerPlan:
        settings, space = self._settings, self.space
        check_pruner(settings)
        seed = settings.sampler.get("seed")
        seed = int(self._base.seed if seed is None else seed)
        known = known_params(settings, space, self._default_groups())
        order = self._order(seed, known)
        for groups in space.each_group_alone():
            self._fit(space.of_options(groups))
        tracked = self._store.uri
        if settings.storage and tracked and without_driver(settings.storage) == without_driver(tracked):
            raise ConfigError(
                "hydra.sweeper.storage", "is MLflow's database too, and their tables clash; give each one of its own"
            )
        _refuse_run_keys(self._base, settings)
        self._refuse_foreign_files()
        plan = WorkerPlan(
            settings=settings,
            name=self.name,
            folder=self.folder,
            space=space,
            n_trials=settings.total(float("inf") if order is None else len(order), is_grid(settings.sampler)),
            known=known if order is None else [],
            order=order,
            uid=uuid.uuid4().hex,
            seed=seed,
            n_shares=1 if "slurm" in str(self._master.hydra.launcher._target_).lower() else settings.n_jobs,
        )
        data = space.splits.load(self._config)
        check_objectives(settings, data)
        for n, configuration in enumerate(plan.rehearse(range(min(len(plan.known) + 1, plan.n_trials)))):
            config = space.splits.fit(validate(space.compose(configuration)))
            check_data(space.splits.load(config), config)
            if n < _MOST_CHECKED:
                space.composer.check(configuration.groups, configuration.values)
        check_monitor(data, self._config)
        return plan

    @property
    def default_config(self) -> Config:
        """The default configuration as it would be trained. Raises ConfigError."""
        return self.space.splits.fit(self._config)

    def _fit(self, config: Config) -> None:
        """Raises ConfigError for a given batch size that is too large for the data."""
        if lowered := smaller_batch_in_words(config, self.space.splits.fit(config)):
            self._lowered[lowered] = None

    def adjustments(self) -> list[str]:
        """Say in a line each what the data make impossible, and what is done instead."""
        if any(name.partition("[")[0] == BATCH_SIZE for name in self.space.named_ranges()):
            return self.space.cuts()  # the default is not used
        return self.space.cuts() or [*self._lowered]

    def _order(self, seed: int, known: list[dict[str, Any]]) -> list[Configuration] | None:
        """What each trial tries, where that is settled: in a grid, or where random draws would repeat themselves."""
        settings, space = self._settings, self.space
        if is_grid(settings.sampler):
            if settings.enqueue:
                raise ConfigError("hydra.sweeper.enqueue", "says nothing to a grid, which has every configuration")
            order = list(space.everything())
        elif is_uniform(settings.sampler) and space.size() <= _SMALL:
            order = shuffled(space, seed, known)
        else:
            return None
        if not order:
            raise ConfigError("where", "leaves nothing of the space; change it, or the ranges")
        return order

    def _open(self, uid: str) -> tuple[optuna.Study, str]:
        """Begins the study, with `uid` for its record, or finds it as it was begun; and its uid. Raises ConfigError."""
        settings, facts = self._settings, identity(self._settings, self.space)
        storage = open_storage(settings.storage, self.folder)
        with StudyLock(settings.storage, self.folder):
            names = [s.study_name for s in storage.get_all_studies()]
            if self.name not in names:
                self._refuse_trials_of_another(None)
                study = optuna.create_study(storage=storage, study_name=self.name, directions=settings.direction)
            else:
                study = optuna.load_study(study_name=self.name, storage=storage)
            if _UID not in study.user_attrs:  # new, or its command was killed just then
                if study.get_trials(deepcopy=False):
                    raise ConfigError("hydra.sweeper.study_name", f"'{self.name}' was not begun here; choose another")
                self._refuse_trials_of_another(None)
                self._store_facts(study, facts)
                study.set_user_attr(_UID, uid)
            self._refuse_another(study, facts)
            self._refuse_trials_of_another(study.user_attrs[_UID])
            refuse_lost_trials(study, self.folder)
            if study.user_attrs[IDENTITY] != facts:
                self._store_facts(study, facts)
            return study, study.user_attrs[_UID]

    def _store_facts(self, study: optuna.Study, facts: dict[str, str]) -> None:
        if self._starts is not None:
            study.set_user_attr(STARTS, self._starts)
        study.set_user_attr(IDENTITY, facts)

    def _refuse_foreign_files(self) -> None:
        """Raises ConfigError if the folder is no study's, and has files that would be overwritten."""
        folder, is_remote = self.folder, self._settings.storage is not None
        is_study = first(folder.run.journal, "start") is not None
        is_study = is_study or (folder.storage.is_file() and folder.storage.stat().st_size > 0)
        if is_remote:  # where the study is known, so that these are its own from the first moment
            is_study = is_study or folder.trials.is_dir() or folder.workers.is_dir()
        if not is_study:
            refuse_existing("hydra.sweeper.study_name", folder.path, folder.written)

    def _refuse_trials_of_another(self, uid: str | None) -> None:
        """Raises ConfigError if the folder has trials of a study that is kept elsewhere, or was."""
        for run in self.folder.runs():
            parent = (first(run.journal, "start") or {}).get("parent")
            if parent is None:  # trained by itself, which an earlier version allowed
                continue
            start, storage = first(self.folder.run.journal, "start"), recorded_url(self._settings.storage)
            if uid is None and start is not None and start.get("storage") == storage:
                remedy = "restore it from a copy, or choose another name for the study"
                lost = storage or self.folder.storage
                raise Damaged("hydra.sweeper.study_name", lost, "the study is not in it", remedy)
            if parent["uid"] != uid:
                raise ConfigError(
                    "hydra.sweeper.study_name",
                    f"'{self.folder.path}' has trials of another study, whose storage is gone or another one; "
                    "choose another name, or remove the folder",
                )
            return  # one of them will do

    def _refuse_another(self, study: optuna.Study, facts: dict[str, str]) -> None:
        """Raises ConfigError if the study was begun as another one, unless the changes are accepted and possible."""
        directions = [d.name.lower() for d in study.directions]
        if directions != self._settings.direction:
            key = "direction" if len(directions) == len(self._settings.direction) else "objective"
            raise ConfigError(
                f"hydra.sweeper.{key}",
                f"study '{self.name}' was begun to {' and '.join(directions)}; set another hydra.sweeper.study_name",
            )
        changed = differences(study.user_attrs[IDENTITY], facts)
        if not changed:
            return
        told = f"study '{self.name}' was begun with {'; '.join(changed[:5])}{' ...' if changed[5:] else ''}"
        if fixed := _incompatible(study.get_trials(deepcopy=False), self.space.named_ranges()):
            told += f"; choose another name, as {fixed} cannot change within a study"
        elif self._settings.accept_changes:
            return
        else:
            told += "; choose another name, or go on with hydra.sweeper.accept_changes=true"
        raise ConfigError("hydra.sweeper.study_name", told)

    def _retry(self, study: optuna.Study, numbers: Sequence[int]) -> None:
        """Add another attempt at each of those trials, and set the folders of those that failed aside."""
        with StudyLock(self._settings.storage, self.folder):
            trials = trials_of(study)
            numbers = [n for n in numbers if trials[n].state == TrialState.FAIL]  # another command may have been faster
            for number in numbers:
                self.folder.set_aside(number, n_failed(trials[number]) + 1)
            retry(study._storage, study, numbers)

    def _announce(self, before: Sequence[FrozenTrial], n_trials: int, again: Sequence[int]) -> None:
        where = os.path.relpath(self.folder.path)
        n_done = sum(t.state.is_finished() for t in before[:n_trials])
        if n_done:
            say(f"study {self.name}: goes on, {n_done} of {n_trials} trials are done; in {where}")
        else:
            say(f"study {self.name}: {n_trials} trials; in {where}")
        if again and self._settings.retry_failed:
            say(f"failed trials that are trained again: {', '.join(map(str, again))}")

    def _recording(self, study: optuna.Study, plan: WorkerPlan) -> Recording:
        config = self._config
        facts = start_facts(
            self.name, plan.uid, self._settings, self.space, config.experiment_name, self._all_arguments()
        )
        facts["output_dir"] = os.path.relpath(self._output_dir, self.folder.path)
        facts["storage"] = recorded_url(self._settings.storage)
        return Recording(study, self.folder, facts, stored_text(config), self._store, self._output_dir, self._follower)

    def _all_arguments(self) -> list[str]:
        """Of the command line that goes on with this study."""
        # by -m, with absolute paths, and once
        told_otherwise = ("hydra.mode=", "hydra.searchpath=", "hydra.sweeper.retry_failed=", "hydra.sweeper.debug=")
        own = [o for o in self._hydra_overrides if not o.startswith(told_otherwise)]
        return ["-m", *searchpath_overrides(self._master.hydra), *own, *self._arguments]

    @contextlib.contextmanager
    def _signals(self, plan: WorkerPlan) -> Iterator[None]:
        """The first signal has all workers stop at a checkpoint; the second ends this command at once.

        A terminal that is closed may send SIGHUP more than once, so that one never does.
        """

        def stop(signum: int, frame: FrameType | None = None) -> None:
            if self._stopped_by is not None and signum == signal.SIGHUP:
                return
            if self._stopped_by is not None:
                os._exit(128 + signum)
            self._stopped_by = signum
            self.folder.workers.mkdir(parents=True, exist_ok=True)
            plan.stop_request.touch()

        before = {signum: signal.signal(signum, stop) for signum in stopping_signals()}
        in_this_process = self._settings.debug or self._master.hydra.runtime.choices["hydra/launcher"] == "basic"
        try:
            with contextlib.nullcontext() if in_this_process else interrupts_kept_from_children(stop):
                yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            plan.stop_request.unlink(missing_ok=True)

    def _is_over(self, study: optuna.Study, plan: WorkerPlan) -> bool:
        if self._stopped_by is not None or time.time() >= plan.stop_before:
            return True
        return is_complete(trials_of(study), plan.n_trials) or self._failure(study, plan) is not None

    def _failure(self, study: optuna.Study, plan: WorkerPlan) -> FrozenTrial | None:
        """The first of the failed trials that stop the study. Those of earlier commands do not count."""
        trials = study.get_trials(deepcopy=False)
        complete = is_complete(numbered(trials), plan.n_trials)
        failure = too_many_failures(trials[plan.first :], self._settings.max_failure_rate, complete)
        return failure and numbered([failure])[0]


def _incompatible(trials: Sequence[FrozenTrial], ranges: dict[str, Any]) -> str | None:
    """The first parameter whose range Optuna does not allow to become what it is now."""
    for trial in trials:
        for name, distribution in trial.distributions.items():
            try:
                check_distribution_compatibility(distribution, ranges.get(name, distribution))
            except ValueError:
                return name
    return None


def _refuse_run_keys(base: DictConfig, settings: StudySettings) -> None:
    """Keys that mean something to a single run only. Raises ConfigError."""
    if base.resume is not None:
        raise ConfigError("resume", "is for a single run; a study goes on when its command is given again")
    if base.from_study is not None:
        raise ConfigError("from_study", "is for a single run; leave out --multirun")
    if settings.seeds > 1 and base.trainer.seed != base.seed:
        raise ConfigError("trainer.seed", "would be the same for every replicate; set seed, which it follows")


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
    if launcher == "joblib" and not any(sets(o, "hydra.launcher.n_jobs") for o in own):
        own.append(f"hydra.launcher.n_jobs={settings.n_jobs}")
    master = load_multirun(context.config_loader, config.hydra.job.config_name, [*own, *arguments], config)
    with open_dict(master):
        master.hydra.mode = RunMode.MULTIRUN
    return master
