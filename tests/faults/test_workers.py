"""A process of several that is killed: the run ends, nothing is damaged, and it goes on in the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
from kernel import recipe
from runfiles import same_run, same_state
from test_signals import launch

import limbeck
from limbeck import rundir
from limbeck.system import files
from limbeck.training import checkpoint

WORKER = """
import os, signal, sys
from limbeck import cli
from limbeck.lab.page import report
from limbeck.distil.still import Still
report.write = lambda folder: folder
plain, (rank, at) = Still._update, sys.argv[3:] or ("-1", "-1")
def update(self, tallies, step, measure):
    if os.environ["RANK"] == rank and step == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
    plain(self, tallies, step, measure)
Still._update = update
sys.argv = ["limbeck", *sys.argv[1:3]]
cli.main()
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "worker.py"
    path.write_text(WORKER)
    return path


@pytest.fixture(scope="module")
def two(script: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> limbeck.Run:
    """The run of two processes that nobody disturbed."""
    out = tmp_path_factory.mktemp("runs") / "two"
    status, said = launch(script, recipe(world, out))
    assert status == 0, said[-3000:]
    return limbeck.Run(out)


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_worker_that_is_killed(rank: str, script: Path, world: Path, two: limbeck.Run, tmp_path: Path) -> None:
    """In the update of step 4, when gradients are added up: whoever it is, the other one does not wait for it."""
    out = tmp_path / "killed"
    status, said = launch(script, recipe(world, out), rank, "3")
    assert status != 0 and "SIGKILL" in said, said[-3000:]
    assert "limbeck: another process of the run has ended; run it again to go on" in said, said[-3000:]
    assert files.read_json(out / rundir.MANIFEST)["status"] == "running"
    (place,) = checkpoint.list_all(out / rundir.CHECKPOINTS)
    assert place.name == "step-000002" and checkpoint.damage(place) is None
    status, said = launch(script, recipe(world, out))
    assert status == 0 and "goes on after step 2" in said, said[-3000:]
    same_run(limbeck.Run(out), two)
    same_state(limbeck.Run(out), two)
