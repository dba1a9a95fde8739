"""Tiny runs that several tests look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kernel import lay_out, recipe, with_dropout
from runfiles import hashes

import limbeck
from limbeck.lab.page import report


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
