"""One run of a trial in a study: one seed, or one fold of a seed. Both executors train it through `StudyRun`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

from optuna.trial import FrozenTrial

from sweep.config.overrides import key_of, value_of
from sweep.config.schema import Config, unchecked
from sweep.execution.attempts import n_failed
from sweep.execution.objective import run_values
from sweep.execution.queue import PROBLEM
from sweep.execution.replicates import Means
from sweep.execution.run_end import Ended, ended
from sweep.execution.session import WorkerSession
from sweep.search.ranges import alike
from sweep.search.space import Configuration
from sweep.storage.url import storage_place
from sweep.tracking import journal
from sweep.tracking.chunks import may_send
from sweep.tracking.run_copies import copy_name
from sweep.tracking.run_recorder import Membership, RunRecorder
from sweep.tracking.store import destination_of, recorded_uri, tracking_store
from sweep.tracking.stored_run import stored_config
from sweep.trial.application import ApplicationTraining
from sweep.trial.recorded import Pause, RecordedTrial
from sweep.trial.sharing import sharing
from sweep.trial.training import Training, make_training
from sweep.utils.checked_file import load_checked
from sweep.utils.errors import BeingTrained, Damaged, DiskFull, Diverged, Pruned
from sweep.utils.paths import absolute, refuse_links_in


def runs_of(session: WorkerSession, trial: FrozenTrial, configuration: Configuration, means: Means) -> "list[StudyRun]":
    """Return the runs of a claimed trial, in order. The arguments are those of `StudyRun`."""
    values_of_runs = session.runs(configuration)
    return [StudyRun(session, trial, configuration, *run, means) for run in enumerate(values_of_runs)]


class StudyRun:
    """A run of a claimed trial: its config, what an earlier process left of it, its record, and how it ends.

    Attributes:
        trial: the claimed trial.
        place: the number of the run among the runs of its trial, from 0.
        member: its place in the study.
        folder: the run's folder.
    """

    def __init__(
        self,
        session: WorkerSession,
        trial: FrozenTrial,
        configuration: Configuration,
        place: int,
        values: Mapping[str, Any],
        means: Means,
    ) -> None:
        """Describe a run. Nothing is read or written.

        Args:
            session: the work of this worker.
            trial: the claimed trial.
            configuration: what the trial tries.
            place: the number of the run in its trial, from 0.
            values: the run's values by config key, with its seed.
            means: gets the values of the run.
        """
        self._session, self._means = session, means
        self._groups, self._values = configuration.groups, values
        self.trial, self.place = trial, place
        replicate = session.replicate(place)
        self.folder = session.plan.folder.trial(trial.number, replicate)
        self._n_failed = n_failed(trial)
        self.member = Membership(
            study=session.plan.name,
            folder=session.plan.folder.path,
            parent=session.plan.uid,
            number=trial.number,
            replicate=replicate,
            params={**configuration.groups, **configuration.values},
            is_restarted=session.queue.previous_owner(trial) is not None,
        )

    def earlier_values(self, retry: bool = False) -> list[float] | None:
        """Return the objectives of a run that finished before its worker died; None if it still has to train.

        Args:
            retry: True ignores that the run ended its whole trial before, so that it trains again.

        Raises:
            Ended: the run ended its whole trial.
            RuntimeError: the trial's workers died too often.
        """
        self._copy_end()
        if not retry and (end := ended(self.folder)):
            raise end
        if PROBLEM in self.trial.user_attrs:
            raise RuntimeError(self.trial.user_attrs[PROBLEM])
        return self.finished_values() if journal.status(self.folder.journal) == "FINISHED" else None

    def finished_values(self) -> list[float]:
        """Return the objectives of the run, which has finished. The means no longer wait for it."""
        values = run_values(self.folder, self._session.settings.objective, self._session.settings.direction)
        self._means.end(self.place)
        return values

    def config(self) -> Config:
        """Return the config to train: that of an earlier process, if there is one, to resume what it began.

        Raises:
            ConfigError: the config is invalid.
            Damaged: the run began with other parameters than the storage has, or a file of it is damaged.
        """
        session, run = self._session, self.folder
        config = session.splits.fit(session.composer.validated(self._groups, self._values))
        if journal.first(run.journal, "start") is None:
            return config
        refuse_links_in(run.path, "resume")
        self._refuse_other_params(config.overrides or [])
        return stored_config(run, config)

    def training(self) -> Training:
        """Return what trains the run by itself. Raises as `config` and `make_training` do."""
        config = self.config()
        return sharing(self._training(config), destination_of(self.folder, config, in_study=True))

    def _training(self, config: Config) -> Training:
        session = self._session
        application, function = session.composer.application, session.composer.function
        if application is None:
            return make_training(config, session.load, function)
        overrides = session.composer.job_overrides(self._groups, self._values)
        return ApplicationTraining(config, application, overrides, self.trial.number)

    def recorded(self, config: Config, *, pause: Pause | None = None, is_packed: bool = False) -> RecordedTrial:
        """Return the trial that a training function gets. Nothing is recorded yet.

        Args:
            config: what trains.
            pause: lets other runs train after each epoch.
            is_packed: True leaves it to the executor to count the time of training, and to call `heed_requests` once
                for all of its trials. Otherwise each report does both.

        Raises:
            ConfigError: as `destination_of` does.
        """
        session = self._session
        report = session.reporter(self.trial, self._means, self.place, session.n_epochs(config))

        def heed_and_report(epoch: int, metrics: Mapping[str, float]) -> None:
            session.heed_requests([self.trial])
            report(epoch, metrics)

        to = destination_of(self.folder, config, in_study=True)
        if session.copying is not None:
            session.copying.begin(self.folder)
        return RecordedTrial(
            self.folder,
            config,
            output_dir=to.output_dir,
            store=to.recorded,
            member=self.member,
            report=report if is_packed else heed_and_report,
            pause=pause,
            keep=self._keep,
            stop=session.stop_of(self.trial),
            is_timed=not is_packed,
        )

    @contextmanager
    def recorded_end(self, is_no_failure: Callable[[Exception], bool] = lambda error: False) -> Iterator[None]:
        """Record in the run's folder that it failed, unless that is recorded already, and raise how its trial ends.

        Args:
            is_no_failure: says of an error that it does not end the trial. Such an error passes.

        Raises:
            Ended: the run was pruned or diverged, and its record says so.
            Pruned, Diverged: likewise, but it has no record.
            BeingTrained, Damaged, DiskFull: the run did not end; it can be resumed.
            Exception: anything else. The run has failed.
        """
        try:
            yield
        except (Pruned, Diverged) as error:
            if end := ended(self.folder):
                raise end from error
            raise
        except (Ended, BeingTrained, Damaged, DiskFull):
            raise
        except Exception as error:
            if not is_no_failure(error) and journal.status(self.folder.journal) != "FAILED":
                self._record_failure(error)  # it failed before its record began, or after it was finished
            raise

    def _keep(self, is_over: bool) -> None:
        """Copy the run's folder to `hydra.sweeper.artifacts`, if that is set. If the run is over, wait for the copy."""
        if (copying := self._session.copying) is not None:
            name = copy_name(self.trial.number, self._n_failed, self.member.replicate)
            (copying.finish if is_over else copying.keep)(self.folder, name)

    def _copy_end(self) -> None:
        """Copy a run that has ended, if its worker died before it could."""
        record = self.folder.journal
        if self._session.copying is None or may_send(self.folder) >= journal.complete_size(record):
            return
        if journal.status(record) in ("FINISHED", "FAILED"):
            self._keep(True)

    def _refuse_other_params(self, overrides: Sequence[str]) -> None:
        """Raise Damaged if the run began with other parameters than the storage has, or its overrides are damaged.

        overrides: what the study composes the run from now.
        """
        if not self.folder.overrides.exists():  # as in outputs of earlier versions
            return
        session, number = self._session, self.trial.number
        folder = session.plan.folder.trial(number).path
        remedy = f"restore it from a copy, or move '{folder}' away: the same command trains the trial anew"
        recorded = load_checked(self.folder.overrides, "resume", remedy, list)
        before, now = ({key_of(o): value_of(o) for o in found} for found in (map(str, recorded), overrides))
        for key in self.member.params.keys() & before.keys() & now.keys():
            if not alike(*(session.composer.plain(key, found[key]) for found in (before, now))):
                place = storage_place(session.settings.storage, session.plan.folder)
                reason = f"trial {number} began with {key}={before[key]}, and there it has another value or none"
                raise Damaged("hydra.sweeper.study_name", place, reason, remedy)

    def _record_failure(self, error: Exception) -> None:
        """Record the failure of a run with the config as Hydra composes it, which may be invalid."""
        config = unchecked(self._session.composer.compose(self._groups, self._values))
        output_dir = absolute(config.output_dir)
        store = recorded_uri(tracking_store(config.tracking, output_dir), output_dir)
        self.folder.create()
        with closing(RunRecorder(self.folder, self.member)) as recorder:
            recorder.start(config, output_dir=output_dir, store=store)
            recorder.end(error)
        self._keep(True)
