"""The results of a study: files in its folder, and the journal from which its own run in MLflow is made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from omegaconf import OmegaConf
from optuna.trial import FrozenTrial, TrialState

from sweep.config.metrics import best_of
from sweep.config.overrides import key_of, value_of
from sweep.execution.attempts import numbered
from sweep.search.ranges import range_text
from sweep.search.settings import StudySettings
from sweep.search.space import Space
from sweep.tracking.folders import RunFolder, StudyFolder
from sweep.tracking.journal import Journal
from sweep.tracking.provenance import provenance_tags
from sweep.utils.checked_file import OF_AN_OPTION, load_checked, remove_checked, write_checked
from sweep.utils.files import to_yaml

STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def best_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the best trial, or with several objectives the Pareto front; an empty list if no trial is complete."""
    if not any(t.state == TrialState.COMPLETE for t in study.get_trials(deepcopy=False)):
        return []
    return numbered([study.best_trial] if len(study.directions) == 1 else study.best_trials)


def best_value(study: optuna.Study) -> float | None:
    """Return the value of the best trial; None if there is none, or with several objectives."""
    best = best_trials(study)
    return best[0].value if best and len(study.directions) == 1 else None


def counts(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    """Return how many trials are complete, pruned and failed, by these words."""
    return {word: sum(t.state == state for t in trials) for state, word in STATES.items()}


def config_values(trial: FrozenTrial) -> dict[str, Any]:
    """Return the trial's params by config key.

    If a range depends on an option, Optuna has one parameter for each option, with the option's name in brackets behind
    the key. The brackets are removed here.
    """
    return {name.partition("[")[0]: value for name, value in trial.params.items()}


def write_results(study: optuna.Study, folder: StudyFolder, space: Space) -> None:
    """Write the results of a study to its folder: nothing if no trial is complete.

    `optimization_results.yaml` has the format of hydra-optuna-sweeper, best.yaml has the overrides of the best trial,
    and a further file is an option for the group `experiment`. If the best trial deletes keys of other options
    (`~KEY`), there is no such option, because a config file cannot delete keys.
    """
    best = best_trials(study)
    if not best:
        return
    write_checked(folder.results, to_yaml(_stock_results(study, best, space)))
    number, is_given = best[0].number, "seed" not in config_values(best[0])
    recorded = recorded_overrides(folder.trial(number), folder.trial(number, 0), is_given)
    overrides = recorded or composed_overrides(config_values(best[0]), space)
    again = {"trial": best[0].number, "values": best[0].values, "overrides": overrides}
    write_checked(folder.best, to_yaml(again))
    if any(o.startswith("~") for o in overrides):
        remove_checked(folder.option, first=OF_AN_OPTION)  # it may hold an earlier best trial
        return  # an option cannot delete keys, but `from_study` can
    folder.option.parent.mkdir(exist_ok=True)
    text = _option(f"{study.study_name}: trial {best[0].number}", overrides, space)
    write_checked(folder.option, text, first=OF_AN_OPTION)


def write_stock_results(study: optuna.Study, sweep_dir: Path, space: Space) -> None:
    """Write `optimization_results.yaml` where hydra-optuna-sweeper writes it, for programs that read it there."""
    if best := best_trials(study):
        sweep_dir.mkdir(parents=True, exist_ok=True)
        (sweep_dir / "optimization_results.yaml").write_text(to_yaml(_stock_results(study, best, space)))


def _stock_results(study: optuna.Study, best: Sequence[FrozenTrial], space: Space) -> dict[str, Any]:
    if len(study.directions) == 1:
        return {"name": "optuna", "best_params": _stock(best[0], space), "best_value": best[0].value}
    solutions = [{"params": _stock(t, space), "values": t.values} for t in best]
    return {"name": "optuna", "solutions": solutions}


def _stock(trial: FrozenTrial, space: Space) -> dict[str, Any]:
    """Return the trial's params as hydra-optuna-sweeper names them: by key, with a `+` if the command line has one."""
    return {f"{space.composer.prefixes.get(key, '')}{key}": value for key, value in config_values(trial).items()}


def recorded_overrides(trial: RunFolder, first: RunFolder, is_given: bool) -> list[str]:
    """Return the overrides that a trial was trained with, whatever was changed in the study since.

    The last overrides of a replicate are its own seed and fold, which are left out, except for a seed that the study
    searches.

    Args:
        trial: the trial's folder.
        first: the folder of its first replicate, which exists if it has several.
        is_given: False if the study searches the seed.

    Returns:
        The overrides; an empty list if another machine has the trial's files.

    Raises:
        Damaged: the file that holds them was changed.
    """
    for run, n_own in ((trial, 0), (first, int(is_given))):
        if run.overrides.exists():
            remedy = "remove that file, and run the study's command again: it knows them, too"
            recorded = [str(o) for o in load_checked(run.overrides, "hydra.sweeper.study_name", remedy, list)]
            if run is first and recorded and key_of(recorded[-1]) == "split.fold":
                recorded = recorded[:-2]
            return recorded[: len(recorded) - n_own]
    return []


def composed_overrides(params: Mapping[str, Any], space: Space) -> list[str]:
    """Return the overrides that compose the configuration of those params, by key, in the study as it is now."""
    groups = {key: str(value) for key, value in params.items() if key in space.groups}
    values = {key: value for key, value in params.items() if key not in groups}
    return list(space.composer.compose(groups, values).overrides)


def _option(what: str, overrides: Sequence[str], space: Space) -> str:
    """Return the text of an option for the group `experiment`, without its first line."""
    options, values = dict[str, str](), dict[str, str]()
    known = space.composer.base(space.first_groups()).choices
    for override in overrides:
        key = key_of(override)
        if key.startswith(("hydra.", "tracking.")):
            continue  # only the user's own command decides where results go
        (options if key in known else values)[key] = value_of(override)
    defaults: list[Any] = [options.pop("experiment")] if "experiment" in options else []
    defaults += [{f"override /{group}": option} for group, option in options.items()]
    node = OmegaConf.create({"defaults": defaults} if defaults else {})
    for key, value in values.items():
        OmegaConf.update(node, key, space.composer.plain(key, value), force_add=True)
    return f"# The best of study {what}\n{OmegaConf.to_yaml(node)}"


class StudyRecord:
    """Writes the study's own journal, which MLflow gets as the parent run. Only one process at a time may do so."""

    def __init__(self, journal: Journal, study: optuna.Study) -> None:
        self._journal, self._study = journal, study
        self._next = 0  # the number of the first trial that is not recorded
        self._best: float | None = None  # the best value among the trials before it

    def start(self, facts: dict[str, Any]) -> None:
        """Append the start event."""
        self._journal.event("start", **facts)

    def update(self, trials: Sequence[FrozenTrial]) -> None:
        """Append the values of complete trials, up to the first trial that is unfinished.

        So the values are in the order of the trials' numbers, and each is written once. The time of a point is that at
        which the trial finished. If another process records a trial again, MLflow gets an identical point.
        """
        upto = next((t.number for t in trials if not t.state.is_finished()), len(trials))
        done = [t for t in trials[self._next : upto] if t.state == TrialState.COMPLETE]
        self._next = upto
        for trial in done:
            self._journal.metrics([trial.number], self._row(trial), time=_completed_ms(trial))

    def _row(self, trial: FrozenTrial) -> dict[str, list[float]]:
        if len(self._study.directions) > 1:
            return {f"value/{i}": [value] for i, value in enumerate(trial.values)}
        value = trial.values[0]
        best = self._best = best_of([value] if self._best is None else [self._best, value], self._study.direction.name)
        return {"value": [value], "best_value": [best]}

    def end(self, status: str, folder: StudyFolder, trials: Sequence[FrozenTrial], best: Sequence[FrozenTrial]) -> None:
        """Append the end event, with the counts, the best trial and the artifacts, and flush it to the disk.

        Args:
            status: FINISHED, FAILED or KILLED.
            folder: the study's folder.
            trials: all trials, `numbered`.
            best: the best of them.
        """
        self.update(trials)
        tags, values = {}, {f"trials/{word}": [float(n)] for word, n in counts(trials).items()}
        if len(self._study.directions) == 1 and best:
            tags = {"best.trial": str(best[0].number), "best.value": repr(best[0].value)}
            tags |= {f"best.{key}": str(value) for key, value in config_values(best[0]).items()}
        files = [folder.results, folder.best, folder.option.parent, folder.plots, folder.report, folder.run.config]
        artifacts = [file.name for file in files if file.exists()]
        self._journal.event("end", status=status, steps=[0], values=values, tags=tags, artifacts=artifacts)
        self._journal.sync()


def start_facts(
    name: str, uid: str, settings: StudySettings, space: Space, experiment: str, arguments: Sequence[str]
) -> dict[str, Any]:
    """Return the start event of the study's journal, without the paths and the store.

    Args:
        name: the study's name.
        uid: the id of the study's record, the same in every storage and store.
        settings: the study's settings.
        space: its search space.
        experiment: the experiment in MLflow.
        arguments: those of the command that resumes the study.
    """
    params: dict[str, Any] = {
        "sampler": _class_name(settings.sampler),
        "pruner": _class_name(settings.pruner),
        "seeds": settings.seeds,
    }
    if settings.folds > 1:
        params["folds"] = settings.folds
    params |= {"objective": ", ".join(settings.objective), "direction": ", ".join(settings.direction)}
    params |= {f"search.{n}".translate(_PARAM_KEY): range_text(d) for n, d in space.named_ranges().items()}
    application = space.composer.application
    script = None if application is None else application.script
    tags = {**provenance_tags(arguments, script), "study": name, "kind": "study"}
    return {
        "uid": uid,
        "name": name,
        "experiment": experiment,
        "params": params,
        "tags": tags,
        "parent": None,
    }


_PARAM_KEY = str.maketrans({"[": " ", "]": None, ",": " "})  # MLflow refuses these characters


def _completed_ms(trial: FrozenTrial) -> int:
    assert trial.datetime_complete is not None
    return int(trial.datetime_complete.timestamp() * 1e3)


def _class_name(node: dict[str, Any]) -> str:
    return str(node["_target_"]).rpartition(".")[2]
