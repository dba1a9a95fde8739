"""A signal in every phase: a status of its own, a valid directory, and the bits of the undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kernel import recipe
from runfiles import same_run, same_state

import limbeck
from limbeck import rundir
from limbeck.system import files
from limbeck.training import checkpoint

Fork = Callable[..., dict[str, Any]]
PHASES = {  # a function that is called there, and at which call
    "tokenising": ("limbeck.text.blocks:CorpusPart.add", 5),
    "opening the text": ("limbeck.running.stages:read_text", 1),
    "writing the cache": ("limbeck.teacher_cache.shards:checks", 2),
    "reading the teacher": ("limbeck.assemble.actors:ActorMaker.teachers", 1),
    "beginning": ("limbeck.system.files:write_json", 1),
    "the first evaluation": ("limbeck.measure.evaluation:Evaluation.__call__", 1),
    "training": ("limbeck.distil.still:Still.step", 3),
    "evaluating": ("limbeck.measure.evaluation:Evaluation.__call__", 2),
    "looking for reasons": ("limbeck.measure.reasons:Reasons.__call__", 2),
    "saving": ("limbeck.training.checkpoint:save_file", 2),
    "the last step": ("limbeck.distil.still:Still.step", 6),
    "exporting": ("limbeck.training.export:export", 2),
    "profiling": ("limbeck.running.profile:of_study", 1),
    "reporting": ("limbeck.lab.page.report:write", 1),
}
NUMBERS = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
FAST = ["training"]


def cached(table: dict[str, Any], folder: Path) -> None:
    """Everything is new: the tokens, and the answers of the teacher."""
    table["cache"] = {}
    table["data"] |= {"cache": str(folder), "masking": {"mode": "static"}}
    del table["settings"]["multi"]["terms"][-1]  # its memory is of pooled states, which are not kept


@pytest.fixture(scope="module")
def through(fork: Fork, tmp_path_factory: pytest.TempPathFactory) -> limbeck.Run:
    """The run that nobody disturbed."""
    out = tmp_path_factory.mktemp("signals") / "through"
    told = fork(out, lambda table: cached(table, out.parent / "cache"))
    assert told["status"] == 0, told["said"]
    return limbeck.Run(out)


def sent(fork: Fork, out: Path, phase: str, numbers: list[int]) -> dict[str, Any]:
    at, call = PHASES[phase]
    change = lambda table: cached(table, out.parent / "cache")  # noqa: E731
    told = fork(out, change, signal={"numbers": numbers, "at": at, "call": call})
    assert "Traceback" not in told["said"], told["said"]
    return told


def is_valid(out: Path) -> None:
    """Nothing that stands there is half of something."""
    if (out / rundir.MANIFEST).exists():
        assert files.read_json(out / rundir.MANIFEST)["status"] in ("running", "interrupted", "done")
    for place in checkpoint.list_all(out / rundir.CHECKPOINTS):
        assert checkpoint.damage(place) is None
    assert not list((out.parent / "cache").rglob("*.tmp"))


def goes_on(fork: Fork, out: Path, through: limbeck.Run) -> None:
    told = fork(out, lambda table: cached(table, out.parent / "cache"))
    assert told["status"] == 0, told["said"]
    same_run(limbeck.Run(out), through, checkpoints=False)  # a stop saves one more
    same_state(limbeck.Run(out), through)


EVERY = [pytest.param(it, marks=() if it in FAST else pytest.mark.slow) for it in PHASES]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("phase", EVERY)
def test_one_signal(phase: str, number: str, fork: Fork, through: limbeck.Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    told = sent(fork, out, phase, [NUMBERS[number]])
    assert told["status"] == 75, told["said"]
    assert told["said"].splitlines()[-1].endswith("run it again to go on")
    is_valid(out)
    if phase not in (
        "tokenising",
        "opening the text",
        "writing the cache",
        "reading the teacher",
        "reporting",
        "beginning",
    ):
        assert files.read_json(out / rundir.MANIFEST)["status"] == "interrupted"
        assert checkpoint.list_all(out / rundir.CHECKPOINTS), "the step was saved"
    goes_on(fork, out, through)


@pytest.mark.parametrize("phase", EVERY)
def test_a_second_one(phase: str, fork: Fork, through: limbeck.Run, tmp_path: Path) -> None:
    """It stops at once, and what stands there is whole."""
    out = tmp_path / "run"
    told = sent(fork, out, phase, [signal.SIGTERM, signal.SIGINT])
    assert told["status"] == 130 and "stopped at once" in told["said"], told["said"]
    is_valid(out)
    goes_on(fork, out, through)


WORKER = """
import os, signal, sys
from limbeck import cli
from limbeck.lab.page import report
from limbeck.distil.still import Still
report.write = lambda folder: folder
plain, signalled = Still._update, sys.argv[-1] == "signalled"
def update(self, tallies, step, measure):
    plain(self, tallies, step, measure)
    if signalled and step == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
Still._update = update
sys.argv = ["limbeck", *sys.argv[1:3]]
cli.main()
"""


def launch(script: Path, table: dict[str, Any], *words: str) -> tuple[int, str]:
    path = script.with_name(f"{Path(table['out']).name}.yaml")
    path.write_text(json.dumps(table))
    launcher = ["torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    process = subprocess.run(
        [sys.executable, "-m", *launcher, "--rdzv-endpoint=localhost:0", str(script), "run", str(path), *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return process.returncode, process.stderr


@pytest.mark.slow
def test_a_signal_at_one_process_reaches_all(world: Path, tmp_path: Path) -> None:
    """Both stop after the same step, and go on to the bits of two that nobody disturbed."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    status, said = launch(script, recipe(world, tmp_path / "two"))
    assert status == 0, said[-3000:]
    status, said = launch(script, recipe(world, tmp_path / "stopped"), "signalled")
    assert status != 0 and said.count("stopped after step 3; run it again to go on") == 2, said[-3000:]
    assert files.read_json(tmp_path / "stopped" / rundir.MANIFEST)["status"] == "interrupted"
    status, said = launch(script, recipe(world, tmp_path / "stopped"))
    assert status == 0, said[-3000:]
    same_run(limbeck.Run(tmp_path / "stopped"), limbeck.Run(tmp_path / "two"), checkpoints=False)
    same_state(limbeck.Run(tmp_path / "stopped"), limbeck.Run(tmp_path / "two"))
