"""The floors: a module imports from lower floors, from its own package, and from the others of its floor in a fixed order."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import limbeck

ROOT = Path(limbeck.__file__).parent
FLOORS = [
    # 0: words, tensors, files, the machine
    "errors words kinds settings material training recipe plain load stages arms hub layers schedules anatomy rundir metrics losses reduce seeds precision environment signals locks clock vectors progress",
    # 1: models, and the processes
    "attention taps quantised recall packing blockwise bridges students flops cuts inherit models exits world balance memory factors custom",
    # 2: who answers, and who learns from whom
    "shortage actors noisy ensemble lessons tally voices",
    # 3: one training step
    "still",
    # 4: casts, and text
    "schemes feeds shards",
    # 5: the loop, what is kept of it, what is asked of it
    "paths probe engine keeping checkpoint evaluate findings reasons export cache proposals",
    # 6: where words become objects, and what they cost
    "tasks terms bare designs casting augment library build costs examine profile preview manifest changes room measuring trim hooks",
    # 7: what people touch
    "trackers session chain studies api cli __main__",
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
TORCH_FREE = {
    "environment",
    "errors",
    "words",
    "kinds",
    "material",
    "training",
    "recipe",
    "plain",
    "settings",
    "load",
    "stages",
    "arms",
    "layers",
    "schedules",
    "anatomy",
    "rundir",
    "signals",
    "hub",
    "locks",
    "cli",
    "lab",
    "__main__",
    "vectors",
    "progress",
}
TORCH_FREE_OF_FEEDS = {
    *("corpora", "readers", "docs", "store", "blocks", "tokenise", "masking"),
    *("tables", "labels", "tasks", "pieces"),
}
FILES = sorted(ROOT.rglob("*.py"))


def part(path: Path) -> str:
    """`lab` for limbeck/lab/table.py, `still` for limbeck/still.py."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path, everywhere: bool = True) -> Iterator[tuple[str, bool]]:
    """What a file imports as dotted names, and whether only for type checkers; `everywhere`: inside functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree) if everywhere else ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) in typing_only
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in typing_only


def own(path: Path) -> set[str]:
    """The parts of limbeck that a file imports, its own package left out."""
    found = {name.split(".")[1] for name, _ in imports(path) if name.startswith("limbeck.")}
    return found - {part(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    mine = part(path)
    if mine == "__init__":
        return  # names what it gives away as text, and imports it when it is asked for
    if mine == "lab":
        assert {FLOOR[name] for name in own(path)} <= {0}, "the lab reads run directories only"
        return
    assert mine in FLOOR, f"give {mine} a floor"
    above = {name for name in own(path) - {"lab"} if FLOOR[name] > FLOOR[mine]}
    assert not above, f"{mine} is on floor {FLOOR[mine]} and imports {above} from above"
    assert "lab" not in own(path) or FLOOR[mine] == 7


def test_there_is_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        graph.setdefault(part(path), set()).update(own(path))
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_words_import_no_torch(path: Path) -> None:
    if part(path) in TORCH_FREE or (part(path) == "feeds" and path.stem in TORCH_FREE_OF_FEEDS):
        at_once = {name.split(".")[0] for name, typing in imports(path, everywhere=False) if not typing}
        assert not at_once & {"torch", "transformers", "accelerate", "datasets"}
