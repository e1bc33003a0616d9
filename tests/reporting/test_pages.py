"""sweep/figures/, sweep/study/shown.py and reporting/: what is shown, before a browser draws it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from PIL import Image

from sweep.figures.curves import Band, curves_figure, draw_bands, over_seeds
from sweep.figures.figure import Figure
from sweep.figures.history import history_figure
from sweep.figures.importances import draw_importances, importances_figure
from sweep.figures.page import Document, Section, Table, to_html
from sweep.figures.parallel import parallel_figure
from sweep.figures.pareto import pareto_figure
from sweep.figures.slices import slice_figures
from sweep.study.identity import IDENTITY
from sweep.study.shown import FEWEST_FOR_IMPORTANCES, as_shown, importances_of, shown_trials
from sweep.utils.curve import Curve

LR = {"sgd": FloatDistribution(1e-2, 1.0, log=True), "adam": FloatDistribution(1e-4, 1e-1, log=True)}


def trial(number: int, state: TrialState = TrialState.COMPLETE, value: float | None = None) -> FrozenTrial:
    """The smaller the number the better, unless told otherwise; odd ones are adam's."""
    name = ("sgd", "adam")[number % 2]
    ranges: dict[str, BaseDistribution] = {
        "optimizer": CategoricalDistribution(["sgd", "adam"]),
        f"lr[{name}]": LR[name],
        "width": IntDistribution(1, 64),
    }
    params = {"optimizer": name, f"lr[{name}]": 0.02 + number / 1000, "width": 1 + number}
    value = float(1 + number) if value is None else value
    reports = {1: value} if state == TrialState.PRUNED else None
    value = None if state == TrialState.FAIL else value
    return create_trial(state=state, value=value, params=params, distributions=ranges, intermediate_values=reports)


def study_of(*trials: FrozenTrial, directions: Any = ("minimize",)) -> optuna.Study:
    study = optuna.create_study(directions=directions)
    study.add_trials(trials)
    return study


def test_a_parameter_whose_range_depends_on_an_option_is_shown_as_one_with_a_range_that_holds_all():
    study = study_of(*map(trial, range(6)))
    shown = as_shown(study)
    assert [t.params["lr"] for t in shown.trials] == [0.02 + n / 1000 for n in range(6)]
    assert {repr(t.distributions["lr"]) for t in shown.trials} == {repr(FloatDistribution(1e-4, 1.0, log=True))}
    assert [param.key for param in shown_trials(study).params] == ["optimizer", "lr", "width"]


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        (CategoricalDistribution([16, 32]), CategoricalDistribution([32, 64]), CategoricalDistribution([16, 32, 64])),
        (IntDistribution(1, 4, step=3), IntDistribution(3, 9), IntDistribution(1, 9)),
        (IntDistribution(1, 4), FloatDistribution(3, 9), FloatDistribution(1, 9)),
        (FloatDistribution(1, 4, log=True), FloatDistribution(0, 9), FloatDistribution(0, 9)),
        (FloatDistribution(1, 64), CategoricalDistribution(["auto", "32"]), CategoricalDistribution(["4.0", "32"])),
    ],
)
def test_ranges_that_differ_between_trials_are_merged(first, second, merged):
    values = [
        4 if isinstance(d, IntDistribution) else 4.0 if hasattr(d, "low") else d.choices[0] for d in (first, second)
    ]
    values[1] = "32" if isinstance(merged, CategoricalDistribution) and "4.0" in merged.choices else values[1]
    trials = [
        create_trial(value=1.0, params={"a[x]": values[0]}, distributions={"a[x]": first}),
        create_trial(value=2.0, params={"a[y]": values[1]}, distributions={"a[y]": second}),
    ]
    assert [t.distributions["a"] for t in as_shown(study_of(*trials)).trials] == [merged, merged]


def test_pruned_trials_count_with_what_they_reached_and_all_keep_their_numbers():
    shown = as_shown(study_of(trial(0), trial(1, TrialState.FAIL), trial(2, TrialState.PRUNED), trial(3)))
    with_value = [t for t in shown.trials if t.state == TrialState.COMPLETE]
    assert [(t.number, t.value) for t in with_value] == [(0, 1.0), (2, 3.0), (3, 4.0)]


def test_the_history_keeps_pruned_trials_apart_from_the_best_so_far():
    study = study_of(trial(0), trial(1, TrialState.PRUNED, 0.5), trial(2, TrialState.FAIL), trial(3, value=0.7))
    drawn = {trace["name"]: trace for trace in history_figure(shown_trials(study), 0).data}
    assert (drawn["pruned"]["x"], drawn["pruned"]["y"]) == ([1], [0.5])
    assert (list(drawn["complete"]["x"]), list(drawn["complete"]["y"])) == ([0, 3], [1.0, 0.7])
    best = dict(zip(drawn["best so far"]["x"], drawn["best so far"]["y"], strict=True))
    assert (best[0], best[3]) == (1.0, 0.7)


