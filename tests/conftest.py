"""What all tests share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from budget import FIRST
from kernel import lay_out, recipe, with_dropout
from matplotlib.figure import Figure
from runfiles import hashes

import limbeck
from limbeck.lab.figures import reasons
from limbeck.lab.page import report
from limbeck.running import session
from limbeck.system import progress

HERE = Path(__file__).parent
BLANK = {
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 547 288" width="547pt" height="288pt"></svg>',
    "png": b"\x89PNG\r\n\x1a\n",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the later members of `FIRST` as slow."""
    seen: Counter[tuple[str, str]] = Counter()
    for item in items:
        module = item.path.relative_to(HERE).as_posix() if item.path.is_relative_to(HERE) else ""
        name = item.name.partition("[")[0]
        if name in FIRST.get(module, {}) and not item.get_closest_marker("slow"):
            seen[module, name] += 1
            if seen[module, name] > FIRST[module][name]:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The bits of a test must not depend on the machine's cores, and two test processes share them."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def sparing(request: pytest.FixtureRequest) -> Iterator[None]:
    """What takes seconds at the end of a run is done where it is looked at.

    Figures are drawn in a module that says `DRAWN = True`, or `DRAWN = {...}` for its fixtures and the tests of these names. Other
    modules of the lab make them and write blank files; elsewhere no figure is made. Latency is measured in a module
    that says for how long: `PROFILING = 10.0`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "PROFILING", getattr(request.module, "PROFILING", 0.0))
        if not hasattr(request.module, "DRAWN"):
            if HERE / "unit" / "lab" in request.path.parents:
                patch.setattr(Figure, "savefig", _blank)
            else:
                patch.setattr(report, "draw", lambda run: [])
                patch.setattr(reasons, "draw", lambda why: [])
        yield


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a module that draws for some of its tests: blank files for the others."""
    drawn = getattr(request.module, "DRAWN", True)
    if drawn is not True and request.function.__name__ not in drawn:
        monkeypatch.setattr(Figure, "savefig", _blank)


def _blank(figure: Figure, place: Path, *, format: str, **_: Any) -> None:
    place.write_bytes(BLANK[format])


@pytest.fixture(autouse=True, scope="session")
def told_alone() -> None:
    """What a test reads on standard error must not depend on how long a machine takes."""
    progress.EVERY = 1e6


# tiny runs that several tests look at


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a corpus."""
    return lay_out(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> limbeck.Run:
    """Two settings, two seeds, with its report."""
    before = hashes(world / "teacher")
    done = limbeck.run(recipe(world, tmp_path_factory.mktemp("runs") / "finished", seeds=[0, 1]), quiet=True)
    assert hashes(world / "teacher") == before
    return done


@pytest.fixture(scope="module")
def through(world: Path, tmp_path_factory: pytest.TempPathFactory) -> limbeck.Run:
    """A run with dropout that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda folder: folder)
        out = tmp_path_factory.mktemp("runs") / "through"
        return limbeck.run(with_dropout(recipe(world, out), 0.1), quiet=True)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures: they are the lab's matter."""
    monkeypatch.setattr(report, "write", lambda folder: folder)


@pytest.fixture
def train(world: Path, tmp_path: Path, fast: None) -> Callable[..., limbeck.Run]:
    """Runs a recipe into a folder of its own."""

    def go(out: str, dropout: float = 0.0, **more: Any) -> limbeck.Run:
        return limbeck.run(with_dropout(recipe(world, tmp_path / out, **more), dropout), quiet=True)

    return go
