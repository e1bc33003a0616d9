"""sweep/config/hydra_texts.py: the errors of the installed Hydra and OmegaConf are worded as sweep reads them."""

from collections.abc import Callable

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf
from spaces import hydra_of_its_own

from sweep.config import hydra_texts

COMPOSED = {  # by pattern: overrides that Hydra refuses, and what the pattern finds
    "TWO_OPTIONS": (["+optimizer=sgd"], ("optimizer", "sgd", "command line")),
    "NO_NAME": (["optimizer=null"], ()),
    "AMBIGUOUS": (["trainer.epochs=1,2"], ()),
    "FORCED_GROUP": (["++optimizer=sgd"], ()),
    "UNAVAILABLE": (["hydra.searchpath=[file:///nowhere]"], ()),
    "NO_DELETION": (["~trainer.epochs"], ()),
    "SYNTAX": (["a=b=[}"], ("'='",)),
    "EVALUATION": (["optimizer.lr=interval(a,b)"], None),
    "NO_VALUE": (["optimizer"], ()),
    "LEXER": (["optimizer.lr='"], ()),
}
RESOLVED: dict[str, tuple[str, tuple[str, ...]]] = {  # by pattern: a value, and what the pattern finds
    "NO_VARIABLE": ("${oc.env:SWEEP_NO_SUCH_VARIABLE}", ("SWEEP_NO_SUCH_VARIABLE",)),
    "NO_KEY": ("${nothing}", ("nothing",)),
    "NO_RESOLVER": ("${none:1}", ("none",)),
    "RESOLVING": ("${oc.env:SWEEP_NO_SUCH_VARIABLE}", ()),
}


def message_of(provoke: Callable[[], object]) -> str:
    """Return all texts of the error that `provoke` raises, a line each."""
    with pytest.raises(Exception) as raised:  # noqa: PT011
        provoke()
    error: BaseException | None = raised.value
    texts = []
    while error is not None:
        _, _, reason = str(error).partition("\n") if "Error when parsing index" in str(error) else ("", "", str(error))
        texts += [hydra_texts.plain_line(error), *reason.splitlines()]
        error = error.__cause__
    return "\n".join(texts)


def check(name: str, message: str, wanted: tuple[str, ...] | None) -> None:
    pattern = getattr(hydra_texts, name)
    found = next(filter(None, map(pattern.search, message.splitlines())), None)
    assert found is not None, f"Hydra's text changed: hydra_texts.{name} ({pattern.pattern}) is not in:\n{message}"
    if wanted is not None:
        assert found.groups() == wanted, f"Hydra's text changed: hydra_texts.{name} finds {found.groups()}"


@pytest.mark.parametrize("name", COMPOSED)
@pytest.mark.filterwarnings("error:provider=hydra.searchpath")
def test_an_override_that_hydra_refuses_is_worded_as_it_was(name: str) -> None:
    overrides, wanted = COMPOSED[name]
    with hydra_of_its_own() as hydra:
        message = message_of(lambda: hydra.config_loader.load_configuration("config", overrides, RunMode.RUN))
    check(name, message, wanted)


def test_a_primary_config_that_is_missing_is_worded_as_it_was() -> None:
    with hydra_of_its_own() as hydra:
        message = message_of(lambda: hydra.config_loader.load_configuration("nothing", [], RunMode.RUN))
    check("NO_PRIMARY", message, ())


@pytest.mark.parametrize("name", RESOLVED)
def test_an_interpolation_that_cannot_be_resolved_is_worded_as_it_was(name: str) -> None:
    value, wanted = RESOLVED[name]
    config = OmegaConf.create({"a": value})
    check(name, message_of(lambda: config.a), wanted)
    if name != "RESOLVING":
        assert hydra_texts.key_in(message_of(lambda: config.a)) == "a", "OmegaConf no longer appends the full key"
