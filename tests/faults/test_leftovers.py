"""What writers of the cache leave when they are killed: removed by the next writer, and never what a living one fills."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from limbeck.errors import UserError
from limbeck.system import store

WRITER = """
import sys, time
from pathlib import Path
from limbeck.system import store
def write(folder):
    (folder / "half").write_bytes(b"x")
    print(folder, flush=True)
    time.sleep(100)
store.open_or_make(Path(sys.argv[1]), write, print)
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that is filling an entry, and the folder that it fills."""
    root = Path(store.__file__).parents[2]
    command = [sys.executable, "-c", WRITER, str(tmp_path / "tokens" / "slow")]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def make(entry: Path) -> dict[str, int]:
    def write(folder: Path) -> dict[str, int]:
        (folder / "whole").write_bytes(b"y")
        return {"of": 1}

    return store.open_or_make(entry, write, lambda line: None)


def test_the_folder_of_a_living_writer_stays(writer: tuple[subprocess.Popen[str], Path], tmp_path: Path) -> None:
    process, filled = writer
    assert make(tmp_path / "tokens" / "quick") == {"of": 1}
    assert (filled / "half").is_file() and process.poll() is None
    assert make(tmp_path / "tokens" / "slow") == {"of": 1}, "another process makes the same entry meanwhile"
    assert (filled / "half").is_file()


def test_the_folder_of_a_dead_writer_goes(writer: tuple[subprocess.Popen[str], Path], tmp_path: Path) -> None:
    process, filled = writer
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (filled / "half").is_file(), "nobody could tidy up"
    assert make(tmp_path / "tokens" / "quick") == {"of": 1}
    assert sorted(path.name for path in (tmp_path / "tokens").iterdir()) == ["quick"]


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def write(folder: Path) -> dict[str, int]:
        (folder / "half").write_bytes(b"x")
        raise UserError("bad text; mend it")

    with pytest.raises(UserError, match="bad text"):
        store.open_or_make(tmp_path / "tokens" / "x", write, lambda line: None)
    assert list((tmp_path / "tokens").iterdir()) == []


def test_an_entry_that_was_copied_to_another_name_is_refused(tmp_path: Path) -> None:
    """Whole and with sound checksums, and not what the key stands for."""
    make(tmp_path / "tokens" / "one")
    shutil.copytree(tmp_path / "tokens" / "one", tmp_path / "tokens" / "other")
    with pytest.raises(UserError, match="other: holds another entry than its name says; remove the folder"):
        make(tmp_path / "tokens" / "other")
    assert make(tmp_path / "tokens" / "one") == {"of": 1}
