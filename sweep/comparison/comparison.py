"""Run a comparison: tune every contender, train the chosen configurations on fresh seeds, and report."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.comparison import studies
from sweep.comparison.contenders import Contender
from sweep.comparison.facts import ComparisonFacts, facts_of
from sweep.comparison.judge import Judgement, TaskResult
from sweep.comparison.runs import Entry, Run, best_trial, choose, read_run
from sweep.comparison.studies import Plan, make_plan, refuse_foreign_files
from sweep.comparison.tables import SCORE_COLUMNS, score_rows
from sweep.execution.objective import check_objectives
from sweep.search.ranges import range_text
from sweep.search.settings import direction_of_function, directions_of
from sweep.search.space import Space
from sweep.study.prepared import PreparedStudy
from sweep.study.progress import Output
from sweep.study.results import composed_overrides
from sweep.study.runner import StudyRunner
from sweep.study.spec import HydraRoot
from sweep.study.trial_result import TrialResult, range_of
from sweep.tracking.upload_process import UploadProcess
from sweep.utils import html
from sweep.utils.errors import ConfigError, Damaged, StudyFailed, SweepError
from sweep.utils.terminal import say
from sweep.utils.wording import short

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class NothingToCompare(SweepError):
    """On no task are there two contenders to compare."""


@dataclass(frozen=True)
class ComparisonResult:
    """The result of a comparison.

    >>> import sweep
    >>> base = ["experiment=debug", "tracking=off", "compare.n_seeds=2"]
    >>> compared = sweep.run_comparison(base, {"model": ["mlp", "linear"]}, n_trials=1)
    >>> compared.table()[["contender", "n_missing"]]
      contender  n_missing
    0       mlp          0
    1    linear          0
    >>> compared.plot().savefig("scores.pdf")

    Attributes:
        name: the comparison's name.
        folder: the folder of its report.
        metric: the metric by which contenders are compared.
        entries: every contender on every task, with its tuning trials and its runs.
        judgement: the statistics of every task.
        facts: the content of comparison.yaml, except that numbers that are not finite are not null.
    """

    name: str
    folder: Path
    metric: str
    entries: list[Entry]
    judgement: Judgement
    facts: ComparisonFacts = field(repr=False)
    _plan: Plan = field(repr=False, compare=False)

    @property
    def verdict(self) -> str:
        """The verdict in words, a paragraph for each task: who is not beaten, and which differences are detectable."""
        return "\n".join(task["verdict"] for task in self.facts["tasks"])

    def table(self) -> "pd.DataFrame":
        """Return a table of pandas with a row for each contender on each task. It is what the report shows as scores.

        Returns:
            The columns `task`, `contender`, `median`, `iqm`, `iqm_low` and `iqm_high` (its 95 % interval),
            `untuned_median`, `untuned_iqm`, `n_missing` (runs that diverged or failed) and `problem` (why a contender
            takes no part). All scores are values of the metric.
        """
        import pandas as pd

        return pd.DataFrame([*score_rows(self.facts)], columns=SCORE_COLUMNS)

    def plot(self) -> "Figure":
        """Return the plot of the report as a figure of matplotlib: scores, budget, curves and learning rates."""
        from sweep.comparison.plot import points_of
        from sweep.figures.comparison import comparison_plot

        return comparison_plot(points_of(self._plan, self.judgement))

    def _repr_html_(self) -> str:
        """Return the verdict and the table as a notebook shows them."""
        table = self.table()
        rows = [["" if cell is None or cell != cell else short(cell) for cell in row] for row in table.to_numpy()]
        return html.paragraph(f"comparison {self.name}: {self.verdict}") + html.table([*table.columns], rows)

    @property
    def tasks(self) -> list[TaskResult]:
        """The result on each task: the contenders that take part, the test of every pair, and those that failed."""
        return self.judgement.tasks

    @property
    def winner(self) -> str | None:
        """The name of the contender that is detectably better than every other on every task; None if there is none."""
        winners = {task.winner for task in self.tasks}
        return winners.pop() if len(winners) == 1 else None


class Comparison:
    """Runs a comparison. Its methods stand in the order in which they are called."""

    def __init__(self, root: HydraRoot, arguments: Sequence[str], says: bool = True) -> None:
        """Make the plan. Nothing is stored.

        Args:
            root: the source of the comparison's own config.
            arguments: overrides of a trial's keys, as on the command line.
            says: False prints nothing.

        Raises:
            ConfigError: the comparison would be unfair, or its config cannot be used.
        """
        self._upload_processes: dict[Path, UploadProcess] = {}
        self._says = says
        self._plan = make_plan(root, arguments)

    def run(self) -> ComparisonResult | None:
        """Run the studies that the comparison still lacks, judge the runs, and write the report.

        Returns:
            The result; None for a dry run.

        Raises:
            ConfigError: the comparison cannot be run. Nothing is stored.
            NothingToCompare: fewer than two contenders can be compared on any task, although the report is written. Or
                a study ended before it was complete.
            DamagedJournal: the record of a run is damaged.
            Interrupted: a signal stopped the comparison. The same command resumes it.
        """
        plan = self._plan
        tunings = list(self._checked())
        _refuse_unlike(tunings)
        metric_direction = self._check_metric(tunings)
        refuse_foreign_files(plan)
        self._announce(dict.fromkeys(line for _, _, tuning in tunings for line in tuning.adjustments()))
        if plan.settings.dry_run:
            for _, _, tuning in tunings:
                self._run(tuning)
            return None
        try:
            entries = self._worked(tunings)
        except KeyboardInterrupt:
            self._say("stopped; run the same command again to resume it")
            raise
        finally:
            for upload_process in self._upload_processes.values():
                upload_process.close()
        from sweep.comparison.report import judged, print_report, write_report

        judgement = judged(plan, entries, metric_direction)
        facts = facts_of(plan, judgement)
        write_report(plan, judgement, facts)
        if self._says:
            print_report(facts, plan.folder)
        n_able = Counter(entry.task for entry in entries if entry.problem is None)
        if max(n_able.values(), default=0) < 2:
            raise NothingToCompare(
                f"fewer than two contenders can be compared; see {'above' if self._says else plan.folder}"
            )
        return ComparisonResult(plan.name, plan.folder, plan.compare.metric, entries, judgement, facts, plan)

    def _say(self, line: str) -> None:
        if self._says:
            say(line, flush=True)

    def _run(self, study: PreparedStudy) -> None:
        StudyRunner(study, Output.FAILURES if self._says else Output.NOTHING, self._upload_process).run()

    def _worked(self, tunings: Sequence[tuple[Contender, str, PreparedStudy]]) -> list[Entry]:
        """Run the studies, all tuning first, and return their entries."""
        entries = [self._tuned(*tuning) for tuning in tunings]
        for entry, (_, _, tuning) in zip(entries, tunings, strict=True):
            self._train_chosen(entry, tuning)
            self._train_defaults(entry, tuning)
        return entries

    def _upload_process(self, output_dir: Path) -> UploadProcess:
        """Return the upload process of an `output_dir`, which all studies share."""
        if output_dir not in self._upload_processes:
            self._upload_processes[output_dir] = UploadProcess(output_dir)
        return self._upload_processes[output_dir]

    def _checked(self) -> Iterator[tuple[Contender, str, PreparedStudy]]:
        """Yield the tuning of each contender on each task, after checking it. Raise ConfigError for a problem."""
        plan = self._plan
        for task in plan.field.tasks:
            for contender in plan.field.contenders:
                try:
                    tuning = studies.tuning(plan, contender, task)
                    tuning.check()
                except ConfigError as error:
                    of = " on ".join(filter(None, [contender.name, task]))
                    raise ConfigError(error.key, f"{error.problem} (of the contender {of})") from error
                yield contender, task, tuning

    def _check_metric(self, tunings: Sequence[tuple[Contender, str, PreparedStudy]]) -> str:
        """Return minimize or maximize for the compared metric. Raise ConfigError if runs do not have it."""
        metric = self._plan.compare.metric
        try:
            config = self._plan.config
            if config.is_function:  # what it returns is known once it has run
                return direction_of_function(metric, self._plan.settings)
            (direction,) = directions_of([metric], config.task, config.trainer.callbacks)
            for _, _, tuning in tunings[:: len(self._plan.field.contenders)]:  # the first tuning of each task
                config = tuning.default_config
                check_objectives([metric], config, tuning.space.splits.load(config))
        except ConfigError as error:
            raise ConfigError("compare.metric", error.problem) from error
        return direction

    def _announce(self, adjustments: Iterable[str]) -> None:
        plan, times = self._plan, f"{self._plan.n_tunings} times " if self._plan.n_tunings > 1 else ""
        self._say(f"comparison {plan.name}: {', '.join(contender.name for contender in plan.field.contenders)}")
        epochs = plan.config.trainer.epochs
        of_epochs = "" if epochs is None else f" of {epochs} epochs"
        self._say(
            f"each is tuned {times}with {plan.n_trials} trials{of_epochs}, then trained on "
            f"{plan.compare.n_seeds} fresh seeds; so are its defaults"
        )
        for line in adjustments:
            self._say(line)

    def _tuned(self, contender: Contender, task: str, tuning: PreparedStudy) -> Entry:
        """Run a tuning, and choose a trial for each fresh seed."""
        plan = self._plan
        ranges = {key: distribution for key, (_, distribution) in tuning.space.ranges({}).items()}
        entry = Entry(contender, task, studies=[tuning.name])
        entry.searched = {key: range_text(distribution) for key, distribution in ranges.items()}
        entry.ranges = {key: found for key, d in ranges.items() if (found := range_of(d)) is not None}
        trials = self._finished(entry, tuning, "tuned")
        if trials is None:
            return entry
        entry.trials = trials
        exhausted = len(trials) < plan.n_trials * plan.n_tunings  # the space has no more configurations
        entry.n_tunings = 1 if exhausted else plan.n_tunings
        direction = plan.settings.direction[0]
        entry.chosen = choose(trials, entry.n_tunings, plan.compare.n_seeds, direction)
        best = best_trial(trials, direction)
        if best is None:
            problems = [t.problem for t in trials if t.problem]
            entry.problem = f"no trial of its tuning is complete; the first: {problems[0] if problems else 'pruned'}"
        else:
            entry.best = _overrides(best, tuning.space)
        return entry

    def _train_chosen(self, entry: Entry, tuning: PreparedStudy) -> None:
        """Train the chosen configurations on the fresh seeds, and add the runs to the entry."""
        plan = self._plan
        if entry.problem is not None:
            return
        chosen = [(seed, t.params) for seed, t in zip(plan.seeds, entry.chosen, strict=True) if t is not None]
        study = studies.fresh(plan, entry.contender, entry.task, chosen, tuning.space)
        entry.studies.append(study.name)
        if (trials := self._finished(entry, study, "trained")) is None:
            return
        found = {
            seed: read_run(study.folder.trial(trial.number), trial.state)
            for (seed, _), trial in zip(chosen, trials, strict=False)
        }
        entry.runs = [found.get(seed) for seed in plan.seeds]
        metric = plan.compare.metric
        if any(run is not None and metric not in run.values for run in entry.runs):
            entry.problem = f"its runs have no {metric}, which the function has to return; see {study.folder.path}"
        elif not any(entry.runs):
            entry.problem = f"none of its runs is complete; see {study.folder.path}"

    def _train_defaults(self, entry: Entry, tuning: PreparedStudy) -> None:
        """Train the untuned defaults on the fresh seeds. If they fail, the contender still takes part."""
        plan, own = self._plan, replace(entry, problem=None)
        if entry.problem is not None:
            return
        try:
            study = studies.untuned(plan, entry.contender, entry.task, tuning)
            study.check()
        except Damaged:  # a damaged file is not a problem of the defaults
            raise
        except ConfigError as error:
            entry.untuned_problem = str(error)
            return
        entry.studies.append(study.name)
        trials = self._finished(own, study, "defaults trained")
        entry.untuned_problem = own.problem
        if trials is not None:
            by_seed: dict[int, Run | None] = {
                int(t.params[plan.compare.seed]): read_run(study.folder.trial(t.number), t.state) for t in trials
            }
            entry.untuned = [by_seed.get(seed) for seed in plan.seeds]

    def _finished(self, entry: Entry, study: PreparedStudy, done: str) -> list[TrialResult] | None:
        """Run the trials that a study still lacks, and return all of them.

        If too many fail, set the entry's problem and return None. `done` is a word for the line that is printed.
        """
        start = time.monotonic()
        who = " on ".join(filter(None, [entry.name, entry.task]))
        trials = study.trial_results() if study.is_recorded else None
        again = trials is not None
        if trials is None:
            try:
                self._run(study)
            except StudyFailed as error:
                entry.problem = f"{error.reason} ({error.folder})"
                self._say(f"{who}: fails, and is left out: {entry.problem}")
                return None
            trials = study.trial_results()
        if trials is None:
            raise NothingToCompare(f"study {study.name} is not complete; run the same command again to resume it")
        n_complete = sum(t.state == "complete" for t in trials)
        took = "done before" if again else f"{time.monotonic() - start:.0f} s"
        self._say(f"{who}: {done}, {n_complete} of {len(trials)} runs complete ({took})")
        return trials


def _overrides(trial: TrialResult, space: Space) -> list[str]:
    """Return the overrides that compose the trial's configuration: as it stored them, or if it has no files, anew."""
    try:
        return trial.overrides
    except Damaged:
        raise
    except ConfigError:  # another machine has the files
        return composed_overrides(trial.params, space)


def _refuse_unlike(tunings: Sequence[tuple[Contender, str, PreparedStudy]]) -> None:
    """Raise ConfigError if contenders on the same task differ in their data, their split or their number of epochs."""
    first: dict[str, tuple[Contender, dict[str, Any]]] = {}
    for contender, task, tuning in tunings:
        config = tuning.space.of_options({})
        found = {f"data.{key}": value for key, value in (config.data or {}).items()}
        found |= {f"split.{key}": value for key, value in asdict(config.split).items()}
        found["trainer.epochs"] = config.trainer.epochs
        other, those = first.setdefault(task, (contender, found))
        for key in [*those, *found]:
            if those.get(key) != found.get(key):
                raise ConfigError(
                    key,
                    f"is {those.get(key)} for {other.name}, but {found.get(key)} for {contender.name}: contenders must "
                    "be alike in data, split and epochs; set it for all on the command line",
                )
