"""Runs of the tests: stopped, and looked at: what their files hold, and whether two of them are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from torch import Tensor

import limbeck
from limbeck import rundir
from limbeck.errors import Interrupted
from limbeck.running import stages
from limbeck.system import files

TIMED = ("seconds", "tokens_per_second")


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def weights(run: limbeck.Run, name: str) -> bytes:
    return (run.students[name] / "model.safetensors").read_bytes()


def tensors(run: limbeck.Run, name: str) -> dict[str, Tensor]:
    return load_file(run.students[name] / "model.safetensors")


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMED} for row in rows]


def reasons(run: limbeck.Run) -> list[dict[str, Any]]:
    return files.read_lines(run.folder / rundir.REASONS)[0]


def same_run(run: limbeck.Run, other: limbeck.Run, checkpoints: bool = True) -> None:
    """All that is a function of the recipe."""
    assert run.students.keys() == other.students.keys()
    assert all(weights(run, name) == weights(other, name) for name in run.students)
    assert untimed(run.metrics) == untimed(other.metrics)
    assert untimed(run.evals) == untimed(other.evals)
    assert untimed(reasons(run)) == untimed(reasons(other))
    tables = [sorted((r.folder / "evals").iterdir()) for r in (run, other)]
    assert [path.name for path in tables[0]] == [path.name for path in tables[1]]
    for mine, theirs in zip(*tables, strict=True):
        assert pq.read_table(mine).equals(pq.read_table(theirs))
    kept = [{p.name for p in (r.folder / "checkpoints").iterdir()} for r in (run, other)]
    assert kept[0] == kept[1] or not checkpoints


def same_state(run: limbeck.Run, other: limbeck.Run) -> None:
    """The last checkpoint bit for bit, optimizers included; no line twice or missing."""
    states = [sorted((r.folder / "checkpoints").glob("step-*"))[-1] for r in (run, other)]
    kept = [{path.name: path.read_bytes() for path in place.glob("*.safetensors")} for place in states]
    assert states[0].name == states[1].name and kept[0] and kept[0] == kept[1]
    for rows in (run.metrics, run.evals):
        places = [(row["step"], row["learner"], row.get("split")) for row in rows]
        assert len(set(places)) == len(places)


def stop_after(monkeypatch: pytest.MonkeyPatch, questions: int) -> None:
    """A stop that is answered yes for the first time at question number so many; every update asks once."""
    asked: list[None] = []

    def stopped() -> bool:
        asked.append(None)
        return len(asked) >= questions

    @contextmanager
    def signals() -> Iterator[Callable[[], bool]]:
        yield stopped

    monkeypatch.setattr(stages, "interruptible", signals)


def stopped(said: dict[str, Any], monkeypatch: pytest.MonkeyPatch, updates: int) -> None:
    """Runs a recipe that is stopped after so many updates."""
    with monkeypatch.context() as patch:
        stop_after(patch, updates)
        with pytest.raises(Interrupted):
            limbeck.run(said, quiet=True)
