"""The floors: a package imports strictly from lower floors, and within a package there is no circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import limbeck

ROOT = Path(limbeck.__file__).parent
FLOORS = [
    "errors batch",  # how a mistake is told; named tensors
    "losses families system",  # pure functions; model families; the machine
    "rundir",  # names of the files of a run: the contract between running and lab
    "recipe",  # what a user may say
    "models lab",  # Hugging Face models; what a run left behind
    "text distil",  # from text to batches; the cast, its lessons, the one training step
    "teacher_cache measure training",  # teachers' answers on disk; what is asked of learners; the loop
    "assemble",  # words become objects
    "running tools",  # one run in its directory; commands on any model folder
    "api",
    "cli",
    "__init__ __main__",
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
OF_LAB = {"errors", "rundir", "system", "recipe"}  # all that the lab knows
FEEDS = {"order", "feed", "row_feed", "mixed_feed"}
TORCH_FREE = {
    "": {"errors", "families", "rundir", "cli", "__init__", "__main__"},
    "system": {"files", "store", "leftovers", "locks", "signals", "clock", "environment", "hub", "progress"},
}
FILES = sorted(ROOT.rglob("*.py"))


def module(path: Path) -> str:
    """`limbeck.lab.names` for limbeck/lab/names.py, `limbeck.lab` for limbeck/lab/__init__.py."""
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path) for path in FILES}


def part(name: str) -> str:
    """`lab` of `limbeck.lab.names`, `rundir` of `limbeck.rundir`."""
    return ([*name.split("."), "__init__"])[1]


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


def own(path: Path, everywhere: bool = True) -> set[str]:
    """The modules of limbeck that a file imports."""
    found = {name for name, _ in imports(path, everywhere) if name.startswith("limbeck.")}
    return {name if name in MODULES else name.rpartition(".")[0] for name in found}


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
    if module(path) not in ("limbeck", "limbeck.losses"):
        (said,) = ast.parse(path.read_text(encoding="utf-8")).body
        assert isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant)
