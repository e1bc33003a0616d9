"""sweep/search/space.py: what a study searches."""

import functools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from spaces import ranges_of, space_of

from sweep.config.composition import compose
from sweep.config.schema import Config, validate
from sweep.search.ranges import alike, grid_of
from sweep.search.space import Space
from sweep.utils.errors import ConfigError

DEFAULT = {
    "scheduler.base_lr": FloatDistribution(1e-5, 1e-3, log=True),
    "scheduler.max_lr": FloatDistribution(1e-3, 1e-1, log=True),
    "trainer.batch_size": CategoricalDistribution([16, 32, 64, 128]),
}


def test_out_of_the_box_the_learning_rate_bounds_and_the_batch_size_are_searched():
    assert ranges_of(space_of()) == DEFAULT


@pytest.mark.parametrize("scheduler", ["constant", "cosine", "plateau", "step", "warmup_cosine", "exponential"])
def test_a_schedule_without_bounds_has_the_optimizers_learning_rate_searched(scheduler):
    lr = {"optimizer.lr": FloatDistribution(1e-4, 1e-1, log=True)}
    assert ranges_of(space_of(f"scheduler={scheduler}")) == lr | {"trainer.batch_size": DEFAULT["trainer.batch_size"]}


def test_a_value_on_the_command_line_leaves_the_space():
    left = ranges_of(space_of("scheduler.max_lr=0.01", "trainer.batch_size=32"))
    assert left == {"scheduler.base_lr": DEFAULT["scheduler.base_lr"]}


def test_a_value_that_another_key_refers_to_takes_that_one_out_of_the_space_too():
    assert "scheduler.max_lr" not in ranges_of(space_of("lr_bounds.max_lr=0.02"))


def test_a_sweep_on_the_command_line_replaces_the_options_own_range():
    space = space_of("scheduler.max_lr=interval(0.1,0.2)", "+optimizer.maximize=false,true", "model.widths=[8],[16,16]")
    assert ranges_of(space) == DEFAULT | {
        "scheduler.max_lr": FloatDistribution(0.1, 0.2),
        "optimizer.maximize": CategoricalDistribution([False, True]),
        "model.widths": CategoricalDistribution(["[8]", "[16,16]"]),
    }
    config = space.compose(space.configuration(lambda name, distribution: first(distribution)))
    assert config.model.widths == [8]
    assert "+optimizer.maximize=false" in config.overrides


@pytest.fixture
def with_groups(tmp_path: Path) -> Callable[..., Space]:
    """A space of an experiment that searches groups, and perhaps of more overrides."""

    def make(*more: str, text: str = "{optimizer: 'sgd,adam', task/loss: 'mse,mae', model.dropout: null}") -> Space:
        (tmp_path / "experiment").mkdir(exist_ok=True)
        (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\nsearch: {text}\n")
        chosen = more if any(o.startswith("experiment=") for o in more) else ("experiment=mine", *more)
        return space_of(f"hydra.searchpath=[{tmp_path}]", "task=regression", *chosen)

    return make


def test_groups_are_searched_from_a_file(with_groups: Callable[..., Space]) -> None:
    space = with_groups()
    searched = {
        "optimizer": CategoricalDistribution(["sgd", "adam"]),
        "task/loss": CategoricalDistribution(["mse", "mae"]),
    }
    assert space.groups == searched
    assert ranges_of(space) == ranges_of(space_of("optimizer=sgd,adam", "task/loss=mse,mae", "task=regression"))
    config = space.compose(space.configuration(lambda name, distribution: last(distribution)))
    assert config.optimizer._target_ == "torch.optim.Adam"
    assert "L1Loss" in config.task.loss._target_


def test_a_file_may_search_the_options_that_match_a_glob(with_groups: Callable[..., Space]) -> None:
    found = with_groups(text="{optimizer: 'glob(*ada*)', task/loss: 'glob(m*)'}").groups
    assert found == space_of("optimizer=glob(*ada*)", "task/loss=glob(m*)", "task=regression").groups
    assert "adamw" in found["optimizer"].choices


@pytest.mark.parametrize(("given", "left"), [("optimizer=adamw", None), ("optimizer=adamw,adam", ["adamw", "adam"])])
def test_the_command_line_has_the_last_word_on_such_groups(
    given: str, left: list[str] | None, with_groups: Callable[..., Space]
) -> None:
    groups = with_groups(given).groups
    assert groups.get("optimizer") == (None if left is None else CategoricalDistribution(left))
    assert "task/loss" in groups
    ranges_of(with_groups(given))


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("{optimizer: sgd}", [], r"search.optimizer: 'optimizer=sgd' is not a range"),
        ("{optimizer: 'interval(0, 1)'}", [], r"optimizer: is a config group; give its options"),
        ("{optimizer: 'glob(q*)'}", [], r"search.optimizer: has no option that matches; choose one of: "),
        ("{optimizer: 'sgd,adan'}", [], r"optimizer: no option 'adan'; choose one of"),
        ("{optimizer: 'sgd,adam'}", ["experiment=debug,mine"], r"search.optimizer: is a group, and an option that is"),
    ],
)
def test_a_group_that_cannot_be_searched_is_one_line(
    text: str, more: list[str], message: str, with_groups: Callable[..., Space]
) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        with_groups(*more, text=text).named_ranges()


