"""The page of a study, with its results and the commands that repeat it, and plots for papers."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweep.config.best_config import stored_best
from sweep.config.metrics import sign_of
from sweep.config.overrides import known_command
from sweep.execution.attempts import renumbered
from sweep.execution.queue import PROBLEM, STOPPED
from sweep.figures.curves import Band, Bands, curves_figure, draw_bands, over_seeds
from sweep.figures.drawing import drawing_problem
from sweep.figures.history import history_figure
from sweep.figures.importances import draw_importances, importances_figure
from sweep.figures.page import Document, Section, Table, to_html
from sweep.figures.parallel import parallel_figure
from sweep.figures.pareto import has_front, pareto_figure
from sweep.figures.plots import draw_plots
from sweep.figures.slices import slice_figures
from sweep.study.identity import only_one_run
from sweep.study.reading import has_value, snapshot
from sweep.study.restoring import missing, missing_text, stored_curves
from sweep.study.results import STATES, best_trials, config_values, counts
from sweep.study.shown import FEWEST_FOR_IMPORTANCES, importances_of, shown_trials
from sweep.tracking import journal
from sweep.tracking.folders import RunFolder, StudyFolder
from sweep.tracking.provenance import from_study_command, rerun_command
from sweep.utils.errors import ConfigError, DamagedJournal
from sweep.utils.files import write_atomic
from sweep.utils.terminal import say
from sweep.utils.wording import duration, short

_N_CURVES = 5  # trials whose curves are shown if you choose none
_DPI = 200  # of plots for papers
_N_ROWS = 12  # of the table of trials
_N_FAILURES = 20


class Report:
    """The page of a study, as the study is at the time of construction."""

    def __init__(self, study: optuna.Study, folder: StudyFolder, trials: Sequence[int] | None) -> None:
        """Read the study.

        Args:
            study: the study, as the storage has it.
            folder: the study's folder.
            trials: the numbers of the trials whose curves are shown; None for the best ones.

        Raises:
            ConfigError: the study has no trial with such a number.
            DamagedJournal: the journal of one of these trials is damaged.
        """
        # A snapshot, so that all facts, figures and tables agree although workers may add trials.
        study = renumbered(snapshot(study))
        self._study, self._folder = study, folder
        self._trials = study.get_trials(deepcopy=False)
        name = study.study_name
        known = f"only 0 to {len(self._trials) - 1}" if self._trials else "as it has none yet"
        for number in trials or ():
            if not 0 <= number < len(self._trials):
                raise ConfigError("trials", f"'{name}' has no trial {number}, {known}")
        self._best = best_trials(study)
        self._ranked = _ranked(study, self._trials, self._best)
        self._shown = shown_trials(study)
        self._importances = [importances_of(study, i) for i in range(len(study.directions))]
        self._start = journal.last_of(folder.run.journal, "start") or {}
        self._names = self._shown.objectives
        running = [t.number for t in self._trials if t.state == TrialState.RUNNING]  # shown if none has a value yet
        best_or_running = [t.number for t in self._ranked[:_N_CURVES]] or running[:_N_CURVES]
        chosen = best_or_running if trials is None else dict.fromkeys(trials)
        self._missing = missing(self._trials, folder)
        self._bands = _bands(folder, [self._trials[number] for number in chosen], self._names, self._best)

    @property
    def note(self) -> str:
        """A line about trials whose files are on other machines; an empty text if there are none."""
        return missing_text(self._missing) if self._missing else ""

    def write(self, page: Path) -> list[str]:
        """Write the page, and the plots into the folder `plots` beside it. Return the names of the plots.

        A plot that cannot be drawn only prints a warning. Raises OSError if the folder cannot be written.
        """
        page.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(page, to_html(self._document()), durable=False, to_be_shown=True)
        plots = page.parent / self._folder.plots.name
        plots.mkdir(exist_ok=True)
        found = {name: one for name, one in zip(self._names, self._importances, strict=True) if one}
        names: list[str] = []

        def draw(what: str, plot: Callable[[], Sequence[str]]) -> None:
            problem = drawing_problem(lambda: names.extend(plot()))
            if problem is not None:
                say(f"warning: cannot draw the {what} ({problem})", err=True)

        draw("history and slices", lambda: draw_plots(self._shown, plots, _DPI))
        if self._bands:
            draw("curves", lambda: [draw_bands(self._bands, plots / "curves.png", _DPI)])
        if found:
            draw("importances", lambda: [draw_importances(found, plots / "importances.png", _DPI)])
        return names

    def _document(self) -> Document:
        n_by_ending = counts(self._trials)
        sections = [self._best_section(), *self._figure_sections(), self._trials_section(), self._endings(n_by_ending)]
        return Document(
            title=self._study.study_name,
            subtitle=f"A study of {', '.join(self._objectives())}, {self._span()}",
            facts=self._facts(n_by_ending),
            sections=[section for section in (*sections, self._environment()) if section is not None],
            footer=f"Made by python -m sweep.report on {_date(time.time())}; figures by plotly.js (MIT licence).",
        )

    def _objectives(self) -> list[str]:
        directions = [direction.name.lower() + "d" for direction in self._study.directions]
        return [f"{name} ({direction})" for name, direction in zip(self._names, directions, strict=True)]

    def _span(self) -> str:
        began = [t.datetime_start.timestamp() for t in self._trials if t.datetime_start]
        return f"begun {_date(min(began))}" if began else "not begun"

    def _facts(self, n_by_ending: Mapping[str, int]) -> list[tuple[str, str]]:
        facts = [(f"{n}", word) for word, n in n_by_ending.items() if n or word == "complete"]
        n_open = len(self._trials) - sum(n_by_ending.values())
        if n_open:
            facts.append((f"{n_open}", "running or waiting"))
        if self._best and len(self._names) == 1:
            best = self._best[0]
            facts.insert(0, (short(best.values[0]), f"best {self._names[0]}, trial {best.number}"))
        elif self._best:
            facts.insert(0, (str(len(self._best)), "on the Pareto front"))
        ends = [t.datetime_complete.timestamp() for t in self._trials if t.datetime_complete]
        begins = [t.datetime_start.timestamp() for t in self._trials if t.datetime_start]
        if not ends or not begins:
            return facts
        return [*facts, (duration(max(ends) - min(begins)), "from first start to last end")]

    def _best_section(self) -> Section:
        if not self._best:
            note = "No trial is complete, so there is no best one."
            return Section("Best configuration", note)
        best, output_dir = self._best[0], self._folder.path.parent.parent
        values = {name: short(value) for name, value in zip(self._names, best.values, strict=True)}
        rows = values | {key: short(value) for key, value in config_values(best).items()}
        note = (
            f"Trial {best.number}." if len(self._best) == 1 else f"Trial {best.number}, the first of the Pareto front."
        )
        stored = self._stored_best()
        if stored.get("trial") != best.number:
            note += " The command that trains it appears here once the study's own command has ended."
            return Section("Best configuration", note, tables=[Table(list(rows.items()))])
        if reservation := only_one_run(self._study.user_attrs):
            note += f" Training it again {reservation}."
        overrides = [str(override) for override in stored["overrides"]]
        again = from_study_command(self._study.study_name, output_dir, overrides)
        commands = [(again, "Train it again, where the study is:")]
        commands.append((rerun_command(overrides), "The same without the study's folder:"))
        return Section("Best configuration", note, commands=commands, tables=[Table(list(rows.items()))])

    def _stored_best(self) -> Mapping[str, Any]:
        # The results are written just before the best. If they exist, a missing best is an error.
        if not self._folder.best.exists() and not self._folder.results.exists():
            return {}
        return stored_best(self._folder.best, "study")

    def _figure_sections(self) -> Iterator[Section]:
        shown, names = self._shown, self._names
        is_any = len(shown.numbers) > 0
        if is_any and has_front(shown):
            yield Section("Pareto front", "", [pareto_figure(shown)])
        if is_any:
            drawn = [history_figure(shown, i) for i in range(len(names))]
            note = "A pruned trial is shown at the best value that it reached." if shown.is_pruned.any() else ""
            yield Section("History", note, drawn, grid=len(drawn) > 1)
        if self._bands:
            seeds = max(band.n_seeds for of_trials in self._bands.values() for band in of_trials.values())
            note = f"Mean over {seeds} seeds, within a band from the lowest to the highest." if seeds > 1 else ""
            yield Section("Curves", note or "Click a trial to hide it.", [curves_figure(self._bands)])
        elif self.note:
            yield Section("Curves", f"There are none: {self.note}.")
        if not shown.params:
            return
        yield self._importances_section()
        drawn = [figure for i in range(len(names)) if (figure := parallel_figure(shown, i))]
        note = "Better trials are redder. Drag along an axis to keep only the trials in that range."
        if drawn:
            yield Section("Parallel coordinates", note, drawn)
        note = f"{', '.join(names)} against each param, with pruned trials. Later trials have a stronger colour."
        drawn = [figure for i in range(len(names)) for figure in slice_figures(shown, i)]
        yield Section("Slices", note, drawn, grid=True)

    def _importances_section(self) -> Section:
        found = zip(self._importances, self._names, strict=True)
        drawn = [importances_figure(of_one, i, name) for i, (of_one, name) in enumerate(found) if of_one]
        note = "How unevenly the best tenth of the trials is spread over each range (PED-ANOVA)."
        if not drawn:
            note = f"Importances need at least {FEWEST_FOR_IMPORTANCES} trials with a value."
        return Section("Importances", note, drawn, grid=len(drawn) > 1)

    def _trials_section(self) -> Section | None:
        if not self._ranked:
            return None
        keys = [param.key for param in self._shown.params]
        rows = []
        for trial in self._ranked[:_N_ROWS]:
            params = config_values(trial)
            cells = [short(params[key]) if key in params else "" for key in keys]
            rows.append([str(trial.number), *map(short, trial.values), STATES[trial.state], *cells])
        return Section("Best trials", tables=[Table(rows, ["trial", *self._names, "state", *keys])])

    def _endings(self, n_by_ending: Mapping[str, int]) -> Section:
        """Return the section on how trials ended, with the errors of failed ones."""
        if not sum(n_by_ending.values()):
            return Section("How trials ended", "No trial has ended yet.")
        ended = Counter(_ending(t) for t in self._trials if t.state.is_finished())
        rows = [(ending, f"{n} of {sum(n_by_ending.values())}") for ending, n in ended.most_common()]
        failed = [t for t in self._trials if t.state == TrialState.FAIL]
        texts = []
        for trial in failed[:_N_FAILURES]:
            problem = trial.user_attrs.get(PROBLEM, "no reason recorded")
            texts.append((f"Trial {trial.number} failed: {problem}", _traceback(self._folder, trial.number) or problem))
        note = f"The first {_N_FAILURES} of {len(failed)} failures are shown." if len(failed) > _N_FAILURES else ""
        return Section("How trials ended", note, tables=[Table(rows)], texts=texts)

    def _environment(self) -> Section:
        tags = self._start.get("tags", {})
        rows = [(name, tags[tag]) for tag, name in _TAGS.items() if tag in tags]
        rows += [(tag.removeprefix("version."), version) for tag, version in tags.items() if tag.startswith("version.")]
        if "git.commit" in tags:
            changed = ", with uncommitted changes" if tags.get("git.dirty") == "true" else ""
            rows.append(("git commit", tags["git.commit"] + changed))
        first = next((run for t in self._trials for run in _runs_of(self._folder, t.number)), None)
        rows = [*_data_rows(first), *rows]
        settings = self._start.get("params", {})
        command = known_command(tags.get("command"))
        commands = [(command, "The study's command, which also resumes it:")] if command else []
        return Section(
            "Study and environment", commands=commands, tables=[Table(list(map(_pair, settings.items()))), Table(rows)]
        )


_TAGS = {"python": "Python", "os": "operating system", "cpus": "CPUs", "host": "host"}


def _ranked(study: optuna.Study, trials: Sequence[FrozenTrial], best: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials with a value: complete ones before pruned ones, and the best first.

    With several objectives, return only the Pareto front.
    """
    if len(study.directions) > 1:
        return list(best)
    sign = sign_of(study.directions[0].name)
    return sorted(filter(has_value, trials), key=lambda t: (t.state == TrialState.PRUNED, sign * t.values[0]))


