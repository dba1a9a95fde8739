"""The benchmarks run on tiny shapes, say what they promise to say, and their bare mathematics is limbeck's."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import monotonic, sleep

import pytest
import torch
from kernel import share, views

from benchmarks import flops, growth, peers, race, rows, shapes, sides

ROOT = Path(__file__).parents[2]
NAMES = [
    *("textbrewer_fp32", "textbrewer_bf16", "loop_bf16", "memory", "ceiling", "lockstep_8", "cache_epoch"),
    *("cache_bytes", "shared", "overhead", "growth_vocabulary", "growth_length", "saving", "data"),
]
PEERS = {"textbrewer_fp32", "textbrewer_bf16", "memory", "shared"}  # need TextBrewer, which may not be installed
BF16 = {"textbrewer_bf16", "loop_bf16"}  # mean nothing where bf16 is not the faster one


@pytest.mark.slow
def test_a_quick_run_writes_every_row_as_promised(tmp_path: Path) -> None:
    out = tmp_path / "quick.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "1", "--out", str(out)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # tiny products gain nothing from more
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT, env=one_thread, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads(out.read_text(encoding="utf-8"))
    assert [row["name"] for row in written] == NAMES
    for row in written:
        assert row["name"] in done.stdout
        assert {"name", "value", "unit", "target", "met", "baseline", "machine"} <= set(row)
        assert row["machine"]["device"] == "cpu"
        if row["value"] is None:
            assert row["detail"]["missing"]
            fit = row["name"] not in BF16 or shapes.QUICK.precision == "bf16"
            assert (
                (row["met"] is False and row["name"] in PEERS) if fit else (row["target"], row["met"]) == (None, None)
            )
        else:
            assert math.isfinite(row["value"])
            assert row["met"] == rows.TARGETS[row["name"]].reached(row["value"], "cpu")
    (length,) = (row for row in written if row["name"] == "growth_length")
    assert set(length["detail"]) == {"length", "layers", "batch"}
    for points in length["detail"].values():
        assert all(value > 0 for what in ("seconds", "peak_mib") for value in points[what].values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_bare_mathematics_is_limbecks_update(precision: str) -> None:
    shape = shapes.QUICK
    given = shapes.batch(shape)
    still = sides.still_of(shape, precision, 1)
    teacher, (learner,) = sides.cast(shape, precision, 1)
    before = [parameter.detach().clone() for parameter in learner.parameters]
    for step in range(2):
        still.step(share([given]), step)
        sides.by_hand(teacher, learner, given, shape, precision)
    close = {"fp32": 1e-6, "bf16": 2e-4}[precision]
    for mine, theirs, old in zip(still.learners[0].parameters, learner.parameters, before, strict=True):
        torch.testing.assert_close(mine, theirs, atol=close, rtol=0)
        assert not torch.equal(theirs, old)


def test_the_peers_losses_are_limbecks() -> None:
    """All but the attention maps, which are probabilities for the peers and scores for limbeck."""
    shape = shapes.QUICK
    given = shapes.batch(shape)
    still = sides.still_of(shape, "fp32", 1)
    tally = still.gradients(*views([given]), 0)["setting0-seed0"]
    teacher, student = sides.plain_models(shape, torch.float32)
    projections = torch.nn.ModuleList(
        still.learners[0].modules[name] for name in ("embedding:0", "hidden:1", "hidden:2")
    )
    asked = {"input_ids": given["input_ids"], "output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        theirs, mine = teacher(**asked), student(**asked)
        whole = sides.four_losses(mine, theirs, projections, shape)
        maps = [(mine.attentions[s - 1] - theirs.attentions[t - 1]).square().mean() for s, t in shape.pairs]
    limbecks = sum(tally.terms[name] for name in ("logits", "embedding", "hidden"))
    torch.testing.assert_close(whole - sum(maps), limbecks, atol=1e-5, rtol=1e-5)


def test_flops_of_a_product_of_known_size() -> None:
    """Per token 2 FLOPs a weight of a matrix, forward, and the products of attention; three times that for the student."""
    shape = shapes.QUICK
    forward = {}
    for who, size in (("teacher", shape.teacher), ("student", shape.student)):
        layer = 2 * (4 * size.hidden**2 + 2 * size.hidden * size.intermediate) + 4 * shape.length * size.hidden
        forward[who] = size.layers * layer + 2 * (size.hidden**2 + size.hidden * shape.vocabulary)
    projection = 2 * shape.student.hidden * shape.teacher.hidden * (1 + len(shape.pairs))
    counted = flops.flops(shape)
    assert counted.teacher == shape.tokens * forward["teacher"]
    assert counted.student == pytest.approx(3 * shape.tokens * (forward["student"] + projection), rel=0.01)


def test_a_bend_is_seen() -> None:
    assert growth.bend({1: 1.0, 2: 2.0, 4: 4.0}) < 1e-9
    assert growth.bend({1: 1.0, 2: 4.0, 4: 16.0}) > 0.5


def test_a_missed_target_is_said(tmp_path: Path) -> None:
    found = [rows.row("memory", "cpu", 0.7, 1.0, {}), rows.missing("cache_epoch", "cpu", "nothing there")]
    rows.write(found, tmp_path / "results" / "latest.json")
    assert [asdict(row) for row in rows.read(tmp_path / "results" / "latest.json")] == [asdict(row) for row in found]
    assert [line.split()[-2:] for line in rows.table(found).splitlines()[1:2]] == [["NO", "1"]]
    assert "cache_epoch: nothing there" in rows.table(found)
    assert "| memory | 0.7 | <= 0.5 | x peak bytes | NO | 1 |" in rows.markdown(found)


def test_what_means_nothing_here_has_no_target(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [rows.unfit("loop_bf16", "cpu", "bf16 is the slower one"), rows.missing("data", "cpu", "no text")]
    assert [(row.value, row.target, row.met) for row in found] == [(None, None, None), (None, 0.8, False)]
    unfit, missing = rows.table(found).splitlines()[1:3]
    assert unfit.split() == ["loop_bf16", "-", "-", "x", "tokens/s", "-"]
    assert missing.split() == ["data", "missing", ">=", "0.8", "x", "MB/s", "NO"]
    monkeypatch.setattr(shapes, "fastest", lambda device: "fp32")
    names = ("textbrewer_bf16", "loop_bf16")
    slow = peers.rows(names, shapes.QUICK, rounds=1, fresh=False)
    assert [(row.name, row.target, row.met) for row in slow] == [(name, None, None) for name in names]
    assert all("multiplies bf16 slower" in row.detail["missing"] for row in slow)


def test_beside_another_process_there_is_another_process() -> None:
    with race.beside(2):
        busy = multiprocessing.active_children()
        assert len(busy) == 2 and all(process.is_alive() for process in busy)
        for process in busy:
            wait_for(lambda process=process: seconds_of(process.pid) > 0.2)
    assert not any(process.is_alive() for process in busy)


def wait_for(what: Callable[[], bool]) -> None:
    end = monotonic() + 60
    while not what():
        assert monotonic() < end
        sleep(0.05)


def seconds_of(pid: int | None) -> float:
    """What a process has had of the processor (Linux)."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        (["--rounds", "0"], "give at least 1"),
        (["--text", "nowhere.txt"], "leave it out"),
        (["--markdown", "--out", "nowhere.json"], "make bench"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(said: list[str], remedy: str) -> None:
    command = [sys.executable, "-m", "benchmarks", *said]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert remedy in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
