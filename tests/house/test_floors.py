"""The floors: a package imports strictly from lower floors, within a package there is no circle, and nothing is long."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from floors import BENCHMARKS, FILES, FLOOR, ROOT, imports, module, own, part

OF_LAB = {"errors", "rundir", "system", "recipe"}  # all that the lab knows
FEEDS = {"order", "feed", "block_feed", "row_feed", "mixed_feed"}
LINES, LINES_OF_FUNCTION = 330, 60  # at most
TORCH_FREE = {
    "": {"errors", "families", "rundir", "cli", "__init__", "__main__"},
    "system": {"files", "store", "leftovers", "locks", "signals", "clock", "environment", "hub", "progress"},
}


def test_everything_has_a_floor() -> None:
    assert {part(module(path)) for path in FILES} == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_go_down(path: Path) -> None:
    mine = part(module(path))
    others = {part(name) for name in own(path)} - {mine, "__init__"}
    above = {name for name in others if FLOOR[name] >= FLOOR[mine]}
    assert not above, f"{mine} is on floor {FLOOR[mine]} and imports {above}"
    assert mine != "lab" or others <= OF_LAB, "the lab reads run directories only"


def test_there_is_no_circle() -> None:
    """Among modules; what is imported inside a function, when it is called, is no circle."""
    TopologicalSorter({module(path): own(path, everywhere=False) - {module(path)} for path in FILES}).prepare()


def test_the_benchmarks_stand_above() -> None:
    """They import any of limbeck, and nothing of it imports them."""
    assert not [module(path) for path in FILES for name, _ in imports(path) if name.split(".")[0] == "benchmarks"]


def test_the_benchmarks_have_no_circle() -> None:
    """Nor one that an import inside a function would hide."""
    uses = {module(path): own(path, package="benchmarks") for path in BENCHMARKS}
    assert "benchmarks.sides" in uses["benchmarks.flops"]
    TopologicalSorter(uses).prepare()


@pytest.mark.parametrize("path", [*FILES, *BENCHMARKS], ids=module)
def test_nothing_is_long(path: Path) -> None:
    """Of files, and of functions with their docstrings."""
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno and node.end_lineno - node.lineno < LINES_OF_FUNCTION, node.name


def is_torch_free(path: Path) -> bool:
    """Whether it must be, at its import."""
    mine = part(module(path))
    if mine == "text":
        return path.stem not in FEEDS and path.parent.name != "augment"
    return mine in ("recipe", "lab") or path.stem in TORCH_FREE.get(mine if path.parent != ROOT else "", ())


@pytest.mark.parametrize("path", [path for path in FILES if is_torch_free(path)], ids=module)
def test_words_import_no_torch(path: Path) -> None:
    at_once = {name.split(".")[0] for name, typing in imports(path, everywhere=False) if not typing}
    assert not at_once & {"torch", "transformers", "accelerate", "datasets"}


@pytest.mark.parametrize("path", [path for path in FILES if path.stem == "__init__"], ids=module)
def test_a_package_says_what_it_holds(path: Path) -> None:
    """A docstring, and no code: a name has one place."""
    if module(path) not in ("limbeck", "limbeck.losses", "limbeck.models.changes"):
        (said,) = ast.parse(path.read_text(encoding="utf-8")).body
        assert isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant)
