"""Killed at every write, killed at any moment, damaged in every file, changed, out of room: it goes on in the same bits."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kernel import recipe
from runfiles import same_run, same_state

import limbeck
from limbeck import rundir
from limbeck.lab.page import report
from limbeck.running import profile
from limbeck.training import checkpoint

Fork = Callable[..., dict[str, Any]]
EVERY = 15  # writes between those of the fast subset
MOMENTS = 30


def gone_on(fork: Fork, out: Path, undisturbed: limbeck.Run) -> str:
    """Runs it again, and holds it against the undisturbed run; what it said."""
    told = fork(out)
    assert told["status"] == 0, told["said"]
    run = limbeck.Run(out)
    assert run.manifest["status"] == "done"
    same_run(run, undisturbed)
    same_state(run, undisturbed)
    assert not list(out.rglob("*.tmp")), "nothing half-written is left"
    return told["said"]


def told_of(undisturbed: limbeck.Run) -> dict[str, Any]:
    return json.loads((undisturbed.folder.parent / "told.json").read_text())


# killed


def killed_at(number: int, fork: Fork, out: Path, undisturbed: limbeck.Run) -> None:
    told = fork(out, kill=number)
    assert told["status"] == 137, f"write {number}: {told['said']}"
    gone_on(fork, out, undisturbed)
    for folder in (out, Path(f"{out}-cache")):
        shutil.rmtree(folder)


@pytest.mark.slow
def test_killed_at_some_writes(fork: Fork, undisturbed: limbeck.Run, tmp_path: Path) -> None:
    writes = told_of(undisturbed)["writes"]
    assert writes > 100
    for number in range(7, writes + 1, writes // 2):
        killed_at(number, fork, tmp_path / f"at-{number}", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(EVERY))
def test_killed_at_every_write(part: int, fork: Fork, undisturbed: limbeck.Run, tmp_path: Path) -> None:
    for number in range(1 + part, told_of(undisturbed)["writes"] + 1, EVERY):
        killed_at(number, fork, tmp_path / f"at-{number}", undisturbed)


def killed_after(share: float, fork: Fork, out: Path, undisturbed: limbeck.Run) -> bool:
    """Killed by the system after a share of the run's work; whether it was still at it."""
    told = fork(out, after=share * told_of(undisturbed)["worked"])
    assert told["status"] in (-9, 0), told["said"]
    gone_on(fork, out, undisturbed)
    return told["status"] == -9


@pytest.mark.slow
def test_killed_at_some_moments(fork: Fork, undisturbed: limbeck.Run, tmp_path: Path) -> None:
    at_work = [killed_after(share, fork, tmp_path / f"{share}", undisturbed) for share in (0.3, 0.6, 0.8)]
    assert any(at_work)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_killed_at_random_moments(part: int, fork: Fork, undisturbed: limbeck.Run, tmp_path: Path) -> None:
    draw = random.Random(7)
    shares = [draw.random() for _ in range(MOMENTS)][part::3]
    assert sum(killed_after(share, fork, tmp_path / f"{share}", undisturbed) for share in shares) > len(shares) / 2


@pytest.mark.parametrize("call", [2, 3])
def test_killed_before_older_ones_go(call: int, fork: Fork, undisturbed: limbeck.Run, tmp_path: Path) -> None:
    """Between a checkpoint and its rotation; after the last one nothing is saved any more."""
    out = tmp_path / "run"
    told = fork(out, signal={"numbers": [signal.SIGKILL], "at": "limbeck.training.checkpoint:rotate", "call": call})
    assert told["status"] == -9, told["said"]
    assert len(checkpoint.list_all(out / rundir.CHECKPOINTS)) == call
    gone_on(fork, out, undisturbed)


# in which order


def watched(out: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path, Any]]:
    """What is synced, with the bytes or names that it holds then; what is renamed, with all that must be on the disk then."""
    events: list[tuple[str, Path, Any]] = []
    sync, rename = os.fsync, os.rename

    def held(path: Path) -> Any:
        return sorted(it.name for it in path.iterdir()) if path.is_dir() else path.read_bytes()

    def synced(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)
        events.append(("sync", path, held(path)))

    def renamed(source: Any, target: Any) -> None:
        lines = [out / name for name in rundir.LINES]
        there = [it for it in (Path(source), *Path(source).glob("*"), *lines) if it.exists()]
        events.append(("rename", Path(source), (Path(target), {it: held(it) for it in there})))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    return events


