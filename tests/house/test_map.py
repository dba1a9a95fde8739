"""The maps for people are those of the code, and every link of the docs leads somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), *sorted(DOCS.parent.glob("*.md"))]


@pytest.fixture(scope="module")
def maps() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_map", DOCS / "make_map.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_they_are_up_to_date(maps: ModuleType) -> None:
    for place, text in maps.pages().items():
        assert place.read_text(encoding="utf-8") == text, f"{place.name}: run `make reference`"


def test_every_module_says_what_it_holds(maps: ModuleType) -> None:
    for path in maps.FILES:
        said = maps.first_line(path)
        assert 10 < len(said) < 260 and said[-1] in ".:`)", f"{path}: {said}"


def prose(page: Path) -> str:
    """A page without its code, where a comment is no heading and an index no link."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The headings of a page as links call them."""
    heads = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda it: it.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = page.parent / path if path else page
        assert place.exists(), f"{page.name}: {target}"
        assert not anchor or place.suffix != ".md" or anchor in anchors(place), f"{page.name}: {target}"
