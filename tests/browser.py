"""A headless Chromium that reaches nothing beyond this machine, and a person's ways through pages."""

import json
import os
import re
import shutil
import socket
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from guarded import Guarded
from playwright.sync_api import Browser, Page, TimeoutError, sync_playwright
from processes import environment
from waiting import wait_until

ROOT = Path(__file__).parent.parent

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DESKTOP, PHONE = (1200, 900), (390, 844)
_OPTIONS = (
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--enable-unsafe-swiftshader",  # WebGL without a graphics card
    *(["--no-sandbox"] if os.getuid() == 0 else []),
)
_PATIENCE_MS = 60_000


@contextmanager
def chromium() -> Iterator[Browser]:
    assert CHROMIUM is not None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """A page that is watched: requests are addresses without `data:` and `blob:`, complaints what the console has."""

    def __init__(self, browser: Browser, size: tuple[int, int] = DESKTOP, scheme: Any = "light") -> None:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        context.set_default_timeout(_PATIENCE_MS)
        self.page: Page = context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self._note(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console", lambda message: self.complaints.append(message.text) if message.type == "error" else None
        )
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))

    def open_report(self, page: Path) -> Page:
        """Until every figure is drawn."""
        self.page.goto(page.as_uri())
        self.page.locator("html[data-drawn=all]").wait_for(state="attached")
        return self.page

    def hosts(self) -> set[str]:
        return {urlsplit(address).netloc for address in self.requests}

    def close(self) -> None:
        self.page.context.close()

    def _note(self, address: str) -> None:
        if not address.startswith(("data:", "blob:")):
            self.requests.append(address)


@contextmanager
def make_ui(outputs: Path) -> Iterator[str]:
    """`make ui` on the store in that folder; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    variables = [f"OUTPUTS={outputs.absolute()}", f"PORT={port}", f"BIN={Path(sys.executable).parent}"]
    process = Guarded(["make", "ui", *variables], outputs / "ui.log", cwd=ROOT, env=environment())

    def answers() -> bool:
        assert process.poll() is None, (outputs / "ui.log").read_text()
        try:
            with urllib.request.urlopen(f"{address}health", timeout=10):
                return True
        except OSError:
            return False

    try:
        wait_until(answers)
        yield address
    finally:
        process.end()


def open_experiment(page: Page, address: str, experiment: str) -> None:
    """From MLflow's first page."""
    page.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
    page.goto(address)
    page.get_by_text("Model training", exact=True).first.click()
    page.get_by_role("link", name=experiment, exact=True).first.click()


def run_names(page: Page, level: int) -> list[str]:
    """Those listed in the table of runs: 0 the outer, 1 those below them. Long names are cut by the style only."""
    rows = page.locator(".ag-row [col-id='attributes.`Run Name`']")
    indents = [row.locator("a").bounding_box() for row in rows.all()]
    places = [0.0 if box is None else box["x"] for box in indents]
    outer = min(places, default=0.0)
    texts = rows.locator("a").all_inner_texts()
    return [text for text, place in zip(texts, places, strict=True) if (place > outer + 5) == bool(level)]


def expand(page: Page, run: str) -> None:
    """Shows the runs below it."""
    row = page.locator(".ag-row").filter(has=page.get_by_role("link", name=run, exact=True))
    row.get_by_role("button").first.click()


def compare(page: Page, runs: Sequence[str]) -> None:
    """Ticks the runs and presses Compare."""
    for run in runs:
        row = page.locator(".ag-row").filter(has=page.get_by_role("link", name=run, exact=True))
        row.locator(".ag-selection-checkbox input").first.check(force=True)
    page.get_by_role("button", name="Compare").click()


def draw_metrics(page: Page, first: str, *others: str) -> None:
    """On the page that compares runs: a click on the first; the others by the page's address, which names them.

    While the page is being built anew, clicks are lost now and then. The page before has plots, too, so the address
    tells which page this is.
    """
    while "#/metric?" not in page.url:
        page.get_by_role("link", name=first, exact=True).click()
        with suppress(TimeoutError):
            page.wait_for_url("**#/metric?*", timeout=_PATIENCE_MS // 4)
    page.locator(".js-plotly-plot").first.wait_for()
    chosen = f"plot_metric_keys={quote(json.dumps([first, *others]))}"
    address = re.sub(r"plot_metric_keys=[^&]*", lambda _: chosen, page.url)
    page.goto(address)
    page.reload()
    for metric in (first, *others) if others else ():
        page.get_by_text(f"({metric})").first.wait_for()


def drawn_curves(page: Page) -> list[tuple[str, list[float], list[float]]]:
    """Name, x and y of every line that plotly.js shows on the page now."""
    script = """() => [...document.querySelectorAll(".js-plotly-plot")].flatMap((plot) =>
        plot.data.filter((t) => t.visible !== false).map((t) => [t.name ?? "", [...(t.x ?? [])], [...(t.y ?? [])]]))"""
    return [(name, x, y) for name, x, y in page.evaluate(script)]