def test_ranges_that_depend_on_a_sampled_group_are_parameters_of_their_own():
    space = space_of("optimizer=sgd,adam,adamw")
    assert space.groups == {"optimizer": CategoricalDistribution(["sgd", "adam", "adamw"])}
    assert set(ranges_of(space, optimizer="sgd")) == {
        "scheduler.base_lr[sgd]",
        "scheduler.max_lr[sgd]",
        "trainer.batch_size",
    }
    assert ranges_of(space, optimizer="sgd")["scheduler.max_lr[sgd]"] == FloatDistribution(0.03, 1.0, log=True)
    assert ranges_of(space, optimizer="adam")["scheduler.max_lr[adam]"] == DEFAULT["scheduler.max_lr"]


@pytest.mark.parametrize("optimizers", ["sgd,adam", "adam,sgd"])
@pytest.mark.parametrize("schedulers", ["constant,cyclic", "cyclic,constant"])
def test_a_parameter_has_one_range_whatever_the_order_of_the_options(optimizers, schedulers):
    space = space_of(f"scheduler={schedulers}", f"optimizer={optimizers}")
    ranges: dict[str, set[object]] = {}
    for optimizer in ("sgd", "adam"):
        for scheduler in ("constant", "cyclic"):
            for name, distribution in ranges_of(space, optimizer=optimizer, scheduler=scheduler).items():
                ranges.setdefault(name, set()).add(str(distribution))
    assert all(len(found) == 1 for found in ranges.values())
    assert len(ranges) == 2 + 2 * 2 + 1  # optimizer.lr and two bounds for each optimizer; the batch size
    assert set(space.named_ranges()) == {*ranges, "optimizer", "scheduler"}


def test_only_the_groups_that_a_range_depends_on_stand_in_its_name():
    space = space_of("optimizer=adam,adamw", "scheduler=cyclic,onecycle,constant", "model=mlp,linear")
    assert "scheduler.base_lr[cyclic]" in ranges_of(space)  # adam and adamw have the same
    assert "optimizer.lr[constant]" in ranges_of(space, scheduler="constant")
    assert "trainer.batch_size" in ranges_of(space)


def test_a_configuration_is_composed_as_hydra_itself_composes_it():
    space = space_of("optimizer=sgd,adam", "trainer.epochs=7", "~optimizer.fused", "+optimizer.foreach=true,false")
    for option in ("sgd", "adam"):
        configuration = space.configuration(lambda name, d, o=option: o if name == "optimizer" else last(d))
        fast = space.compose(configuration)
        overrides = [str(o) for o in fast.overrides]
        slow = space.composer.loader.load_sweep_config(space.composer.master, overrides)
        assert plain(fast) == plain(slow)


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ([], {"scheduler.max_lr": 0.05, "trainer.batch_size": 32}),
        ([], {"lr_bounds.max_lr": 0.05, "seed": 3}),  # which others refer to
        ([], {"trainer.epochs": 2.0}),  # of a type that is none for this key
        ([], {"model.dropout": 1, "trainer.clip_norm": 1}),  # the second becomes 1.0
        ([], {"scheduler.max_lr": 0.05, "optimizer.eps": 1e-6}),  # is added
        ([], {"model.widths": "[8,8]", "optimizer.weight_decay": 0.1}),  # a list
        ([], {"optimizer": "adam"}),  # no value for a node
        (["+data.title='of ${model.widths}'"], {"model.widths": "[8]"}),
        (["+data.title='${oc.env:HOME}'"], {"scheduler.max_lr": 0.05}),
        (["optimizer.lr='${scheduler.max_lr}'"], {"scheduler.max_lr": 0.05}),  # a chain of references
        (["optimizer.lr=???"], {"scheduler.max_lr": 0.05}),
        (["+data.more=[1,'${seed}']"], {"seed": 4}),
        (["trainer.seed=5"], {"seed": 4}),
        (["scheduler=onecycle", "optimizer=sgd"], {"scheduler.max_lr": 0.05, "optimizer.momentum": 0}),
    ],
)
def test_a_config_made_of_plain_dicts_is_what_omegaconf_makes(given: list[str], values: dict[str, object]):
    composer = space_of(*given).composer

    def refusal(make: Callable[[], Config]) -> str:
        try:
            return repr(replace(make(), overrides=[]))  # where OmegaConf resolves references, too
        except Exception as error:
            return repr(error)

    for _ in range(2):  # and what was made first is left alone by the second
        assert refusal(lambda: composer.validated({}, values)) == refusal(
            lambda: validate(composer.compose({}, values))
        )


