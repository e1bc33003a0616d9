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
from sweep.study.progress import Output
from sweep.study.runner import StudyRunner
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


def root_of(context: HydraContext, name: str, told: dict[str, Any]) -> HydraRoot:
    return make_root(context, load_multirun(context.config_loader, name, [*told["own"], *told["arguments"]]))


def assert_same(found: dict[str, Any], told: dict[str, Any]) -> None:
    """The keys that are newer than the record have their defaults. The words of a command may have any order."""
    assert found["name"] == told["name"]
    assert sorted(found["command"]) == sorted(told["command"])
    assert differences(told["identity"], found["identity"]) == []
    assert told["identity"].keys() <= found["identity"].keys()


def facts(study: StudyRunner) -> dict[str, Any]:
    """As they are stored: through JSON."""
    spec = study.spec
    found = {"name": study.name, "identity": identity(spec.settings, spec.space), "command": spec.command}
    return json.loads(json.dumps(found))


@pytest.mark.parametrize("told", REFERENCE["studies"], ids=lambda told: told["name"])
def test_a_study_is_the_one_that_it_was(told: dict[str, Any], context: HydraContext) -> None:
    study = StudyRunner(make_spec(root_of(context, "config", told), told["arguments"]))
    assert_same(facts(study), told)


@pytest.mark.parametrize("told", REFERENCE["comparisons"], ids=lambda told: told["name"])
def test_the_studies_of_a_comparison_are_those_that_they_were(told: dict[str, Any], context: HydraContext) -> None:
    """Its tunings, what was chosen on fresh seeds, and the defaults."""
    plan = studies.make_plan(
        root_of(context, "compare", told), told["arguments"], Output.NOTHING, lambda folder: pytest.fail("it began")
    )
    assert (plan.name, plan.command) == (told["name"], told["command"])
    found = []
    for task in plan.field.tasks:
        for contender in plan.field.contenders:
            tuning = studies.tuning(plan, contender, task)
            chosen = [*enumerate(told["chosen"], 1000)]
            found.append(facts(tuning))
            found.append(facts(studies.fresh(plan, contender, task, chosen, tuning.space)))
            found.append(facts(studies.untuned(plan, contender, task, tuning)))
    for mine, theirs in zip(found, told["studies"], strict=True):
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
    told = [f"{key} = unset, now {json.dumps(value)}" for key, value in new.items()]
    assert differences(earlier, found) == told
    assert differences(found, earlier) == [text.replace("unset, now ", "") + ", now unset" for text in told]
