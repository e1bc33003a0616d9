"""The figures on a study's page. Some are Optuna's own, with another layout."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna import visualization
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from sweep.config.metrics import sign_of
from sweep.figures.drawing import tail
from sweep.figures.figure import BAD_TO_GOOD, COLOURS, MUTED, Figure, axis, figure_of
from sweep.search.ranges import short

FEWEST_FOR_IMPORTANCES = 10  # trials with a value
_AXIS_PX = 130  # of parallel coordinates
Target = Callable[[FrozenTrial], float]


def target_of(objective: int) -> Target:
    """Return a function that returns a trial's value for that objective."""
    return lambda trial: trial.values[objective]


def history(study: optuna.Study, objective: int, name: str) -> Figure:
    """Return a figure of the values by trial number, with the best complete one so far, and with pruned trials."""
    target = None if len(study.directions) == 1 else target_of(objective)  # a target hides the best so far
    drawn = visualization.plot_optimization_history(study, target=target, target_name=name)
    figure = figure_of(f"history-{objective}", drawn, height=380, legend=_LEGEND, hovermode="closest")
    figure.layout["xaxis"] = {"title": {"text": "trial"}}
    for trace in figure.data:
        if trace["mode"] == "markers":
            trace |= {"name": "complete", "marker": {"color": COLOURS[0], "size": 7}}
        else:
            trace |= {"name": "best so far", "line": {"color": COLOURS[1], "width": 1.8, "shape": "hv"}}
    data = [trace for trace in figure.data if len(trace["x"]) > 0]
    pruned = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.PRUNED and t.values]
    if pruned:
        x, y = [t.number for t in pruned], [t.values[objective] for t in pruned]
        marker = {"color": MUTED, "size": 6, "symbol": "circle-open"}
        data.insert(0, {"x": x, "y": y, "mode": "markers", "name": "pruned", "marker": marker})
    values = np.array([value for trace in data for value in trace["y"]], float)
    figure.layout["yaxis"] = axis(name, values, _spans_decades(values))
    return figure._replace(data=data)


def importances_of(shown: optuna.Study, objective: int) -> dict[str, float]:
    """Return the importance of each param, the largest first. They sum to 1.

    The importance measures how unevenly the best tenth of the trials is spread over the param's range (PED-ANOVA,
    Watanabe et al. 2023). Optuna's default compares the best tenth with all trials instead. That finds little once the
    sampler has learnt to propose only good values.

    Return an empty dict if there are fewer than 10 trials with a value, or no params.
    """
    trials = shown.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if len(trials) < FEWEST_FOR_IMPORTANCES or not any(t.params for t in trials):
        return {}
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances  # loads scikit-learn, 1 s

    target = None if len(shown.directions) == 1 else target_of(objective)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = PedAnovaImportanceEvaluator(evaluate_on_local=False)
        return get_param_importances(shown, evaluator=evaluator, target=target)


def importances(found: Mapping[str, float], objective: int, name: str) -> Figure:
    """Return a bar chart of importances. Optuna's own figure copies all trials for each bar."""
    keys, values = list(found)[::-1], list(found.values())[::-1]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": values,
        "y": keys,
        "text": [f"{value:.2f}" for value in values],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": COLOURS[0]},
        "hovertemplate": "%{y}: %{x:.3f}<extra></extra>",
    }
    layout = {
        "height": 110 + 34 * len(keys),
        "margin": {"r": 50, "t": 15},
        "xaxis": {"title": {"text": f"importance for {name}"}, "rangemode": "tozero"},
        "yaxis": {
            "type": "category",
            "showgrid": False,
            "tickmode": "array",
            "tickvals": keys,
            "ticktext": [tail(key) for key in keys],
        },
    }
    return Figure(f"importances-{objective}", [bars], layout)