def test_numbers_of_the_default_config_take_no_omegaconf(monkeypatch: pytest.MonkeyPatch):
    composer = space_of().composer
    composer.validated({}, {"scheduler.max_lr": 0.05, "seed": 1})
    monkeypatch.setattr(composer, "_config", None)
    composer.validated({}, {"scheduler.max_lr": 0.03, "seed": 2})


SOME = {  # keys that not every sampled option has
    "scheduler": ["scheduler=cyclic_exp_range,cyclic,constant", "scheduler.gamma=0.9,0.95"],
    "added": ["optimizer=sgd,adam", "+optimizer.betas=[0.9,0.99],[0.8,0.9]", "++optimizer.eps=1e-8,1e-6"],
    "experiment": [
        "experiment=seed_study,debug",
        "trainer.epochs=2,3",
        "optimizer.weight_decay=range(0.1,0.5,step=0.1)",
    ],
    "texts": [
        r"experiment_name=\${seed}",
        r"+model.title='a, ${seed}',\${seed},a\,b",
        "trainer.seed=${seed}",
        "seed=1,2",
    ],
    "nested": ["model.widths=[8],[16,16],null", "++model.more={a:[1,null]},{a:x}"],
    "bounds": ["bounds=auto", "optimizer=sgd,adam"],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOME)
def test_what_a_trial_records_composes_to_the_same_config_again(kind: str):
    space, rng = searched(kind), random.Random(kind)
    for _ in range(4):
        configuration = space.accepted(lambda name, distribution: drawn(rng, distribution))
        composed = space.compose(configuration)
        assert compose(list(composed.overrides)).composed == composed.composed
        same = space.composer.validated(configuration.groups, configuration.values)  # of a packed trial
        assert (same.overrides, same.composed) == (list(composed.overrides), composed.composed)


@functools.cache
def searched(kind: str) -> Space:
    starts = {f"optimizer={o}": {"scheduler.max_lr": {"value": 0.1, "low": 0.01, "high": 0.5}} for o in ("sgd", "adam")}
    return space_of(*SOME[kind], starts=starts if kind == "bounds" else {})


def drawn(rng: random.Random, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, FloatDistribution) and distribution.step is None:
        return rng.uniform(distribution.low, distribution.high)
    return rng.choice(grid_of("", distribution))


def test_a_swept_key_is_searched_under_the_options_that_have_it():
    space = searched("scheduler")
    assert "scheduler.gamma[cyclic_exp_range]" in ranges_of(space, scheduler="cyclic_exp_range")
    assert not any("gamma" in name for name in ranges_of(space, scheduler="cyclic"))
    assert "optimizer.betas" in ranges_of(searched("added"), optimizer="sgd")  # the command line adds it


def test_a_swept_key_that_no_option_has_is_refused_as_hydra_refuses_it():
    with pytest.raises(ConfigError, match=r"'foo' is not in struct \(to add an argument, write \+optimizer\.foo"):
        space_of("optimizer=sgd,adam", "optimizer.foo=1,2").combinations()


def test_conditions_reject_a_configuration_before_it_is_tried():
    space = space_of("optimizer=sgd", "+where.small='scheduler.max_lr < 10 * scheduler.base_lr'")
    asked = iter([0.1, 0.05, 16, 0.01, 0.5, 16, 0.01, 0.05, 32])
    configuration = space.accepted(lambda name, distribution: next(asked))
    assert configuration.values == {"scheduler.base_lr": 0.01, "scheduler.max_lr": 0.05, "trainer.batch_size": 32}


