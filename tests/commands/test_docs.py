"""The documentation: every relative link leads somewhere, and docs/structure.md names every module."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    lost = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert lost == []


def test_the_structure_names_every_module() -> None:
    """But for the tasks: a kind has a file each, which the page says."""
    page = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    modules = {
        path for path in (ROOT / "sweep").rglob("*.py") if path.stem != "__init__" and path.parent.name != "tasks"
    }
    assert sorted(path.name for path in modules if not re.search(rf"(?m)^[^|]*\b{path.name}", page)) == []
