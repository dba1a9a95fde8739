"""The floors of the house: a package imports strictly from lower ones. The tests hold it, `docs/make_map.py` draws it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

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
    "assemble",  # recipes become objects
    "running tools",  # one run in its directory; commands on any model folder
    "api",
    "cli_models",  # its commands on models
    "cli",
    "__init__ __main__",
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
FILES = sorted(ROOT.rglob("*.py"))
BENCHMARKS = sorted((ROOT.parent / "benchmarks").glob("*.py"))  # above all floors


def module(path: Path) -> str:
    """`limbeck.lab.names` for limbeck/lab/names.py, `limbeck.lab` for limbeck/lab/__init__.py."""
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path) for path in [*FILES, *BENCHMARKS]}


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


def own(path: Path, everywhere: bool = True, package: str = "limbeck") -> set[str]:
    """The modules of a package that a file imports."""
    found = {name for name, _ in imports(path, everywhere) if name.startswith(f"{package}.")}
    return {name if name in MODULES else name.rpartition(".")[0] for name in found}


def first_line(path: Path) -> str:
    """What a module holds, in the words of its docstring: the first sentence."""
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(said.split("\n\n")[0].split())
