"""What the plot of a comparison shows, from its plan and its judgement."""

import numpy as np

from sweep.comparison.judge import ContenderResult, Judgement
from sweep.comparison.runs import Run
from sweep.comparison.studies import Plan
from sweep.config.metrics import sign_of
from sweep.figures.comparison import ComparisonPoints, ContenderPoints, TaskPoints


def points_of(plan: Plan, judgement: Judgement) -> ComparisonPoints:
    """Return what the plot of a comparison shows."""
    objective_sign = sign_of(plan.settings.direction[0])
    tasks = [
        TaskPoints(
            task=task.task,
            target=task.target,
            contenders=[_contender(result, judgement.sign, objective_sign) for result in task.standings],
        )
        for task in judgement.tasks
    ]
    return ComparisonPoints(
        names=[contender.name for contender in plan.field.contenders],
        metric=plan.compare.metric,
        metric_sign=judgement.sign,
        objective=plan.settings.objective[0],
        objective_sign=objective_sign,
        tasks=tasks,
        factors=judgement.factors,
        profiles=judgement.profiles,
    )


def _contender(result: ContenderResult, sign: float, objective_sign: float) -> ContenderPoints:
    """Return a contender's points. Its costs are turned back into values: of the metric, and of the objective."""
    score, budget = result.score, result.budget
    low, high = score.interval
    return ContenderPoints(
        name=result.name,
        scores=sign * score.costs,
        iqm=sign * score.iqm,
        interval=(sign * low, sign * high),
        untuned_iqm=None if result.untuned is None else sign * result.untuned.iqm,
        trials=budget.k,
        best=objective_sign * budget.values,
        best_interval=objective_sign * np.stack([budget.low, budget.high]) if budget.has_interval else None,
        losses=_padded([run for run in result.entry.runs if run is not None]),
        rates=_rates(result),
    )


def _padded(runs: list[Run]) -> np.ndarray:
    """Return the validation losses, shape (runs, epochs), padded with nan for runs that stopped early.

    The number of epochs is the median over the runs; longer runs are cut.
    """
    longest = int(np.median([len(run.val_loss) for run in runs]))
    return np.array(
        [np.pad(r.val_loss, (0, max(0, longest - len(r.val_loss))), constant_values=np.nan)[:longest] for r in runs]
    )


def _rates(result: ContenderResult) -> list[tuple[float, float]]:
    """Return the learning rate, the highest of the schedule, and the value of the tuning trials that have both."""
    keys = [key for key in ("optimizer.lr", "scheduler.max_lr") if key in result.entry.ranges]
    return [
        (float(trial.params[keys[-1]]), trial.value)
        for trial in result.entry.trials
        if keys and trial.value is not None and not trial.diverged
    ]
