"""The page for everyone: axe-core finds no fault, the keyboard reaches what scrolls, paper has no buttons."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import CHROMIUM, DESKTOP, Tab
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

from sweep.figures.curves import Band, curves_figure
from sweep.figures.history import history_figure
from sweep.figures.importances import importances_figure
from sweep.figures.page import Document, Section, Table, to_html
from sweep.figures.parallel import parallel_figure
from sweep.figures.slices import slice_figures
from sweep.figures.trials import Trials
from sweep.study.shown import shown_trials

if TYPE_CHECKING:
    from playwright.sync_api import Browser


pytestmark = [
    pytest.mark.process,  # a browser
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; apt-get install chromium"),
]

NARROW = (375, 812)
LONG = "model.encoder." + "very_long_name_of_a_part." * 8 + "dropout"


def study() -> Trials:
    study = optuna.create_study()
    choices = CategoricalDistribution([LONG, "plain"])
    ranges = {LONG: FloatDistribution(0, 1), "lr": FloatDistribution(1e-4, 1, log=True), "kind": choices}
    for n in range(12):
        params = {LONG: n / 12, "lr": 10 ** (-n / 4), "kind": (LONG, "plain")[n % 2]}
        study.add_trial(create_trial(value=1.0 + n, params=params, distributions=ranges))
    return shown_trials(study)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One page with everything that a page may have: 60 parameters, long names, every kind of figure."""
    shown, name = study(), "val/loss"
    mean = np.linspace(2, 1, 8)
    band = Band(np.arange(1, 9), mean, mean, mean, 1)
    parallel = parallel_figure(shown, 0)
    assert parallel is not None
    pairs = [(f"model.layers.{i}.attention.projection.initial_scale_of_weights", f"{i / 7:.4g}") for i in range(60)]
    keys = [f"model.layers.{i}.scale" for i in range(60)]
    sections = [
        Section("Best", "A note.", commands=[("python -m sweep.run " + "a=1 " * 60, "Again:")], tables=[Table(pairs)]),
        Section("History", figures=[history_figure(shown, 0)]),
        Section("Curves", figures=[curves_figure({name: {"trial 1": band}})]),
        Section("Importances", figures=[importances_figure({LONG: 0.7, "lr": 0.3}, 0, name)]),
        Section("Parallel coordinates", figures=[parallel]),
        Section("Slices", figures=slice_figures(shown, 0), grid=True),
        Section("Trials", tables=[Table([["0.123"] * 60] * 3, keys)]),
        Section("Ends", texts=[("Trial 2 failed", "a line of a traceback " * 40)]),
    ]
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(to_html(Document("A study", "of today", [("12", "trials")], sections, "Made by sweep.")))
    return file


@pytest.fixture(scope="module")
def desktop(page: Path, browser: "Browser") -> Tab:
    return opened(Tab(browser, DESKTOP), page)


@pytest.fixture(scope="module")
def phone(page: Path, browser: "Browser") -> Tab:
    return opened(Tab(browser, NARROW), page)


def opened(tab: Tab, page: Path) -> Tab:
    """With the folded texts unfolded."""
    tab.open_report(page).evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    return tab


@pytest.fixture(params=["desktop", "phone"])
def tab(request: pytest.FixtureRequest) -> Tab:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(tab: Tab, scheme: Any):
    tab.page.emulate_media(color_scheme=scheme)
    tab.page.locator(f"[id^=slice-0-2][data-drawn={scheme}]").wait_for()  # the last one to be drawn
    found: Any = Axe().run(tab.page).response
    assert [(one["id"], [node["html"][:160] for node in one["nodes"]][:3]) for one in found["violations"]] == []


def test_the_page_is_as_wide_as_a_phone_and_the_keyboard_reaches_what_scrolls(phone: Tab):
    assert phone.page.evaluate("document.documentElement.scrollWidth") == NARROW[0]
    scrolling = phone.page.evaluate(
        """[...document.querySelectorAll("main *")].filter((e) => e.scrollWidth > e.clientWidth + 1
            && ["auto", "scroll"].includes(getComputedStyle(e).overflowX)).map((e) => [e.tabIndex, e.ariaLabel])"""
    )
    assert scrolling == [[0, "Parallel coordinates: figure"], [0, "Trials: table"], [0, "Trial 2 failed"]]


def test_names_and_values_are_readable_on_a_phone(phone: Tab):
    script = "[...document.querySelectorAll('table.pairs th, table.pairs td')].map((cell) => cell.clientWidth)"
    widths = phone.page.evaluate(script)
    assert len(widths) == 120
    assert min(widths) > 100


def test_a_long_name_leaves_room_for_what_it_names(phone: Tab):
    script = "[...document.querySelectorAll('.nsewdrag')].map((plot) => [plot.getBBox().width, plot.getBBox().height])"
    sizes = phone.page.evaluate(script)
    assert len(sizes) == 6
    assert min(width for width, _ in sizes) > 80
    assert min(height for _, height in sizes) > 80


def test_buttons_are_not_printed_and_paper_is_light(desktop: Tab):
    desktop.page.emulate_media(color_scheme="dark")
    script = "[...document.querySelectorAll('.command button, .modebar-container')].map((b) => b.offsetHeight > 0)"
    assert any(desktop.page.evaluate(script))
    desktop.page.emulate_media(media="print")
    assert not any(desktop.page.evaluate(script))
    assert desktop.page.evaluate("document.documentElement.scrollWidth") == DESKTOP[0], "no table shrinks the page"
    assert desktop.page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 38, 48)"
    desktop.page.locator("#history-0[data-drawn=light]").wait_for()