def slices(shown: optuna.Study, objective: int, name: str) -> list[Figure]:
    """Return one figure for each param with the value against the param. Separate figures fit on a phone."""
    figures = []
    values = np.array([t.values[objective] for t in shown.get_trials(deepcopy=False) if t.values])
    for i, key in enumerate(searched_keys(shown)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            drawn = visualization.plot_slice(shown, [key], target=target_of(objective), target_name=name)
        figure = figure_of(f"slice-{objective}-{i}", drawn, height=300, hovermode="closest")
        for trace in figure.data:
            trace["marker"] |= {"colorscale": [[0, "#9fb8d6"], [1, COLOURS[0]]], "size": 6, "line": {"width": 0}}
            trace["marker"].pop("colorbar", None)
            trace["x"] = [_unquoted(x) for x in trace["x"]]
            trace["text"] = [f"trial {number}" for number in trace["marker"]["color"]]
            trace["hovertemplate"] = "%{text}<br>%{x}: %{y:.5g}<extra></extra>"
        across = figure.layout["xaxis"]
        if "categoryarray" in across:
            labels = [_unquoted(label) for label in across["categoryarray"]]
            texts = [_label(label) for label in labels]
            across |= {"categoryarray": labels, "tickmode": "array", "tickvals": labels, "ticktext": texts}
        elif across.get("type") == "log":
            figure.layout["xaxis"] = axis(key, figure.data[0]["x"], True)
        figure.layout["xaxis"]["title"] = {"text": tail(key, 32)}
        figure.layout["yaxis"] = axis(name, values, _spans_decades(values))
        figures.append(figure)
    return figures


def parallel(shown: optuna.Study, objective: int, name: str) -> Figure | None:
    """Return parallel coordinates in which you can brush a range; None with fewer than two values or no params.

    Optuna 5 draws one trace for each trial. A browser needs seconds for that, and ranges cannot be brushed.
    """
    trials = shown.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    keys = searched_keys(shown)
    if len(trials) < 2 or not keys:
        return None
    values = np.array([t.values[objective] for t in trials])
    worst_first = -sign_of(shown.directions[objective].name) * values
    ranks = worst_first.argsort().argsort() / max(1, len(values) - 1)  # colours by rank, so that outliers do not matter
    logs = _spans_decades(values)
    dimensions = [_numbers(name, np.log10(values) if logs else values, logs)]
    dimensions += [_dimension(key, trials) for key in keys]
    order = worst_first.argsort()  # the best are drawn last, on top
    for dimension in dimensions:
        dimension["values"] = np.asarray(dimension["values"])[order]
    line = {"color": ranks[order], "colorscale": BAD_TO_GOOD, "cmin": 0, "cmax": 1, "showscale": False}
    trace = {"type": "parcoords", "line": line, "dimensions": dimensions, "labelangle": -18, "labelside": "top"}
    layout = {"height": 440, "margin": {"t": 90, "l": 70, "r": 60, "b": 30}}
    return Figure(f"parallel-{objective}", [trace], layout, min_width=_AXIS_PX * len(dimensions))


def pareto(shown: optuna.Study, names: Sequence[str]) -> Figure | None:
    """Return Optuna's figure of the Pareto front; None unless there are two or three objectives."""
    if len(names) not in (2, 3):
        return None
    drawn = visualization.plot_pareto_front(shown, target_names=list(names))
    figure = figure_of("pareto", drawn, height=440, legend=_LEGEND, hovermode="closest")
    for trace, colour in zip(figure.data, (MUTED, COLOURS[1]), strict=False):
        trace["marker"] = {"color": colour, "size": 7 if len(names) == 2 else 4}
        trace["text"] = [text.replace("\n", "<br>") for text in trace.get("text") or ()]
    return figure


def searched_keys(shown: optuna.Study) -> list[str]:
    """Return the config keys of all params, in the order in which they first appear in trials."""
    return list(dict.fromkeys(key for t in shown.get_trials(deepcopy=False) for key in t.params))


_LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}


def _unquoted(label: Any) -> Any:
    """Return the label without the quotes that Optuna puts around texts."""
    return label[1:-1] if isinstance(label, str) and label[:1] == label[-1:] == "'" and len(label) > 1 else label


def _spans_decades(values: Any) -> bool:
    return len(values) > 0 and bool((values > 0).all()) and values.max() > 10 * values.min()


def _dimension(key: str, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """Return a param's axis of the parallel coordinates. Trials without the param are placed below all others."""
    distribution = next(t.distributions[key] for t in trials if key in t.params)
    if isinstance(distribution, CategoricalDistribution):
        choices = list(distribution.choices)
        places = [choices.index(t.params[key]) if key in t.params else -1 for t in trials]
        labels = {i: _label(choice) for i, choice in enumerate(choices)}
        if -1 in places:
            labels = {-1: "none", **labels}
        return {
            "label": tail(key),
            "values": places,
            "tickvals": list(labels),
            "ticktext": list(labels.values()),
            "range": [min(labels) - 0.15, max(labels) + 0.15],
        }
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    found = np.array([t.params.get(key, np.nan) for t in trials], float)
    return _numbers(tail(key), np.log10(found) if distribution.log else found, distribution.log)


def _numbers(label: str, values: np.ndarray, is_log: bool) -> dict[str, Any]:
    """Return an axis of numbers. `values` has shape (n,), with NaN for missing ones; with `is_log` they are log10."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = (high - low) * 0.02 or 0.5
    ticks = [float(tick) for tick in np.linspace(low, high, 5)] if high > low else [low]
    texts = [short(float(10**tick)) if is_log else short(tick) for tick in ticks]
    bottom = low
    if np.isnan(values).any():
        bottom = low - max(6 * room, 0.5 if high == low else 0)
        values = np.where(np.isnan(values), bottom, values)
        ticks, texts = [bottom, *ticks], ["none", *texts]
    return {
        "label": label,
        "values": values,
        "tickvals": ticks,
        "ticktext": texts,
        "range": [bottom - room, high + room],
    }


def _label(choice: object) -> str:
    text = short(choice)
    return text if len(text) <= 18 else text[:17] + "…"
