"""Studies that an earlier version began are the same studies still: their names, what they rest on, their command.

tests/reference/studies.json has what the commit before StudySpec made of some command lines.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.callbacks import Callbacks
from hydra.types import HydraContext

from sweep.comparison import studies
from sweep.config.composition import load_multirun, own_hydra
from sweep.config.output_folders import register
from sweep.study.identity import differences, identity
from sweep.study.prepared import PreparedStudy
from sweep.study.spec import HydraRoot, make_root, make_spec

pytestmark = pytest.mark.slow  # MLflow, or many compositions

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "studies.json").read_text())


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def context() -> Iterator[HydraContext]:
    register()
    with own_hydra() as loader:
        yield HydraContext(loader, Callbacks())


def root_of(context: HydraContext, name: str, stored: dict[str, Any]) -> HydraRoot:
    return make_root(context, load_multirun(context.config_loader, name, [*stored["own"], *stored["arguments"]]))


def assert_same(found: dict[str, Any], stored: dict[str, Any]) -> None:
    """The keys that are newer than the record have their defaults. The words of a command may have any order."""
    assert found["name"] == stored["name"]
    assert sorted(found["command"]) == sorted(stored["command"])
    assert differences(stored["identity"], found["identity"]) == []
    assert stored["identity"].keys() <= found["identity"].keys()


def facts(study: PreparedStudy) -> dict[str, Any]:
    """As they are stored: through JSON."""
    spec = study.spec
    found = {"name": study.name, "identity": identity(spec.settings, spec.space), "command": spec.command}
    return json.loads(json.dumps(found))


@pytest.mark.parametrize("stored", REFERENCE["studies"], ids=lambda stored: stored["name"])
def test_a_study_is_the_one_that_it_was(stored: dict[str, Any], context: HydraContext) -> None:
    study = PreparedStudy(make_spec(root_of(context, "config", stored), stored["arguments"]))
    assert_same(facts(study), stored)


@pytest.mark.parametrize("stored", REFERENCE["comparisons"], ids=lambda stored: stored["name"])
def test_the_studies_of_a_comparison_are_those_that_they_were(stored: dict[str, Any], context: HydraContext) -> None:
    """Its tunings, what was chosen on fresh seeds, and the defaults."""
    plan = studies.make_plan(root_of(context, "compare", stored), stored["arguments"])
    assert (plan.name, plan.command) == (stored["name"], stored["command"])
    found = []
    for task in plan.field.tasks:
        for contender in plan.field.contenders:
            tuning = studies.tuning(plan, contender, task)
            chosen = [*enumerate(stored["chosen"], 1000)]
            found.append(facts(tuning))
            found.append(facts(studies.fresh(plan, contender, task, chosen, tuning.space)))
            found.append(facts(studies.untuned(plan, contender, task, tuning)))
    for mine, theirs in zip(found, stored["studies"], strict=True):
        assert_same(mine, theirs)


@pytest.mark.parametrize(
    ("arguments", "new"),
    [
        ([], {}),
        (["split=random", "split.seed=3"], {}),
        (["split=ordered"], {"split.kind": "ordered"}),
        (["split=ordered,random"], {"split.kind": "ordered"}),
        (["split=random,ordered"], {"split.kind (split=ordered)": "ordered"}),
        (["hydra.sweeper.folds=4"], {"hydra.sweeper.folds": 4}),
        (["data=table", "data.path=p.csv", "data.target=y"], {}),
        (["data=table", "data.path=p.csv", "data.target=y", "data.missing=median"], {"data.missing": "median"}),
    ],
)
def test_a_study_of_an_earlier_version_that_lacked_a_key_stands_for_what_it_did(
    arguments: list[str], new: dict[str, Any], context: HydraContext
) -> None:
    Path("p.csv").write_text("a,y\n" + "".join(f"{i % 7},{i * i}\n" for i in range(40)))
    own = [argument for argument in arguments if argument.startswith("hydra.")]
    arguments = [argument for argument in arguments if argument not in own]
    root = make_root(context, load_multirun(context.config_loader, "config", [*own, *arguments]))
    spec = make_spec(root, arguments)
    found = identity(spec.settings, spec.space)
    later = ("task", "trainer.monitor", "split.kind", "split.by", "split.column", "split.fold", "hydra.sweeper.folds")
    later += ("data.drop", "data.categorical", "data.max_one_hot", "data.missing", "data.dates", "data.weight")
    earlier = {key: fact for key, fact in found.items() if not key.startswith(later)}
    assert earlier.keys() < found.keys()
    texts = [f"{key} = unset, now {json.dumps(value)}" for key, value in new.items()]
    assert differences(earlier, found) == texts
    assert differences(found, earlier) == [text.replace("unset, now ", "") + ", now unset" for text in texts]