def test_importances_name_what_matters_and_need_enough_trials():
    few = study_of(*map(trial, range(FEWEST_FOR_IMPORTANCES - 1)))
    assert importances_of(few, 0) == {}
    many = study_of(*map(trial, range(60)))  # the value is the width, and the learning rate goes with it
    found = importances_of(many, 0)
    assert sum(found.values()) == pytest.approx(1)
    assert list(found)[-1] == "optimizer"
    drawn = importances_figure(found, 0, "val/loss").data[0]
    assert drawn["y"][0] == "optimizer"  # bars grow from below


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_best_trials_are_drawn_last_and_reddest_in_parallel_coordinates(direction):
    figure = parallel_figure(shown_trials(study_of(*map(trial, range(8)), directions=(direction,))), 0)
    assert figure is not None
    (trace,) = figure.data
    value, optimizer, lr, _ = trace["dimensions"]
    assert list(trace["line"]["color"]) == sorted(trace["line"]["color"])
    assert value["values"][-1] == (1.0 if direction == "minimize" else 8.0)
    assert optimizer["ticktext"] == ["sgd", "adam"]
    assert 10 ** lr["values"][-1] == pytest.approx(0.02 if direction == "minimize" else 0.027)


def test_trials_without_a_parameter_stand_below_the_others_in_parallel_coordinates():
    momentum = FloatDistribution(0.5, 1.0)
    with_it = create_trial(value=1.0, params={"momentum": 0.5}, distributions={"momentum": momentum})
    figure = parallel_figure(shown_trials(study_of(with_it, with_it, create_trial(value=2.0))), 0)
    assert figure is not None
    dimension = figure.data[0]["dimensions"][1]
    assert dimension["ticktext"][0] == "none"
    assert dimension["values"][0] == dimension["tickvals"][0] < 0.5


def test_a_study_of_two_objectives_has_a_front_and_slices_for_each():
    study = optuna.create_study(directions=["minimize", "maximize"])
    for number in range(4):
        plain = trial(number)
        study.add_trial(create_trial(values=[number, number], params=plain.params, distributions=plain.distributions))
    study.set_user_attr(IDENTITY, {"hydra.sweeper.objective": json.dumps(["val/loss", "val/accuracy"])})
    shown = shown_trials(study)
    others, front = pareto_figure(shown).data
    assert (len(others["x"]), len(front["x"])) == (0, 4), "each is better by one objective"
    titles = [figure.layout["yaxis"]["title"]["text"] for figure in slice_figures(shown, 1)]
    assert titles == ["val/accuracy"] * 3


def test_the_picture_of_importances_has_a_panel_for_each_objective(tmp_path: Path):
    one, other = {"lr": 0.7, "width": 0.3}, {"width": 0.9, "lr": 0.1}
    draw_importances({"val/loss": one}, tmp_path / "one.png", 50)
    draw_importances({"val/loss": one, "model/n_weights": other}, tmp_path / "two.png", 50)
    with Image.open(tmp_path / "one.png") as plot:
        single = np.asarray(plot)
    with Image.open(tmp_path / "two.png") as plot:
        both = np.asarray(plot)
    assert both.shape[:2] == (2 * single.shape[0], single.shape[1])
    assert both[single.shape[0] :].std() > 10, "the lower half is drawn too"


def curve(steps: list[int], values: list[float]) -> Curve:
    return Curve(np.array(steps), np.array(values))


def test_seeds_are_averaged_where_all_of_them_have_a_value():
    band = over_seeds([curve([1, 2, 3], [1.0, 2.0, 3.0]), curve([1, 2], [3.0, 6.0]), curve([1, 2, 4], [2.0, 1.0, 0.0])])
    assert band.steps.tolist() == [1, 2]
    assert band.mean.tolist() == [2.0, 3.0]
    assert (band.low.tolist(), band.high.tolist()) == ([1.0, 1.0], [3.0, 6.0])
    assert band.n_seeds == 3


def test_a_long_curve_is_thinned_on_the_page_with_its_ends_kept(tmp_path: Path):
    steps = np.arange(1, 5001)
    band = Band(steps, 1 / steps, 1 / steps, 1 / steps, 1)
    figure = curves_figure({"val/loss": {"trial 1": band}, "lr": {"trial 1": band}})
    x = figure.data[0]["x"]
    assert len(x) <= 400
    assert (x[0], x[-1]) == (1, 5000)
    draw_bands({"val/loss": {"trial 1": band}}, tmp_path / "curves.png", 50)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_band_is_drawn_only_where_there_are_several_seeds():
    one = over_seeds([curve([1, 2], [1.0, 2.0])])
    two = over_seeds([curve([1, 2], [1.0, 2.0]), curve([1, 2], [3.0, 0.5])])
    figure = curves_figure({"val/loss": {"one": one, "two": two}})
    (band,) = [trace for trace in figure.data if trace.get("fill")]
    assert band["legendgroup"] == "two"
    assert band["y"].tolist() == [3.0, 2.0, 0.5, 1.0]


def test_a_figure_cannot_end_its_script_and_has_no_numbers_that_json_lacks():
    text = Figure("f", [{"y": np.array([1 / 3, np.nan, np.inf]), "name": "</script><b>"}], {"height": 1}).to_json()
    assert "<" not in text
    assert json.loads(text)["data"] == [{"y": [0.333333, None, None], "name": "</script><b>"}]


def test_whatever_comes_from_users_is_shown_as_text():
    evil = "<img src=x onerror=alert(1)>"
    sections = [Section(evil, evil, commands=[(evil, evil)], tables=[Table([(evil, evil)]), Table([[evil]], [evil])])]
    html = to_html(Document(evil, evil, [(evil, evil)], [*sections, Section("", texts=[(evil, evil)])], evil))
    assert "<img" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;") == 18
