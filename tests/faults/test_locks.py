"""One directory, one run: the lock of the operating system, who holds it, and that a dead owner holds nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import limbeck
from limbeck.errors import UserError
from limbeck.system import locks

Fork = Callable[..., dict[str, Any]]
HOLD = "import sys, time; from pathlib import Path; from limbeck.system import locks\nwith locks.held(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
RACE = """
import os, sys
from pathlib import Path
from limbeck.system import locks
from limbeck.errors import UserError
folder, mine, got = Path(sys.argv[1]), 0, 0
while got < 30:
    try:
        with locks.held(folder / "run"):
            os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))  # fails where another is inside
            os.unlink(folder / "inside")
            got += 1
    except UserError:
        pass
"""


def refused(said: str, out: Path) -> None:
    (line,) = [line for line in said.splitlines() if line.startswith("limbeck: error:")]
    assert f"{out}: is in use by process {os.getpid()} on {socket.gethostname()} since 20" in line
    assert "out=DIR" in line and "Traceback" not in said


def test_a_second_run_is_refused_and_the_owner_named(fork: Fork, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with locks.held(out):
        told = fork(out)
        assert told["status"] == 2
        refused(told["said"], out)
        assert [path.name for path in out.iterdir()] == [locks.FILE], "the second run wrote nothing"
    assert not out.exists()
    assert fork(out)["status"] == 0 and not (out / locks.FILE).exists()


def test_a_dead_owner_holds_nothing(fork: Fork, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout and owner.stdout.readline() == "held\n"
            with pytest.raises(UserError, match=f"process {owner.pid} on"), locks.held(out):
                pass
        finally:
            owner.kill()
    assert json.loads((out / locks.FILE).read_text())["pid"] == owner.pid, "it left its file"
    told = fork(out)
    assert told["status"] == 0, told["said"]


@pytest.mark.slow
def test_a_reader_needs_no_lock(undisturbed: limbeck.Run) -> None:
    words = [[sys.executable, "-m", "limbeck", "report", str(undisturbed.folder)]]
    with locks.held(undisturbed.folder):
        for command in words:
            told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
            assert told.returncode == 0 and "report.html" in told.stdout, told.stderr


def vary(table: dict[str, Any]) -> None:
    table["vary"] = {"train.lr": [0.01, 0.02]}


@pytest.mark.slow
def test_a_study_holds_its_folder_and_each_arm(fork: Fork, tmp_path: Path) -> None:
    out = tmp_path / "study"
    with locks.held(out):
        told = fork(out, vary)
        assert told["status"] == 2
        refused(told["said"], out)
    with locks.held(out / "arms" / "02"):
        told = fork(out, vary)
        assert told["status"] == 2
        refused(told["said"], out / "arms" / "02")
        assert (out / "arms" / "01" / "manifest.json").is_file(), "the first arm was free"
    told = fork(out, vary)
    assert told["status"] == 0, told["said"]
    assert not list(out.rglob(locks.FILE))


def test_a_refused_recipe_leaves_no_folder(fork: Fork, tmp_path: Path) -> None:
    def change(table: dict[str, Any]) -> None:
        table["data"]["corpus"] = str(tmp_path / "nowhere.txt")

    out = tmp_path / "several" / "folders" / "run"
    told = fork(out, change)
    assert told["status"] == 2 and "nowhere.txt" in told["said"]
    assert not (tmp_path / "several").exists()


def test_what_is_held_may_be_held_again_within(tmp_path: Path) -> None:
    with locks.held(tmp_path / "run"):
        with locks.held(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / locks.FILE).exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_many_at_once_never_two_inside(tmp_path: Path) -> None:
    """The file comes and goes with its owner: nobody may lock one that is no more there."""
    racers = [subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path)], stderr=subprocess.PIPE) for _ in range(4)]
    said = [racer.communicate(timeout=600)[1].decode() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4, said


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"no folder can be made in .*out=DIR"), locks.held(tmp_path / "file" / "run"):
        pass
