"""A study before a command runs it: its name and its folder, and everything that is checked before a worker starts."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import optuna

from sweep.config.function_node import needs_loop
from sweep.config.schema import Config, validate
from sweep.execution.attempts import trials_of
from sweep.execution.plan import WorkerPlan
from sweep.execution.queue import is_complete
from sweep.search.auto_bounds import tested_starts
from sweep.search.space import Space
from sweep.study.identity import study_name
from sweep.study.opening import StudyEntry
from sweep.study.planning import check_plan, check_settings, make_plan
from sweep.study.spec import StudySpec
from sweep.study.trial_result import TrialResult, trial_result
from sweep.tracking.folders import StudyFolder
from sweep.tracking.journal import status
from sweep.tracking.store import Store, tracking_store
from sweep.trial.checks import warnings_of_size, warnings_of_undefined
from sweep.trial.function import check_sent
from sweep.trial.prepare import BATCH_SIZE, smaller_batch_text
from sweep.utils.errors import ConfigError
from sweep.utils.paths import absolute, refuse_links_at, refuse_links_in


class PreparedStudy:
    """A study as its specification says it. A `StudyRunner` runs it.

    Attributes:
        spec: the study's specification, before `bounds=auto` has changed its space.
        name: the study's name.
        output_dir: the folder of all outputs.
        folder: the study's folder.
        base: the default configuration, composed.
        began: when this was made, in seconds since 1970. The study's `timeout` counts from then.
    """

    def __init__(self, spec: StudySpec) -> None:
        """Compose the default configuration and name the study. Nothing is written.

        Raises:
            ConfigError: the default configuration cannot be composed, or the name or the output folder cannot be used.
        """
        self.began = time.time()
        self.spec, self._settings = spec, spec.settings
        self._plan: WorkerPlan | None = None
        self._lowered: dict[str, None] = {}
        space = spec.space
        self.base = space.composer.compose(space.configured_groups(), {})
        auto = ["bounds=auto"] if space.bounds_are_auto else []
        self.name = study_name(spec.settings, space, self.base.choices, [*space.composer.fixed, *auto])
        self.output_dir = absolute(self.base.output_dir)
        self.folder = StudyFolder(self.output_dir / "studies" / self.name)
        refuse_links_at(self.output_dir)
        refuse_links_in(self.folder.path, "hydra.sweeper.study_name")
        self._entry = StudyEntry(self.name, self.folder, spec.settings, space)

    @property
    def space(self) -> Space:
        """The search space. After `find_bounds`, it has the bounds that range tests suggest."""
        return self._entry.space

    @cached_property
    def config(self) -> Config:
        """The default configuration. Raises ConfigError."""
        return validate(self.base)

    @cached_property
    def store(self) -> Store:
        """Where the study is uploaded to. Raises ConfigError."""
        return tracking_store(self.config.tracking, self.output_dir)

    @property
    def default_config(self) -> Config:
        """The default configuration as it would be trained. Raises ConfigError."""
        return self.space.splits.fit(self.config)

    @property
    def is_recorded(self) -> bool:
        """True if the study's record says that a command has finished the study."""
        return status(self.folder.run.journal) == "FINISHED"

    def find_bounds(self, say: Callable[[str], None]) -> None:
        """With bounds=auto, search around what range tests suggest, or suggested when the study was started.

        Args:
            say: prints a line about a test.

        Raises:
            ConfigError: a test suggests nothing, or the study was started with other tests.
        """
        if not self.space.bounds_are_auto:
            return
        if validate(self.base).is_function:  # before a test trains anything
            raise ConfigError("bounds", f"{needs_loop('auto')}; leave it out")
        starts = self._entry.stored_starts()
        if starts is None:
            starts = tested_starts(self.space, say)
        self._entry = replace(self._entry, space=self.space.starting_from(starts), starts=starts)
        self.base = self.space.composer.compose(self.space.configured_groups(), {})

    def check(self) -> WorkerPlan:
        """Check everything that can be checked before a worker starts, and return the plan. Later calls only return it.

        Raises:
            ConfigError: for the first problem.
        """
        if self._plan is None:
            settings = self._settings
            check_settings(settings, self.base, self.store.uri)
            launching, n_jobs = self.spec.launching, settings.n_jobs
            launching.check(settings)
            shares = (launching.n_shares(n_jobs), launching.n_tasks)
            plan = make_plan(settings, self.space, self.base, self.name, self.folder, *shares)
            for groups in self.space.each_group_alone():
                self._fit(self.space.of_options(groups))
            self._entry.refuse_foreign_files()
            check_plan(plan, self.config)
            function = self.space.composer.function
            if function is not None and (plan.is_supervised or not self.spec.launching.is_here):
                check_sent(function)
            if plan.copies is not None and not settings.dry_run:
                plan.copies.check()
            self._plan = replace(plan, store=self.store)
        return self._plan

    def _fit(self, config: Config) -> None:
        """Note a default batch size that is lowered to fit the data. Raise ConfigError if a given one is too large."""
        if lowered := smaller_batch_text(config, self.space.splits.fit(config)):
            self._lowered[lowered] = None

    def adjustments(self) -> list[str]:
        """Return one line for each thing that the data make impossible, with what is done instead, and warnings."""
        is_searched = any(name.partition("[")[0] == BATCH_SIZE for name in self.space.named_ranges())
        lowered = self.space.cuts() or ([] if is_searched else [*self._lowered])  # a default that is searched is unused
        config = self.default_config
        if config.is_function:  # it may need no data
            return lowered
        data = self.space.splits.load(config)
        return [*lowered, *warnings_of_undefined(config, data), *warnings_of_size(config, data)]

    def open(self) -> tuple[optuna.Study, WorkerPlan]:
        """Begin the study in its storage, or open it again. Return it, and the plan with its uid.

        Raises:
            ConfigError: the study cannot be run, or was started as another one.
            Damaged: the storage lacks trials that the folder has.
        """
        plan = self.check()
        study, uid = self._entry.open(plan.uid)
        return study, replace(plan, uid=uid)

    def trial_results(self) -> list[TrialResult] | None:
        """Return the study's trials if it is complete, otherwise None. Begins the study if it does not exist.

        Raises:
            ConfigError: the study cannot be run, or was started as another one.
        """
        study, plan = self.open()
        trials = trials_of(study)
        return (
            [trial_result(t, self.folder) for t in trials[: plan.n_trials]]
            if is_complete(trials, plan.n_trials)
            else None
        )

    def request_stop(self) -> None:
        """Ask a run of the study, in another thread, to save its trials and stop, as a signal does."""
        self.folder.workers.mkdir(parents=True, exist_ok=True)
        self.check().stop_request.touch()
