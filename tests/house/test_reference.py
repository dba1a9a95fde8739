"""The reference pages are those of the docstrings, and every docstring has what a page needs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from limbeck.losses import LOSSES
from limbeck.recipe.settings import TermKeys

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_up_to_date(reference: ModuleType) -> None:
    found = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "reference" / "losses").glob("*.md")}
    assert found == reference.pages(), "run `make reference`"


@pytest.mark.parametrize("name", LOSSES)
def test_a_docstring_says_what_a_user_asks(reference: ModuleType, name: str) -> None:
    said = reference.parsed(name)
    assert said["body"] and said["when"] and ">>>" in said["Example"]
    assert "arXiv" in said["source"] or "doi" in said["source"]
    term = TermKeys(**yaml.safe_load(said["Recipe"]))
    assert term.loss == name
    table = reference.table()
    assert f"[`{name}`]({name}.md)" in table
