"""docs/reliability.md: every row of its table of faults names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "reliability.md"
NAMED = re.compile(r"`((?:faults|runs|unit)/[\w/]+\.py)?(?:::(test_\w+))?`")


def rows() -> list[tuple[str, str]]:
    """(fault, what the column of tests says) of each row."""
    table = PAGE.read_text(encoding="utf-8").partition("## Faults")[2].partition("## ")[0]
    cells = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return [(row[0], row[-1]) for row in cells[1:]]


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("fault", "tests"), rows(), ids=[fault[:40] for fault, _ in rows()])
def test_it_is_shown_by_tests_that_exist(fault: str, tests: str) -> None:
    named, file = 0, ""
    for path, name in NAMED.findall(tests):
        file = path or file
        named += bool(path or name)
        assert (TESTS / file).is_file(), file
        assert not name or name in functions(TESTS / file), f"{file} has no {name}"
    assert named or "[SECURITY.md]" in tests, f"no test shows: {fault}"


def test_there_are_rows() -> None:
    assert len(rows()) > 35
