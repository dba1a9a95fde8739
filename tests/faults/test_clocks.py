"""Clocks that stand still, run backwards, or are set back between a run and its resume: the same bits, no duration below 0."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runfiles import reasons, same_run, same_state

import limbeck
from limbeck.system import locks, store

Fork = Callable[..., dict[str, Any]]
YEAR = 365 * 24 * 3600.0
CLOCKS = {
    "backwards": {"ahead": 0.0, "step": -1.0},
    "in leaps of a year": {"ahead": 0.0, "step": -YEAR / 50},
    "standing still": {"ahead": 0.0, "step": 0.0},
}
BACK = {"ahead": -YEAR, "step": -0.001}


def durations_are_sound(run: limbeck.Run) -> None:
    """None is negative, or not a number."""
    told = run.manifest
    assert told["seconds"] >= 0 and told["finished"] >= told["started"]
    for row in run.metrics:
        assert row["seconds"] >= 0 and row["tokens_per_second"] > 0
    assert reasons(run) and all(row["seconds"] >= 0 for row in reasons(run))


@pytest.mark.slow
@pytest.mark.parametrize("clock", CLOCKS)
def test_in_a_run(clock: str, fork: Fork, undisturbed: limbeck.Run, tmp_path: Path) -> None:
    told = fork(tmp_path / "run", clock=CLOCKS[clock])
    assert told["status"] == 0, told["said"]
    run = limbeck.Run(tmp_path / "run")
    durations_are_sound(run)
    same_run(run, undisturbed)
    same_state(run, undisturbed)


@pytest.mark.slow
def test_between_a_run_and_its_resume(fork: Fork, undisturbed: limbeck.Run, tmp_path: Path) -> None:
    """A year back: the run goes on, its cache is taken as it is, and the file of the lock means nothing."""
    out, cache = tmp_path / "run", Path(f"{tmp_path / 'run'}-cache")
    told = fork(out, signal={"numbers": [9], "at": "limbeck.distil.still:Still.step", "call": 4})
    assert told["status"] == -9 and (out / locks.FILE).is_file()
    began = json.loads((out / "manifest.json").read_text())["started"]
    made = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    told = fork(out, clock=BACK)
    assert told["status"] == 0 and "goes on after step 2" in told["said"], told["said"]
    assert made and made == {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    run = limbeck.Run(out)
    assert run.manifest["started"] == began
    durations_are_sound(run)
    same_run(run, undisturbed)
    same_state(run, undisturbed)


@pytest.mark.slow
def test_a_lock_knows_no_time(fork: Fork, tmp_path: Path) -> None:
    """It holds against a run whose clock is a year behind, and one a year ahead."""
    with locks.held(tmp_path / "run"):
        for ahead in (-YEAR, YEAR):
            told = fork(tmp_path / "run", clock={"ahead": ahead, "step": 0.01})
            assert told["status"] == 2 and "is in use by process" in told["said"], told["said"]


def test_an_entry_of_the_cache_from_the_future_is_taken(tmp_path: Path) -> None:
    """By what it holds, not by its time."""

    def write(folder: Path) -> dict[str, int]:
        (folder / "whole").write_bytes(b"y")
        return {"of": 1}

    entry, told = tmp_path / "tokens" / "one", []
    store.open_or_make(entry, write, told.append)
    for path in (entry, *entry.iterdir()):
        os.utime(path, (path.stat().st_atime + YEAR, path.stat().st_mtime + YEAR))
    before = (entry / "whole").stat().st_mtime_ns
    assert store.open_or_make(entry, write, told.append) == {"of": 1}
    assert (entry / "whole").stat().st_mtime_ns == before and not told
