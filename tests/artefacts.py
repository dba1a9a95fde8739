"""What a state of limbeck leaves behind, for the tests of later ones: `tests/house/test_artefacts.py` reads it.

`PYTHONPATH=.:tests python -m artefacts` makes tests/artefacts.tar.gz anew. It belongs to a change of numbers, keys or formats that is meant, with a
sentence in the CHANGELOG.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from kernel import lay_out, recipe, with_dropout
from runfiles import stop_after

import limbeck
from limbeck.errors import Interrupted

PLACE = Path(__file__).parent / "artefacts.tar.gz"
BEFORE = PLACE.with_name("artefacts-before.tar.gz")  # manifests and recipes of these runs with the keys of before 0.1
STOPPED = 4  # steps of the runs that were begun
RUNS: dict[str, dict[str, Any]] = {"begun": {}, "cached": {"cache": {}}}


def table(name: str, out: str) -> dict[str, Any]:
    """The recipe of a run, with names of files in the working directory: in fp64, with dropout in its students."""
    made = recipe(Path(), Path(out), train={"precision": "fp64"}, **RUNS[name])
    made["data"] |= {"masking": {"mode": "static"}}
    return with_dropout(made, 0.1)


def make(folder: Path) -> None:
    """Everything, in an empty folder."""
    os.chdir(folder)
    lay_out(Path())
    for name in RUNS:
        done = Path(f"{name}-done")
        limbeck.run(table(name, str(done)), quiet=True)
        for part in ("checkpoints", "figures"):
            shutil.rmtree(done / part)
        (done / "report.html").unlink()
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, STOPPED)
            with pytest.raises(Interrupted):
                limbeck.run(table(name, name), quiet=True)
        shutil.rmtree(Path(name) / "checkpoints" / "step-000002")
    limbeck.run(recipe(Path(), Path("told"), seeds=[0, 1]), quiet=True)
    for part in ("checkpoints", "students"):
        shutil.rmtree(Path("told") / part)
    for path in Path("told").rglob("*.png"):
        path.unlink()


def unpacked(folder: Path, place: Path = PLACE) -> Path:
    """The artefacts, in a folder."""
    with tarfile.open(place) as file:
        file.extractall(folder, filter="data")
    return folder


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        make(Path(made))
        with tarfile.open(PLACE, "w:gz") as file:
            for path in sorted(Path(made).iterdir()):
                file.add(path, path.name)
    print(f"{PLACE}: {PLACE.stat().st_size / 2**20:.1f} MiB")