def test_a_checkpoint_is_on_the_disk_before_its_name_and_before_older_ones_go(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the lines that it counts on."""
    out = (tmp_path / "run").resolve()
    monkeypatch.setattr(report, "write", lambda folder: folder)
    monkeypatch.setattr(profile, "of_study", lambda *_, **__: {"models": []})
    events = watched(out, monkeypatch)
    limbeck.run(recipe(world, out), quiet=True)
    inside = [(what, path, more) for what, path, more in events if out / rundir.CHECKPOINTS in (path, *path.parents)
              or path in [out / name for name in rundir.LINES]]  # fmt: skip
    moves = [at for at, (what, _, _) in enumerate(inside) if what == "rename"]
    commits = [at for at in moves if inside[at][2][0].name.startswith("step-")]
    assert [inside[at][2][0].name for at in commits] == ["step-000002", "step-000004", "step-000006"]
    assert [inside[at][1].name for at in moves if at not in commits] == ["step-000002"], "the oldest goes"
    for at in commits:
        on_disk = {path: held for what, path, held in inside[:at] if what == "sync"}
        target, wanted = inside[at][2]
        names = {path.name for path in wanted}
        assert {checkpoint.MANIFEST, "multi-seed0.safetensors", *rundir.LINES} < names
        assert wanted == {path: on_disk.get(path) for path in wanted}, f"not all of {target.name} was on the disk"
        what, path, held = inside[at + 1]
        assert (what, path) == ("sync", target.parent) and target.name in held, "its name, before anything else moves"


# damaged


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "deleted": Path.unlink,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]) and None,
    "flipped": flip,
}


@pytest.fixture(scope="module")
def stopped(fork: Fork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints after steps 2 and 4, killed at the fifth."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    low = 1
    while not (out / "checkpoints" / "step-000004").is_dir():
        shutil.rmtree(out, ignore_errors=True)
        low += 20
        assert fork(out, kill=low)["status"] == 137
    assert {place.name for place in (out / "checkpoints").glob("step-*")} == {"step-000002", "step-000004"}
    return out


FILES = ["checkpoint.json", "logit-seed0", "multi-seed0", "multi-seed0@ema"]


@pytest.mark.parametrize("how", DAMAGES)
def test_every_file_of_a_checkpoint(how: str, stopped: Path, tmp_path: Path) -> None:
    """One at a time: found, named, and the older one is used."""
    names = sorted(path.name for path in (stopped / "checkpoints" / "step-000004").iterdir())
    assert len(names) == len(FILES)
    for name in names:
        folder = shutil.copytree(stopped / "checkpoints", tmp_path / name)
        DAMAGES[how](folder / "step-000004" / name)
        said: list[str] = []
        found = checkpoint.newest(folder, said.append)
        assert found is not None and found[0].name == "step-000002", name
        (line,) = said
        assert line.startswith("skipped checkpoints/step-000004: ") and name in line
        if how == "flipped" and name != checkpoint.MANIFEST:
            assert line == f"skipped checkpoints/step-000004: {name}: sha256 differs"


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_run_ends_in_the_same_bits(
    how: str, stopped: Path, fork: Fork, undisturbed: limbeck.Run, tmp_path: Path
) -> None:
    out = shutil.copytree(stopped, tmp_path / "run")
    DAMAGES[how](next((out / "checkpoints" / "step-000004").glob("multi*.safetensors")))
    said = gone_on(fork, out, undisturbed)
    assert "skipped checkpoints/step-000004: multi-seed0" in said and "goes on after step 2" in said


@pytest.mark.slow
def test_both_damaged_begins_anew(stopped: Path, fork: Fork, undisturbed: limbeck.Run, tmp_path: Path) -> None:
    out = shutil.copytree(stopped, tmp_path / "run")
    for place in (out / "checkpoints").glob("step-*"):
        flip(place / checkpoint.MANIFEST)
    assert "goes on after step 0" in gone_on(fork, out, undisturbed)


def test_a_checkpoint_of_another_recipe_is_not_taken(
    stopped: Path, fork: Fork, undisturbed: limbeck.Run, tmp_path: Path
) -> None:
    """It verifies in itself, and lies in the wrong run."""
    other, out = tmp_path / "other", shutil.copytree(stopped, tmp_path / "run")

    def change(table: dict[str, Any]) -> None:
        table["train"] |= {"lr": 0.5, "steps": 4}

    assert fork(other, change)["status"] == 0
    place = out / "checkpoints" / "step-000004"
    shutil.rmtree(place)
    shutil.copytree(other / "checkpoints" / "step-000004", place)
    assert "skipped checkpoints/step-000004: is of another recipe" in gone_on(fork, out, undisturbed)


# no room


@pytest.mark.parametrize("size", [1_000, 9_000])
def test_a_disk_that_takes_no_more(size: int, fork: Fork, undisturbed: limbeck.Run, tmp_path: Path) -> None:
    """No file may grow beyond a limit: first the checkpoint, then the lines. One line, status 2, and it goes on."""
    out = tmp_path / "run"
    told = fork(out, limit=size)
    lines = [line for line in told["said"].splitlines() if line.startswith("limbeck: error:")]
    assert told["status"] == 2 and len(lines) == 1 and "Traceback" not in told["said"], told["said"]
    assert "File too large" in lines[0] and "make room" in lines[0] and "MiB" in lines[0]
    checked = [checkpoint.damage(place) for place in checkpoint.list_all(out / rundir.CHECKPOINTS)]
    assert not any(checked)
    gone_on(fork, out, undisturbed)
