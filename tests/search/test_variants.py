"""sweep/search/variants.py: options composed without Hydra are composed as Hydra does it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from omegaconf import Container, OmegaConf
from spaces import master_of

from sweep.config.options import CONF_DIR
from sweep.config.output_folders import register
from sweep.search.composer import Composer
from sweep.search.making import make_space
from sweep.search.space import Space
from sweep.utils.errors import ConfigError

PLAIN = "_target_: sweep.models.MLP\nwidths: [{n}]\ndropout: 0.0\nactivation: ${{trainer.loss}}\n"
OPTIONS = {
    **{f"model/m{n}.yaml": PLAIN.format(n=n) for n in range(8)},
    "model/elsewhere.yaml": "# @package _global_\nmodel: {_target_: sweep.models.Linear}\ntrainer: {epochs: 3}\n",
    "model/elsewhere2.yaml": "# @package _global_\nmodel: {_target_: sweep.models.Linear}\nwhere: {x: seed < 3}\n",
    "model/child.yaml": "defaults: [m1, _self_]\nwidths: [5]\n",
    "model/before.yaml": "defaults: [_self_, m1]\nwidths: [5]\n",
    "model/of_hydra.yaml": "# @package _global_\nmodel: {widths: [3]}\nhydra: {job: {name: other}}\n",
    "model/sub/deep.yaml": "_target_: sweep.models.Linear\n",
    "model/empty.yaml": "",
    "extra/mlp.yaml": "# @package _global_\ntrainer: {epochs: 10}\n",  # of the default model
    "extra/m1.yaml": "# @package _global_\ntrainer: {epochs: 11}\n",
    "extra/m2.yaml": "# @package _global_\ntrainer: {epochs: 12}\n",
    "extra/m3.yaml": "# @package _global_\ntrainer: {epochs: 13}\n",
    "experiment/follows.yaml": "# @package _global_\ndefaults: [{/extra: '${model}'}]\nmodel: {dropout: 0.5}\n",
    "experiment/sets.yaml": "# @package _global_\ndefaults: [{override /model: m7}]\nmodel: {dropout: 0.25}\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    for name, text in OPTIONS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def space_with(folder: Path, *arguments: str) -> Space:
    """The space of `python -m sweep.run -m --config-dir FOLDER ARGUMENTS`."""
    register()
    path = create_config_search_path(str(CONF_DIR))
    path.append("command-line", f"file://{folder}")
    GlobalHydra.instance().clear()
    try:
        loader = Hydra.create_main_hydra2(task_name="run", config_search_path=path).config_loader
        hydra = type("", (), {"config_loader": loader})
        return make_space(loader, master_of(hydra, arguments), arguments)  # pyright: ignore[reportArgumentType]
    finally:
        GlobalHydra.instance().clear()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What Hydra is asked to compose."""
    asked: list[list[str]] = []
    load = Composer._load

    def counted(composer: Composer, overrides: list[str]) -> Any:
        asked.append(overrides)
        return load(composer, overrides)

    monkeypatch.setattr(Composer, "_load", counted)
    return asked


def nodes(node: Any, path: str = "") -> Iterator[tuple[object, ...]]:
    """All that OmegaConf knows of a config."""
    known = vars(node._metadata) | {"flags": node._metadata.flags or {}, "resolver_cache": None}
    yield path, type(node), repr(known), None if isinstance(node, Container) else node._value()
    if isinstance(node, Container) and isinstance(node._value(), dict | list):
        for key in node.keys() if OmegaConf.is_dict(node) else range(len(node)):  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
            yield from nodes(node._get_node(key), f"{path}.{key}")  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "n_by_hydra"),
    [
        (["model=m1,m2,mlp"], 1),
        (["model=m1,elsewhere,m2,elsewhere2"], 2),  # two packages
        (["model=m1,child,before,m2"], 3),  # that build upon others
        (["model=m1,of_hydra,sub/deep,empty,m2"], 3),
        (["model=m1,m2", "experiment=follows"], 2),  # a file that is named after the option
        (["model=m1,m2", "experiment=sets,debug"], 2),
        (["model=m1,m2", "optimizer=adam,sgd", "scheduler=cosine", "tracking=off", "model.dropout=0.1"], 1),
        (["model=m1,m2", "+model.bias=false", "~model.activation", "seed=5", "hydra.job.chdir=false"], 1),
    ],
)
def test_options_are_composed_as_hydra_composes_them(folder: Path, asked: list, arguments: list[str], n_by_hydra: int):
    space = space_with(folder, *arguments)
    fast = space.composer
    bases = [(groups, fast.base(groups)) for groups in space.every_choice()]
    assert len(asked) == n_by_hydra
    for groups, base in bases:
        slow = Composer(fast.loader, fast.master, fast.fixed, fast.prefixes, fast.starts, fast.monitor).base(groups)
        assert list(nodes(base.config)) == list(nodes(slow.config))
        assert (base.choices, base.overrides) == (slow.choices, slow.overrides)


def test_an_option_that_cannot_be_composed_is_refused_in_hydras_words(folder: Path):
    (folder / "model/wrong.yaml").write_text("# @package _global_\nepochs: 3\n")
    (folder / "model/right.yaml").write_text("# @package _global_\nseed: 3\n")
    (folder / "model/torn.yaml").write_text("widths: [1\n")
    for option, message in (("wrong", "Key 'epochs' not in 'Config'|is not? (a )?key"), ("torn", "torn.yaml")):
        space = space_with(folder, f"model=right,{option}")
        space.composer.base({"model": "right"})
        with pytest.raises(ConfigError, match=message):
            space.composer.base({"model": option})


def test_many_options_are_looked_at_with_one_composition(folder: Path, asked: list):
    space = space_with(folder, f"model={','.join(f'm{n}' for n in range(8))}")
    for groups in space.combinations():
        space.defaults(groups)
    assert len(asked) == 1


def test_composing_many_options_shows_how_far_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.search.composer._MANY", 3)
    monkeypatch.setattr("sweep.search.composer._LONG_S", -1.0)
    space = space_with(folder, f"model={','.join(f'm{n}' for n in range(8))}")
    for n in range(8):
        space.composer.base({"model": f"m{n}"})
    shown = capsys.readouterr().err.splitlines()
    assert [line.partition(" in ")[0] for line in shown] == [
        "composing the options: 3 done",
        "composing the options: 6 done",
    ]
