"""A job's config and Hydra's own: each node, its types and flags, as Hydra composes it and as it is copied."""

import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core import utils as hydra_utils
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import run_job
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from sweep.trial.job_config import JobConfigs, JobOverrides


class Kind(Enum):
    SMALL = 1
    LARGE = 2


@dataclass
class Typed:
    n: int = 1
    kind: Kind = Kind.SMALL
    rate: float = 0.1
    maybe: int | None = None
    sizes: list[int] = field(default_factory=lambda: [1])
    by_name: dict[str, int] = field(default_factory=dict)


@dataclass
class Shape:
    """An application: its files, the overrides of its command line, and those of its trials."""

    files: Mapping[str, str]
    own: Sequence[str]
    shared: Sequence[str] = ()
    command: Sequence[str] = ()
    version_base: str | None = None
    is_copied: bool = True


GROUPS = {
    "main.yaml": "defaults: [model: small, data: a, _self_]\nlr: 0.1\n",
    "model/small.yaml": "width: 8\ndepth: ${.width}\n",
    "model/large.yaml": "defaults: [/data@inner: a]\nwidth: 64\n",
    "data/a.yaml": "name: a\nfolder: /a/${lr}\n",
    "data/b.yaml": "# @package _global_\ndata: {name: b}\nlr: 0.5\nhydra: {job: {env_set: {OF_B: '1'}}}\n",
}
SHAPES = {
    "values": Shape(
        {"main.yaml": "lr: 0.1\nn: 1\nname: x\nflag: false\n"}, ["lr=1e-05", "n=7", "name=a b", "flag=true"]
    ),
    "no config": Shape({}, ["+x=1", "+y.z=[1,2]"]),
    "groups": Shape(GROUPS, ["lr=2", "model.width=3"], shared=["model=large", "data=a"]),
    "an option of the whole config": Shape(GROUPS, ["lr=2"], shared=["data=b"]),
    "a group at another place": Shape(GROUPS, ["other.width=3"], shared=["+model@other=large"]),
    "defaults that name another group": Shape(
        {
            "main.yaml": "defaults: [data: a, {model: '${data}_net'}, _self_]\nlr: 1\n",
            **{f"data/{name}.yaml": f"name: {name}\n" for name in "ab"},
            **{f"model/{name}_net.yaml": f"of: {name}\nwidth: 1\n" for name in "ab"},
        },
        ["model.width=2", "data.name=c"],
        shared=["data=b"],
    ),
    "a schema": Shape(
        {"main.yaml": "defaults: [base_typed, _self_]\n"},
        ["n=5", "kind=LARGE", "rate=1", "maybe=3", "sizes=[3,4]", "+by_name.a=1", "++by_name.b=2"],
    ),
    "lists, dicts and texts": Shape(
        {"main.yaml": "parts: [1, 2]\nnode: {a: 1}\ntext: ''\nmissing: ???\nnothing: null\n"},
        ["parts=[3]", "node={a:2}", "text='a,b=c ${parts}'", "missing=1", "nothing=inf", "+parts=[4]"],
    ),
    "references": Shape(
        {"main.yaml": "a: {x: 1}\nb: ${a}\nc: ${b.x}\nnow: '${now:%f}'\nenv: ${oc.env:HOME}\n"},
        ["b.x=3", "+d=${a.x}", "+e=${now:%f}"],
    ),
    "hydra's keys that read others": Shape(
        {
            "main.yaml": "lr: 0.1\nseed: 0\nnames: [HOME]\nhydra:\n"
            "  job: {name: run, chdir: true, env_copy: '${names}', env_set: {LR: '${lr}'}}\n"
            "  sweep: {dir: 'sweeps/${now:%f}', subdir: '${hydra.job.num}_${hydra_override_dirname:}'}\n"
            "  output_subdir: of_${seed}\n"
        },
        ["lr=0.2", "seed=3"],
        command=["+fixed=1", "hydra.verbose=[a]"],
    ),
    "the old name of a folder": Shape(
        {
            "main.yaml": "lr: 0.1\nseed: 0\nhydra:\n"
            "  job: {config: {override_dirname: {exclude_keys: [seed], kv_sep: ':'}}}\n"
            "  sweep: {subdir: '${hydra.job.override_dirname}'}\n"
        },
        ["lr=0.2", "seed=3"],
    ),
    "another folder of options": Shape(
        {
            "main.yaml": "defaults: [model: of_theirs]\nlr: 1\nhydra: {searchpath: ['file://${oc.env:THEIRS}']}\n",
            "theirs/model/of_theirs.yaml": "width: 1\n",
        },
        ["lr=2", "model.width=3"],
    ),
    "options of hydra's": Shape(
        {"main.yaml": "defaults: [override hydra/job_logging: stdout]\nlr: 1\nhydra: {aliases: {rate: lr}}\n"},
        ["lr=2"],
        command=["hydra.job.chdir=true", "+hydra.job.env_set.A=1"],
        version_base="1.3",
    ),
    "a value that is a group's": Shape(GROUPS, ["lr=2", "model=large"], is_copied=False),
    "a value of a group": Shape(GROUPS, ["model={width:2}"], is_copied=False),
    "a key that is removed": Shape(GROUPS, ["~data.name"], is_copied=False),
    "a key of hydra's": Shape(GROUPS, ["hydra.job.chdir=true"], is_copied=False),
}


