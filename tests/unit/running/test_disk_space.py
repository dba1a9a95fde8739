"""What a run takes is held against the machine before anything is built."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from kernel import answer, recipe

from limbeck.assemble import costs, design
from limbeck.errors import UserError
from limbeck.recipe.load import load
from limbeck.running import disk_space
from limbeck.system import files
from limbeck.system.processes import World

GIB = 2.0**30
V1, V2 = "4:memory:/outer/inner\n0::/\n", "0::/outer/inner\n"
FILES = {
    V1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    V2: ("", "memory.max", "memory.current", "inactive_file"),
}


def machine(root: Path, version: str, limit: str) -> Path:
    """The files of a machine with 16 GiB that are free, in a container."""
    kind, most, used, files = FILES[version]
    outer = root / "sys/fs/cgroup" / kind / "outer"
    (outer / "inner").mkdir(parents=True)
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {16 << 20} kB\n")
    (root / "proc/self/cgroup").write_text(version)
    (outer / most).write_text(limit)
    (outer / used).write_text(str(3 << 30))
    (outer / "memory.stat").write_text(f"cache 7\n{files} {1 << 30}\n")
    (outer / "inner" / most).write_text("max" if version == V2 else str(2**63 - 4096))
    (outer / "inner" / used).write_text(str(3 << 30))
    return root


@pytest.mark.parametrize("version", FILES)
@pytest.mark.parametrize(("limit", "free"), [(str(8 << 30), 6), (str(64 << 30), 16), (str(1 << 30), 0), ("max", 16)])
def test_the_limits_of_containers_count(tmp_path: Path, version: str, limit: str, free: float) -> None:
    """Pages of files that could go count as free; so does all where nobody sets a limit."""
    assert disk_space.free_memory(World(), machine(tmp_path, version, limit)) == pytest.approx(free * GIB)


def test_where_nobody_says_nothing_is_refused(tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk_space.free_memory(World(), tmp_path) == math.inf
    assert disk_space.free_memory(World(device=torch.device("mps"))) == math.inf
    monkeypatch.setattr(disk_space, "free_memory", lambda world: math.inf)
    said = recipe(world, tmp_path / "run", train={"batch_size": 10**9})
    disk_space.fits(design.design(load(said)), World())


def test_where_nothing_is_free_nothing_fits(tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_space, "free_memory", lambda world: 0.0)
    with pytest.raises(UserError, match=r"of memory, and 0\.0 MiB are free here"):
        disk_space.fits(design.design(load(recipe(world, tmp_path / "run"))), World())


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("what", ["memory", "disk"])
def test_a_run_that_does_not_fit(
    what: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same line from check and run, with both numbers, before the text is read; `--force` goes on."""
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(recipe(world, tmp_path / "run", only=["logit"], train={"steps": 1})))
    if what == "memory":
        monkeypatch.setattr(disk_space, "free_memory", lambda world: 2.0**17)
    else:
        monkeypatch.setattr(files, "free", lambda folder: 2**17)
    with monkeypatch.context() as patch:
        for module in ("check", "stages"):
            patch.setattr(f"limbeck.running.{module}.read_text", lambda *_: pytest.fail("the text is read"))
        for command in ("check", "run"):
            status, out, err = answer(monkeypatch, capsys, command, str(path))
            assert (status, out) == (2, "") and f"run: needs about 0.2 MiB of {what}, and 0.1 MiB are free" in err
            assert "with --force" in err and not (tmp_path / "run").exists()
    assert answer(monkeypatch, capsys, "run", str(path), "--force")[0] == 0


def test_smaller_micro_batches_need_less(world: Path, tmp_path: Path) -> None:
    """What a GPU needs at least is what remains of one row at a time."""
    whole, halves, single = (
        costs.of_study(design.design(load(recipe(world, tmp_path, train={"batch_size": 64, "accumulate": parts}))))
        for parts in (1, 2, 64)
    )
    assert whole.memory > halves.memory > single.memory == single.least == whole.least