def test_a_grid_is_every_combination_that_meets_the_conditions():
    space = space_of(
        "optimizer=sgd,adam",
        "scheduler.base_lr=0.01,0.1",
        "scheduler.max_lr=0.05,0.5",
        "trainer.batch_size=range(8,17,8)",
    )
    points = [(*c.groups.values(), *c.values.values()) for c in space.everything()]
    assert len(points) == len(set(points)) == 2 * 3 * 2
    assert points[:4] == [
        ("sgd", 0.01, 0.05, 8),
        ("sgd", 0.01, 0.05, 16),
        ("sgd", 0.01, 0.5, 8),
        ("sgd", 0.01, 0.5, 16),
    ]


def test_the_defaults_are_the_composed_values_that_lie_within_their_ranges():
    assert space_of().defaults({}) == {
        "scheduler.base_lr": 1e-4,
        "scheduler.max_lr": 1e-2,
        "trainer.batch_size": 64,
    }
    assert space_of("trainer.batch_size=8,16").defaults({}) == {"scheduler.base_lr": 1e-4, "scheduler.max_lr": 1e-2}


@pytest.mark.parametrize(
    ("given", "sampled"),
    [
        ("model.widths=[32],[64,64]", "[64,64]"),
        ("+data.domain=[-1,1],[-3.141592653589793,3.141592653589793]", "[-3.141592653589793,3.141592653589793]"),
        ("trainer.clip_norm=1.0,null", "null"),
        ("optimizer.fused=false,true", True),
        ("optimizer.fused=0,1", None),
        ("model.activation=tanh,'relu'", "'relu'"),
        ("model.activation='1',relu", "relu"),
        (r"trainer.seed=${split.seed},${seed}", "${split.seed}"),
        ("split.val=range(0.05,0.3,step=0.05)", 0.15),
    ],
)
def test_the_composed_value_is_found_among_the_choices(given: str, sampled: object):
    found = space_of(given).defaults({})
    assert found.get(given.lstrip("+").partition("=")[0]) == sampled


def test_values_are_alike_if_they_are_the_same_within():
    assert alike({"c": [1, True, None]}, {"c": [1, True, None]})
    assert not alike({"c": [1, True]}, {"c": [1, 1]})
    assert not alike("1", 1)


MISTAKES = {
    "inverted": (["scheduler.max_lr=interval(1,0.1)"], "scheduler.max_lr"),
    "empty": (["trainer.batch_size=range(5,5)"], "trainer.batch_size"),
    "logarithm of 0": (["scheduler.max_lr=tag(log, interval(0,1))"], "scheduler.max_lr"),
    "numbers and texts": (["trainer.batch_size=16,many"], "trainer.batch_size"),
    "part of a list": (["model.widths[0]=4,5"], "model.widths[0]"),
    "index for a key": (["model.widths.0=4,5"], "model.widths.0"),
    "a group for a package": (["optimizer@model=sgd,adam"], "optimizer"),
    "a group's range": (["optimizer=interval(1,2)"], "optimizer"),
    "unknown option": (["optimizer=sgd,foo"], "optimizer"),
    "no range in search": (["+search={trainer.epochs: 5}"], "search.trainer.epochs"),
    "condition on nothing": (["+where.x='scheduler.foo < 1'"], "where.x"),
    "condition that is none": (["+where.x='a <'"], "where.x"),
    "condition that nothing meets": (["+where.x='scheduler.max_lr < 0'"], "where.x"),
    "grid over a continuous range": (["optimizer=sgd"], "scheduler.base_lr"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_key(mistake):
    arguments, key = MISTAKES[mistake]
    with pytest.raises(ConfigError) as caught:  # noqa: PT012  # wherever it shows
        space = space_of(*arguments)
        for groups in space.each_group_alone():
            space.ranges(groups)
        space.accepted(lambda name, distribution: first(distribution))
        list(space.everything())
    assert caught.value.key == key
    assert "\n" not in str(caught.value)


def test_null_goes_with_any_kind():
    choices = ranges_of(space_of("trainer.clip_norm=null,1.0"))["trainer.clip_norm"]
    assert choices == CategoricalDistribution(["null", 1.0])


def first(distribution):
    return distribution.choices[0] if isinstance(distribution, CategoricalDistribution) else distribution.low


def last(distribution):
    return distribution.choices[-1] if isinstance(distribution, CategoricalDistribution) else distribution.high


def plain(config):
    """Without Hydra's own node, and what composing fills in."""
    container = OmegaConf.to_container(config, resolve=False)
    assert isinstance(container, dict)
    return {k: v for k, v in container.items() if k not in ("hydra", "overrides", "choices", "composed")}