@pytest.fixture(autouse=True)
def _hydra_without_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an application's process: another test may have imported `sweep.run`, whose guard refuses more."""
    for owner, name in ((ConfigLoaderImpl, "_load_configuration"), (hydra_utils, "configure_log")):
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, getattr(function, "__wrapped__", function))


@contextmanager
def sweeping(shape: Shape, folder: Path) -> Iterator[tuple[ConfigLoaderImpl, DictConfig]]:
    for name, text in shape.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    ConfigStore.instance().store("base_typed", Typed, replace=True)
    version = {} if shape.version_base is None else {"version_base": shape.version_base}
    with initialize_config_dir(str(folder), job_name="app", **version):
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        name = "main" if "main.yaml" in shape.files else None
        yield loader, loader.load_configuration(name, [*shape.command], RunMode.MULTIRUN)


def described(node: Any) -> Any:
    """All that a node is: its value as it is written, its type and its flags."""
    if node._is_interpolation() or node._is_missing() or node._is_none():
        content = node._value()
    elif isinstance(node, DictConfig):
        content = [(key, described(node._get_node(key))) for key in node]
    elif isinstance(node, ListConfig):
        content = [described(node._get_node(place)) for place in range(len(node))]
    else:
        content = repr(node._value())
    kinds = (type(node), node._metadata.ref_type, node._metadata.object_type, node._metadata.optional)
    return kinds, node._metadata.flags, node._metadata.key, content


def job(config: DictConfig, loader: ConfigLoaderImpl, folder: Path) -> list[Any]:
    """Runs a job of that config; returns what it sees."""
    seen = []

    def task(cfg: DictConfig) -> None:
        hydra_config: Any = HydraConfig.get()
        seen.extend([described(cfg), OmegaConf.to_container(cfg, resolve=not OmegaConf.missing_keys(cfg))])
        seen.extend([described(hydra_config), hydra_config.runtime.output_dir, hydra_config.job.env_set])
        seen.append(sorted({**os.environ}.items()))

    with open_dict(config):
        config.hydra.job.id, config.hydra.job.num = "app-3", 3
        config.hydra.sweep.dir = str(folder / str(config.hydra.sweep.dir))
    done = run_job(task, config, "hydra.sweep.dir", "hydra.sweep.subdir", HydraContext(loader, Callbacks()))
    assert done.return_value is None
    return [*seen, [(file.name, file.read_text()) for file in sorted(Path(seen[3]).rglob("*.yaml"))]]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Hydra's, of old names
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_job_is_hydras_own(shape: Shape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEIRS", str(tmp_path / "theirs"))
    monkeypatch.chdir(tmp_path)
    with sweeping(shape, tmp_path) as (loader, master):
        jobs = JobConfigs(loader, master)
        jobs.compose(JobOverrides(shape.shared, []))  # of an earlier trial
        assert [OmegaConf.select(master, key) for key in ("now", "hydra.sweep.dir")]  # the time is the sweep's
        monkeypatch.setenv("HOME", "/of/this/trial")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        overrides = JobOverrides(shape.shared, shape.own)
        assert (jobs._copied(*overrides) is not None) == shape.is_copied
        for _ in range(2):  # a copy is not changed by the job before
            by_hydra = loader.load_sweep_config(master, [*shape.shared, *shape.own])
            ours = jobs.compose(overrides)
            assert described(ours) == described(by_hydra)
            assert job(ours, loader, tmp_path) == job(by_hydra, loader, tmp_path)


def test_an_error_is_hydras_own(tmp_path: Path) -> None:
    with sweeping(SHAPES["a schema"], tmp_path) as (loader, master):
        jobs = JobConfigs(loader, master)
        for own in (["n=text"], ["m=1"], ["+n=2"], ["kind=HUGE"]):
            with pytest.raises(HydraException) as hydras:
                loader.load_sweep_config(master, own)
            with pytest.raises(HydraException) as ours:
                jobs.compose(JobOverrides([], own))
            assert str(ours.value) == str(hydras.value)


def test_a_config_that_cannot_be_copied_is_composed_by_hydra(tmp_path: Path) -> None:
    @dataclass
    class Local:
        lr: float = 0.1

    with pytest.raises(AttributeError):
        pickle.dumps(Local)
    ConfigStore.instance().store("local", Local, replace=True)
    shape = Shape({"main.yaml": "defaults: [local, _self_]\n"}, ["lr=2"])
    with sweeping(shape, tmp_path) as (loader, master):
        config = JobConfigs(loader, master).compose(JobOverrides([], shape.own))
        assert described(config) == described(loader.load_sweep_config(master, [*shape.own]))
        assert OmegaConf.get_type(config) is Local
