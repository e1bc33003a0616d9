"""The trials of a study as its figures show them: a copy of the study, then plain data."""

import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweep.config.metrics import sign_of
from sweep.figures.trials import Param, Trials
from sweep.study.reading import has_value, objective_names
from sweep.study.results import config_values
from sweep.utils.wording import short

FEWEST_FOR_IMPORTANCES = 10  # trials with a value


def shown_trials(study: optuna.Study) -> Trials:
    """Return the trials of a study that have a value, as plain data. See `as_shown` for their params."""
    shown = as_shown(study)
    trials = shown.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    numbers = [trial.number for trial in trials]
    of_study = study.get_trials(deepcopy=False)
    best = {trial.number for trial in shown.best_trials} if numbers else set()
    keys = dict.fromkeys(key for trial in trials for key in trial.params)
    return Trials(
        objectives=objective_names(study),
        signs=[sign_of(direction.name) for direction in study.directions],
        numbers=np.array(numbers, np.int64),
        values=np.array([trial.values for trial in trials], float).reshape(len(trials), len(study.directions)),
        is_pruned=np.array([of_study[number].state == TrialState.PRUNED for number in numbers], bool),
        is_best=np.array([number in best for number in numbers], bool),
        params=[_param(key, trials) for key in keys],
    )


def _param(key: str, trials: Sequence[FrozenTrial]) -> Param:
    distribution = next(trial.distributions[key] for trial in trials if key in trial.params)
    found = [trial.params.get(key) for trial in trials]
    if isinstance(distribution, CategoricalDistribution):
        choices = list(distribution.choices)
        places = [np.nan if key not in trial.params else choices.index(trial.params[key]) for trial in trials]
        return Param(key, np.array(places, float), [*map(short, choices)])
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return Param(key, np.array([np.nan if value is None else value for value in found], float), (), distribution.log)


def importances_of(study: optuna.Study, objective: int) -> dict[str, float]:
    """Return the importance of each param, the largest first. They sum to 1.

    The importance measures how unevenly the best tenth of the trials is spread over the param's range (PED-ANOVA,
    Watanabe et al. 2023). Optuna's default compares the best tenth with all trials instead. That finds little once the
    sampler has learnt to propose only good values.

    Return an empty dict if there are fewer than 10 trials with a value, or no params.
    """
    shown = as_shown(study)
    trials = shown.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if len(trials) < FEWEST_FOR_IMPORTANCES or not any(t.params for t in trials):
        return {}
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances  # loads scikit-learn, 1 s

    target = None if len(shown.directions) == 1 else lambda trial: trial.values[objective]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = PedAnovaImportanceEvaluator(evaluate_on_local=False)
        return get_param_importances(shown, evaluator=evaluator, target=target)


def as_shown(study: optuna.Study) -> optuna.Study:
    """Return a copy of the study in memory, changed so that figures show all of it. Numbers stay the same.

    - If a range depends on an option, Optuna has one parameter for each option, and figures would have gaps. The copy
      has one parameter for each config key, with a range that contains all of them.
    - Most trials may be pruned. In the copy they are complete, with the best value that they reached, which is also the
      value that the sampler uses.
    - Trials without a value become failed trials.
    """
    trials = study.get_trials(deepcopy=False)
    ranges: dict[str, list[BaseDistribution]] = {}
    values: dict[str, list[Any]] = {}
    for trial in filter(has_value, trials):
        for name, distribution in trial.distributions.items():
            key = name.partition("[")[0]
            ranges.setdefault(key, []).append(distribution)
            values.setdefault(key, []).append(trial.params[name])
    merged = {key: _merged(those, values[key]) for key, those in ranges.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna warns about choices that are not plain texts
        drawn = optuna.create_study(storage=InMemoryStorage(), directions=study.directions)
        for trial in trials:
            drawn.add_trial(_renamed(trial, merged) if has_value(trial) else create_trial(state=TrialState.FAIL))
    return drawn


def _renamed(trial: FrozenTrial, ranges: Mapping[str, BaseDistribution]) -> FrozenTrial:
    """Return the trial as a complete one, with params by config key and the given ranges."""
    params = config_values(trial)
    for key, value in params.items():
        distribution = ranges[key]
        if isinstance(distribution, CategoricalDistribution) and value not in distribution.choices:
            params[key] = str(value)
    return create_trial(
        state=TrialState.COMPLETE,
        values=trial.values,
        params=params,
        distributions={key: ranges[key] for key in params},
    )


def _merged(ranges: Sequence[BaseDistribution], values: Sequence[Any]) -> BaseDistribution:
    """Return a range that contains all the given ranges. A mix of numbers and names becomes a choice among texts."""
    if all(one == ranges[0] for one in ranges[1:]):
        return ranges[0]
    choices = [one.choices for one in ranges if isinstance(one, CategoricalDistribution)]
    if len(choices) == len(ranges):
        return CategoricalDistribution(tuple(dict.fromkeys(chain.from_iterable(choices))))
    numbers = [one for one in ranges if isinstance(one, FloatDistribution | IntDistribution)]
    if len(numbers) < len(ranges):
        return CategoricalDistribution(tuple(dict.fromkeys(map(str, values))))
    low, high = min(one.low for one in numbers), max(one.high for one in numbers)
    is_log = all(one.log for one in numbers)
    if all(isinstance(one, IntDistribution) for one in numbers):
        return IntDistribution(int(low), int(high), log=is_log)
    return FloatDistribution(low, high, log=is_log)