def _bands(
    folder: StudyFolder, trials: Sequence[FrozenTrial], objectives: Sequence[str], best: Sequence[FrozenTrial]
) -> Bands:
    """Return the curves of the objectives, the losses and the learning rate by epoch, as far as trials have them.

    Raises DamagedJournal if a journal is damaged, if that of a finished trial is gone, or if that of a complete trial
    has no end.
    """
    bands: dict[str, dict[str, Band]] = {name: {} for name in (*objectives, "val/loss", "train/loss", "lr")}
    for trial in trials:
        suffix = ", the best" if [trial] == best else ", pruned" if trial.state == TrialState.PRUNED else ""
        label = f"trial {trial.number}{suffix}"
        if trial.state.is_finished():
            _check_records(_run_folders(folder, trial.number), trial.state)
        found = [journal.curves(run.journal) for run in _runs_of(folder, trial.number)]
        if not found and missing([trial], folder):
            with suppress(ConfigError):  # the page says what is missing
                found = stored_curves(folder, trial.number)
        for metric, of_trials in bands.items():
            curves = [curves[metric] for curves in found if metric in curves]
            if curves and len((band := over_seeds(curves)).steps):
                of_trials[label] = band
    return {metric: of_trials for metric, of_trials in bands.items() if of_trials}


