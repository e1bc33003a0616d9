"""The documentation's pictures of pages, taken anew: `python tests/screenshots.py OUTPUT_DIR STUDY`.

The study must have been run and reported; those in docs/images come from
`python -m sweep.run -m optimizer=sgd,adam hydra.sweeper.n_jobs=2 hydra.sweeper.seeds=3 hydra.sweeper.n_trials=64
hydra.sweeper.study_name=sgd-or-adam`.
"""

import sys
from pathlib import Path
from typing import Any

from browser import PHONE, ROOT, Tab, chromium, compare, draw_metrics, expand, make_ui, open_experiment, run_names
from PIL import Image
from playwright.sync_api import Browser

from sweep.tracking.folders import StudyFolder

IMAGES = ROOT / "docs" / "images"
WINDOW = (1400, 640)


def take_report(browser: Browser, page: Path, name: str, size: tuple[int, int], scheme: Any, parts: slice) -> None:
    """parts: the sections to be seen; the heading goes with the first."""
    tab = Tab(browser, size, scheme)
    shown = tab.open_report(page)
    boxes = [section.bounding_box() for section in shown.locator("section").all()[parts]]
    ends = [(box["y"], box["y"] + box["height"]) for box in boxes if box is not None]
    top = 0 if parts.start is None else ends[0][0] + 15
    clip = {"x": 0, "y": top, "width": size[0], "height": ends[-1][1] - top + 15}
    shown.screenshot(path=IMAGES / name, full_page=True, clip=clip)  # type: ignore[arg-type]
    tab.close()


def take_mlflow(browser: Browser, address: str, study: str) -> None:
    tab = Tab(browser, WINDOW)
    page = tab.page
    open_experiment(page, address, "sweep")
    expand(page, study)
    page.get_by_role("link", name="s0").first.wait_for(state="attached")
    page.screenshot(path=IMAGES / "mlflow-study.png")
    page.set_viewport_size({"width": WINDOW[0], "height": 5000})  # so that the table has all of its rows
    page.get_by_role("link", name="t0-").first.wait_for()
    pair = [name for number in (0, 22) for name in run_names(page, 1) if name.startswith(f"t{number}-")]
    compare(page, [name for name in pair if name.endswith("-s0")])
    draw_metrics(page, "val/loss", "train/loss", "lr")
    page.get_by_role("switch").last.click()  # the axis logarithmic
    page.set_viewport_size({"width": WINDOW[0], "height": 520})
    page.get_by_text("Completed Runs").scroll_into_view_if_needed()
    page.wait_for_timeout(1000)  # for the drawing to come to rest
    page.screenshot(path=IMAGES / "mlflow-compare.png")
    tab.close()


def main() -> None:
    outputs, study = Path(sys.argv[1]), sys.argv[2]
    report = StudyFolder(outputs / "studies" / study).report
    with chromium() as browser:
        take_report(browser, report, "report.png", (1100, 760), "light", slice(None, 2))
        take_report(browser, report, "report-figures.png", (1100, 760), "light", slice(2, 5))
        take_report(browser, report, "report-phone.png", PHONE, "dark", slice(None, 2))
        with make_ui(outputs) as address:
            take_mlflow(browser, address, study)
    for plot in [*IMAGES.glob("report*.png"), IMAGES / "mlflow-study.png", IMAGES / "mlflow-compare.png"]:
        Image.open(plot).convert("RGB").quantize(128).save(plot, optimize=True)


if __name__ == "__main__":
    main()
