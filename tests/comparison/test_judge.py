"""From runs to numbers, alarms and verdicts, on runs made up for the purpose; and contenders from command lines."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from spaces import hydra_of_its_own

from sweep.comparison.contenders import ComparisonSpec, Contender, read_comparison
from sweep.comparison.facts import ComparisonFacts, facts_of
from sweep.comparison.judge import Judgement, judge
from sweep.comparison.plot import points_of
from sweep.comparison.runs import Entry, Run, choose
from sweep.comparison.tables import score_rows, tables
from sweep.config.nodes import Compare
from sweep.figures import comparison
from sweep.figures.comparison import draw_comparison
from sweep.study.trial_result import Range, TrialResult
from sweep.utils.errors import ConfigError

N = 8
LR = {"optimizer.lr": Range(1e-4, 1e-1, True, None)}


def run(loss: float, curve: Sequence[float] = (1.0, 0.5), metric: str = "test/loss") -> Run:
    """Of 5 updates an epoch, 2 seconds long."""
    return Run({metric: loss}, np.array(curve), 5, 2.0)


def trial(number: int, value: float | None, lr: float = 1e-2, diverged: bool = False) -> TrialResult:
    state = "complete" if value is not None and not diverged else "pruned"
    return TrialResult(number, {"optimizer.lr": lr}, value, state, diverged, None)


def entry(name: str, losses: Sequence[float | None], task: str = "", **fields: Any) -> Entry:
    """None: a run that diverged."""
    made = Entry(Contender(name, {}), task, ranges=LR, searched={"optimizer.lr": "0.0001 to 0.1, log"})
    made.trials = [trial(0, 1.0)]
    made.chosen = [trial(0, 1.0)] * len(losses)
    made.runs = [None if loss is None else run(loss) for loss in losses]
    for key, value in fields.items():
        setattr(made, key, value)
    return made


def judged(*entries: Entry, direction: str = "minimize", learns: bool = False, n_trials: int = 1) -> Judgement:
    metric = "test/loss" if direction == "minimize" else "test/accuracy"
    return judge(entries, metric, direction, "minimize", learns=learns, level=0.05, target=None, n_trials=n_trials)


def plan_of(direction: str = "minimize", metric: str = "test/loss", n_trials: int = 1) -> Any:
    """What is read of a plan."""
    return SimpleNamespace(
        compare=Compare(n_seeds=N, metric=metric),
        settings=SimpleNamespace(direction=[direction], objective=["val/loss"]),
        field=SimpleNamespace(contenders=[Contender(name, {}) for name in "ab"]),
        config=SimpleNamespace(is_application=False, trainer=SimpleNamespace(epochs=2), choices={"data": "noisy_sine"}),
        name="c",
        command="python -m sweep.compare",
        seeds=[*range(N)],
        n_trials=n_trials,
    )


def text_of(judgement: Judgement) -> str:
    facts = facts_of(plan_of(), judgement)
    return "\n".join([*(task["verdict"] for task in facts["tasks"]), *facts.get("warnings", ())])


LOW, HIGH = [1.0 + i / 100 for i in range(N)], [2.0 + i / 50 for i in range(N)]


def test_the_verdict_names_who_is_not_beaten_and_what_stays_open() -> None:
    middle = [low + (0.3 if i % 2 else -0.3) for i, low in enumerate(LOW)]
    text = text_of(judged(entry("a", LOW), entry("b", HIGH), entry("c", middle)))
    assert text.startswith(
        "a and c are not beaten. a is better than b (1.035 against 2.07; p = 0.023, in 100% of pairs);"
    )
    assert "c is better than b" in text
    assert "Between a and c: no detectable difference." in text


def test_equal_contenders_have_no_detectable_difference() -> None:
    assert text_of(judged(entry("a", LOW), entry("b", LOW))).startswith(
        "no detectable difference (smallest adjusted p = 1"
    )


def test_a_metric_may_get_better_upwards() -> None:
    contenders = [
        entry(name, LOW, runs=[run(x, metric="test/accuracy") for x in scores])
        for name, scores in (("a", LOW), ("b", HIGH))
    ]
    judgement = judged(*contenders, direction="maximize")
    assert text_of(judgement).startswith("b is not beaten. b is better than a (2.07 against 1.035;")


def test_p_values_are_adjusted_over_all_tasks_together() -> None:
    tasks = [entry(name, losses, task) for task in ("x", "y", "z") for name, losses in (("a", LOW), ("b", HIGH))]
    judgement = judged(*tasks)
    assert [duel.adjusted for task in judgement.tasks for duel in task.tests] == pytest.approx([3 * 2 / 2**N] * 3)
    assert list(judgement.profiles) == ["a", "b"]
    assert judgement.profiles["a"][-1] == 1.0
    assert judged(*tasks[:4]).profiles == {}, "two tasks make no profile"


def test_a_failed_contender_is_told_of_and_the_rest_compared() -> None:
    text = text_of(judged(entry("a", LOW), entry("b", HIGH), entry("c", [], problem="no GPU", runs=[])))
    assert "a is better than b" in text
    assert "c is left out: no GPU" in text


def test_a_contender_that_is_left_alone_has_no_seeds_to_raise() -> None:
    text = text_of(judged(entry("a", [1.0, 2.0]), entry("b", [], problem="no GPU", runs=[])))
    assert text == "nothing to compare; a is alone.\nb is left out: no GPU"


def test_diverged_runs_count_as_worst_and_are_told_of() -> None:
    judgement = judged(entry("a", LOW), entry("b", [0.5, None, None, None, None, None, None, None]))
    assert "7 of 8 runs of b diverged or failed" in text_of(judgement)
    assert judgement.tasks[0].standings[1].score.median == math.inf
    assert judgement.tasks[0].tests[0].pair.improvement == pytest.approx(7 / 8)


def test_the_target_is_reached_by_more_than_half_of_every_contender() -> None:
    """Steps and seconds are those of the median run, which exists although some missed it."""
    slow = [run(1.0, [0.9, 0.8, 0.4 + i / 100]) for i in range(N)]
    fast = [run(1.0, [0.3, 0.2, 0.1]) for _ in range(N)]
    (task,) = judged(entry("slow", LOW, runs=slow), entry("fast", LOW, runs=fast)).tasks
    assert task.target == pytest.approx(0.44)
    slow_reached, fast_reached = (s.reached for s in task.standings)
    assert slow_reached == (5 / 8, 15.0, 2.0)
    assert fast_reached == pytest.approx((1.0, 5.0, 2 / 3))


def test_a_choice_at_the_end_of_its_range_raises_an_alarm() -> None:
    at_end = [trial(i, 1.0, lr) for i, lr in enumerate([0.09, 0.08, 0.07, 1e-3])]
    inside = [trial(i, 1.0, lr) for i, lr in enumerate([0.09, 0.01, 0.01, 1e-3])]
    alarms = [entry(name, LOW, chosen=chosen, n_tunings=4) for name, chosen in (("a", at_end), ("b", inside))]
    edges = [s.edges for s in judged(*alarms).tasks[0].standings]
    assert edges[0] == ["3 of 4 tunings of a chose optimizer.lr at the upper end of 0.0001 to 0.1, log; widen it"]
    assert edges[1] == []


def test_half_of_few_choices_at_one_end_may_be_chance() -> None:
    """4 of 8 among four sizes: 11 % by chance; 12 of 20: 0.1 %."""
    sizes = {"trainer.batch_size": Range(16, 128, False, (16, 32, 64, 128))}

    def edges(n_smallest: int, n: int) -> list[str]:
        chosen = [
            TrialResult(i, {"trainer.batch_size": 16 if i < n_smallest else 64}, 1.0, "complete", False, None)
            for i in range(n)
        ]
        searched = {"trainer.batch_size": "16, 32, 64, 128"}
        made = entry("a", LOW, chosen=chosen, n_tunings=n, ranges=sizes, searched=searched)
        return judged(made, entry("b", LOW)).tasks[0].standings[0].edges

    assert edges(4, 8) == []
    assert edges(12, 20) == [
        "12 of 20 tunings of a chose trainer.batch_size at the lower end of 16, 32, 64, 128; widen it"
    ]


def test_the_number_beside_the_last_of_a_long_list_is_not_its_end() -> None:
    many = {"trainer.batch_size": Range(1, 12, False, tuple(range(1, 13)))}

    def edges(size: int) -> list[str]:
        chosen = [TrialResult(i, {"trainer.batch_size": size}, 1.0, "complete", False, None) for i in range(8)]
        made = entry("a", LOW, chosen=chosen, n_tunings=8, ranges=many, searched={"trainer.batch_size": "1 to 12"})
        return judged(made, entry("b", LOW)).tasks[0].standings[0].edges

    assert [bool(edges(size)) for size in (1, 2, 11, 12)] == [True, False, False, True]


def test_sensitivity_is_the_range_of_rates_near_the_best_and_the_share_that_diverged() -> None:
    trials = [trial(0, 1.0, 1e-3), trial(1, 1.09, 3e-2), trial(2, 1.2, 9e-2), trial(3, 0.5, 1e-1, diverged=True)]
    standing = judged(entry("a", LOW, trials=trials), entry("b", LOW)).tasks[0].standings[0]
    assert standing.rates == {"optimizer.lr": (1e-3, 3e-2)}
    assert standing.diverged == 0.25


def test_the_budget_curve_counts_what_diverged_as_the_worst_of_all() -> None:
    trials = [trial(0, 1.0), trial(1, 0.2, diverged=True)]
    judgement = judged(entry("a", LOW, trials=trials), entry("b", LOW, trials=[trial(0, 3.0)]), n_trials=2)
    assert judgement.tasks[0].standings[0].budget.values.tolist() == pytest.approx([(1 + 3) / 2, 1.0])
    learnt = judged(entry("a", LOW, trials=[trial(0, 2.0), trial(1, 1.0)]), entry("b", LOW), learns=True, n_trials=2)
    assert learnt.tasks[0].standings[0].budget.values.tolist() == [2.0, 1.0], "in their order, if the sampler learns"


def test_each_tuning_chooses_among_its_own_trials() -> None:
    trials = [trial(i, value) for i, value in enumerate([3.0, 5.0, 2.0, None, 4.0, None])]
    chosen = choose(trials, 2, 4, "minimize")
    assert [None if t is None else t.number for t in chosen] == [2, 1, 2, 1]
    assert [t and t.number for t in choose(trials, 1, 2, "maximize")] == [1, 1]
    assert choose(trials[3:4], 1, 1, "minimize") == [None]


def field_of(*arguments: str, **over: str) -> ComparisonSpec:
    with hydra_of_its_own() as hydra:
        return read_comparison(hydra.config_loader, arguments, over)


def test_options_make_contenders_and_data_make_tasks() -> None:
    field = field_of("data=digits,table", "optimizer=sgd,adam", "scheduler=constant", "trainer.batch_size=16,32")
    assert [c.name for c in field.contenders] == ["sgd", "adam"]
    assert field.tasks == ["digits", "table"]
    assert field.shared == ["scheduler=constant", "trainer.batch_size=16,32"]
    from_config = field_of("data=digits", scheduler="constant", optimizer="sgd,adam")
    assert [c.name for c in from_config.contenders] == ["sgd-constant", "adam-constant"]
    assert from_config.shared == ["data=digits"]
    with pytest.raises(ConfigError, match="two contenders"):
        field_of("optimizer=sgd", "data=digits,table", optimizer="sgd,adam")


def test_the_order_of_contenders_changes_no_number() -> None:
    losses = [1.0, 1.3, 0.9, 1.2, 1.25, 0.8, 1.15, 0.95]
    several = [entry("b", losses), entry("a", HIGH), entry("c", losses[::-1])]
    first, second = judged(*several), judged(*several[::-1])
    found = [{s.name: (s.score.interval, s.budget.low.tolist()) for s in j.tasks[0].standings} for j in (first, second)]
    assert found[0] == found[1]
    (duel,) = [d for d in first.tasks[0].tests if (d.first.name, d.second.name) == ("b", "c")]
    (turned,) = [d for d in second.tasks[0].tests if (d.first.name, d.second.name) == ("c", "b")]
    assert duel.pair.interval == pytest.approx((1 - turned.pair.interval.high, 1 - turned.pair.interval.low))
    assert (duel.pair.p, duel.adjusted) == (turned.pair.p, turned.adjusted)


def test_zero_has_no_sign_and_a_task_without_contenders_no_tables() -> None:
    zero = facts_of(plan_of(), judged(entry("a", [-0.0] * N), entry("b", LOW)))
    found = tables(zero["tasks"][0], zero)
    assert found is not None
    assert found.scores.rows[0][:4] == ["a", "0", "0", "0 to 0"]
    none = facts_of(plan_of(), judged(entry("a", [1.0] * N, problem="fails")))
    assert tables(none["tasks"][0], none) is None
    assert [row[1:] for row in score_rows(none)] == [["a", *[None] * 7, "fails"]]


def test_the_best_configuration_has_each_searched_key_once() -> None:
    """The command line may give a default beside a range. A learning rate of 0 has no ratio."""
    best = [
        "optimizer=sgd",
        "optimizer.lr=0.1",
        "+search.optimizer.lr='0,0.1,0.2'",
        "trainer.epochs=2",
        "optimizer.lr=0",
    ]
    trials = [trial(i, 1.0, lr) for i, lr in enumerate([0.0, 0.1])]
    facts = facts_of(plan_of(), judged(entry("a", LOW, best=best, trials=trials), entry("b", LOW)))
    found = tables(facts["tasks"][0], facts)
    assert found is not None
    assert found.tuning.rows[0][-2:] == ["optimizer.lr: 0 to 0.1", "optimizer.lr=0"]


def maximised() -> ComparisonFacts:
    """Tuned for, and judged by, values that should be high."""
    trials = [trial(0, 0.5), trial(1, 0.9), trial(2, 0.7)]
    contenders = [
        entry(name, LOW, runs=[run(x, metric="test/accuracy") for x in scores], trials=trials)
        for name, scores in (("a", LOW), ("b", HIGH))
    ]
    found = judge(contenders, "test/accuracy", "maximize", "maximize", False, 0.05, None, 3)
    return facts_of(plan_of("maximize", "test/accuracy", 3), found)


def test_what_is_maximised_is_told_in_its_own_sign() -> None:
    facts = maximised()
    assert (facts.get("direction"), facts.get("objective_direction")) == ("maximize", "maximize")
    budget = facts["tasks"][0]["contenders"]["a"]["budget"]
    assert budget["values"] == pytest.approx([0.7, (0.9 + 0.9 + 0.7) / 3, 0.9])
    low, high = (np.array(budget[end], float) for end in ("low", "high"))
    assert ((low <= budget["values"]) & (budget["values"] <= high) & (low >= 0.5)).all()
    found = tables(facts["tasks"][0], facts)
    assert found is not None
    assert found.scores.title == "test/accuracy, 8 seeds (higher is better)"
    assert [row[0] for row in found.scores.rows] == ["b", "a"], "the best first"
    assert found.budget.rows[0][1].startswith("0.7 (0.5 to 0.")


def test_the_facts_of_an_older_version_are_shown_in_their_order() -> None:
    facts: Any = maximised()
    for key in ("direction", "objective_direction", "warnings"):
        del facts[key]
    for contender in facts["tasks"][0]["contenders"].values():
        del contender["best"], contender["budget"]["has_interval"]
    found = tables(facts["tasks"][0], facts)
    assert found is not None
    assert found.scores.title == "test/accuracy, 8 seeds"
    assert [row[0] for row in found.scores.rows] == ["a", "b"]
    assert (found.budget.rows[0][1], found.tuning.rows[0][-1]) == ("0.7", "")


VALUES = {
    "tiny": [1e-12, 1e-10, 1e-9],
    "huge": [1.0, 1e6, 1e12],
    "wide": [1e-12, 1.0, 1e12],
    "far off": [*np.linspace(0.1, 0.2, 60), 1e9],
    "one": [0.5],
    "equal": [0.5, 0.5],
    "negative": [-3.0, -2.0, 1.0],
}


@pytest.mark.parametrize("kind", VALUES)
def test_the_picture_shows_the_tuning_trials_within_finite_limits(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    values = [float(value) for value in VALUES[kind]]
    trials = [trial(i, value, lr=10 ** (-4 + i % 3)) for i, value in enumerate(values)]
    made = [entry(name, [1.0] * N, trials=trials) for name in "ab"]
    judgement = judged(*made)
    limits: list[tuple[float, float]] = []
    rates = comparison._rates

    def watched(axes: Any, *arguments: Any) -> None:
        rates(axes, *arguments)
        limits.append(axes.get_ylim())

    monkeypatch.setattr(comparison, "_rates", watched)
    draw_comparison(points_of(plan_of(), judgement), tmp_path / "c.png")
    ((low, high),) = limits
    assert np.isfinite([low, high]).all()
    assert low < min(values), "the best lie inside"
    assert high > np.quantile(values, 0.9)
    assert low > 0 or min(values) < 0, "a logarithmic axis has no room for zero"


def test_a_picture_of_no_contender_is_drawn_without_a_warning(tmp_path: Path) -> None:
    judgement = judged(entry("a", [1.0] * N, problem="fails"))
    draw_comparison(points_of(plan_of(), judgement), tmp_path / "c.png")


@pytest.mark.parametrize("learns", [False, True])
def test_where_every_tuning_trial_diverged_there_is_no_number(learns: bool, tmp_path: Path) -> None:
    trials = [trial(i, None, diverged=True) for i in range(5)]
    made = [entry(name, [1.0] * N, trials=trials) for name in "ab"]
    judgement = judged(*made, learns=learns, n_trials=5)
    for standing in judgement.tasks[0].standings:
        assert np.isnan(standing.budget.values).all()
        assert standing.rates == {}
    draw_comparison(points_of(plan_of(n_trials=5), judgement), tmp_path / "c.png")