def _check_records(runs: Sequence[RunFolder], state: TrialState) -> None:
    """Raise DamagedJournal if a trial that has ended lost a run's record, or a complete one the end of a record."""
    for run in runs:
        if not run.journal.exists():
            if run.config.exists():
                raise DamagedJournal(run.journal, None, "it is gone, but the run has begun")
        elif state == TrialState.COMPLETE and journal.status(run.journal) is None:
            raise DamagedJournal(run.journal, None, "the trial is complete, but its record has no end")


def _run_folders(folder: StudyFolder, number: int) -> list[RunFolder]:
    """Return the folder of a trial, and those of its seeds."""
    trial = folder.trial(number)
    return [trial, *map(RunFolder, sorted(trial.path.glob("seed-*")))]


def _runs_of(folder: StudyFolder, number: int) -> list[RunFolder]:
    """Return the run of a trial, or one run for each of its seeds."""
    return [run for run in _run_folders(folder, number) if run.journal.exists()]


def _traceback(folder: StudyFolder, number: int) -> str | None:
    for run in _runs_of(folder, number):
        if run.error.exists():
            return run.error.read_text(encoding="utf-8", errors="replace")
    return None


def _ending(trial: FrozenTrial) -> str:
    if trial.state == TrialState.PRUNED:
        stopped = trial.user_attrs.get(STOPPED)
        return stopped or "diverged"
    return STATES[trial.state]


def _data_rows(run: RunFolder | None) -> list[tuple[str, str]]:
    start = {} if run is None else journal.last_of(run.journal, "start") or {}
    dataset = start.get("dataset") or {}
    rows = [("data", dataset["name"])] if dataset else []
    profile = dataset.get("profile", {})
    if "n_train" in profile:
        parts = {"n_train": "train", "n_val": "validate", "n_test": "test"}
        counts = [f"{'?' if profile[name] is None else profile[name]} to {verb}" for name, verb in parts.items()]
        rows.append(("samples", ", ".join(counts)))
    device = start.get("tags", {}).get("device")
    return [*rows, ("device", device)] if device else rows


def _pair(item: tuple[str, Any]) -> tuple[str, str]:
    return item[0], str(item[1])


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(seconds))
