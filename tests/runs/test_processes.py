"""Two processes (gloo) against one: the same global batch, the same update. Real launches of the real command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pair
import pyarrow.parquet as pq
import pytest
import torch
from kernel import lay_out, recipe
from safetensors.torch import load_file

import limbeck
from limbeck.errors import UserError
from limbeck.lab.page import report
from limbeck.system import files
from limbeck.system.processes import World

TORCHRUN = ["torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--rdzv-backend=c10d",
            "--rdzv-endpoint=localhost:0", "-m", "limbeck"]  # fmt: skip
# accelerate starts one process only where it is told --cpu and has no mpirun; --multi_gpu is its word for torchrun's way
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
              "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", "-m", "limbeck"]  # fmt: skip
EXACT = (
    "step",
    "stage",
    "setting",
    "seed",
    "learner",
    "lr",
    "tokens",
    "flops",
    "split",
    "kind",
    "learners",
    "settings",
)


def launch(launcher: Sequence[str], table: dict[str, Any], folder: Path) -> tuple[str, str]:
    """Standard output and standard error of a launch that ends well; with a launcher that hangs its workers end too."""
    path = folder / f"{Path(table['out']).name}.yaml"
    path.write_text(json.dumps(table))
    process = subprocess.Popen(
        [sys.executable, "-m", *launcher, "run", str(path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, log = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # before the launcher is reaped: its number is still its own
        log = process.communicate()[1]
        pytest.fail(f"the processes wait for each other: {log[-4000:]}")
    assert process.returncode == 0, log[-4000:]
    return said, log


def close(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    assert len(rows) == len(others) > 0
    for mine, theirs in zip(rows, others, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            if key in EXACT:
                assert mine[key] == value, key
            elif key not in ("seconds", "tokens_per_second"):
                numbers = [flat(mine[key]), flat(value)]
                assert numbers[0] == pytest.approx(numbers[1], rel=1e-8, abs=1e-10), key


def flat(value: Any) -> list[float]:
    if value is None:
        return []
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in flat(value[key])]
    return [number for each in value for number in flat(each)] if isinstance(value, list) else [value]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a corpus."""
    return lay_out(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def alone(world: Path) -> limbeck.Run:
    """One process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda folder: folder)
        return limbeck.run(table(world, "alone"), quiet=True)


def table(world: Path, out: str) -> dict[str, Any]:
    settings = recipe(world, world)["settings"]
    settings["label"] = {"terms": [{"loss": "cross_entropy", "name": "label"}, {"loss": "mse", "tap": "hidden"}]}
    how = {"precision": "fp64", "accumulate": 2, "batch_size": 8, "checkpoint_every": 3}
    return recipe(world, world / out, train=how, settings=settings)


SLOW = [
    pytest.param(TORCHRUN, id="torchrun", marks=pytest.mark.slow),
    pytest.param(ACCELERATE, id="accelerate", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("launcher", [pytest.param(None, id="forked"), *SLOW])
def test_two_processes_are_one(world: Path, alone: limbeck.Run, launcher: list[str] | None, request: Any) -> None:
    """Students, metrics and evaluations to 1e-10; one process writes, and says everything once."""
    asked = table(world, request.node.callspec.id)
    said, log = launch(launcher, asked, world) if launcher else pair.launch(asked, world)
    both = limbeck.Run(world / request.node.callspec.id)
    assert both.manifest["status"] == "done" and both.manifest["processes"] == 2
    assert both.manifest["students"] == alone.manifest["students"]
    for name, place in both.students.items():
        expected = load_file(alone.students[name] / "model.safetensors")
        found = load_file(place / "model.safetensors")
        assert found.keys() == expected.keys()
        for key, tensor in found.items():
            assert tensor.dtype == torch.float64
            torch.testing.assert_close(tensor, expected[key], rtol=1e-10, atol=1e-10)
    close(both.metrics, alone.metrics)
    close(both.evals, alone.evals)
    rows = [pq.read_table(run.folder / "evals" / "step-000006.parquet").to_pylist() for run in (both, alone)]
    close(*rows)
    close(*(files.read_lines(run.folder / "reasons.jsonl")[0] for run in (both, alone)))
    assert both.report.is_file() and said.count("report:") == 1
    assert "Traceback" not in log and "leaked" not in log


def test_a_batch_that_two_processes_cannot_share_is_refused(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "join", staticmethod(lambda device: World(0, 2)))
    odd = table(world, "odd")
    odd["train"] |= {"batch_size": 6}
    with pytest.raises(UserError, match=r"train\.batch_size: 6 blocks .*make it a multiple of 4"):
        limbeck.run(odd, quiet=True)
    assert not (world / "odd").exists()


# settings that remember

CONTRAST = {"loss": "contrastive", "tap": "pooled", "negatives": 6, "width": 8}
STATEFUL = {
    "gradient": {
        "balance": "gradient",
        "terms": [
            {"loss": "forward_kl"},
            CONTRAST,
            {"loss": "relation_kl", "tap": ["query", "key", "value"]},
            {"loss": "factor_transfer", "tap": "hidden", "layers": "last", "paraphraser_steps": 3, "name": "factors"},
        ],
    },
    "uncertainty": {
        "balance": "uncertainty",
        "terms": [
            {"loss": "decoupled_kl"},
            CONTRAST,
            {"loss": "relation_kl", "tap": ["query", "key", "value"], "layers": "last"},
            {"loss": "patient", "tap": "hidden"},
        ],
    },
}
SPY = """
from safetensors.torch import save_file
from limbeck import cli
from limbeck.lab.page import report
from limbeck.running import session
report.write = lambda folder: folder
plain = session.Session._finish
def kept(self, begin):
    for learner in self.study.learners:
        save_file(learner.state(), f"{self.folder}-{self.study.world.rank}-{learner.name}.safetensors")
    plain(self, begin)
session.Session._finish = kept
cli.main()
"""


@pytest.mark.slow
def test_two_processes_remember_the_same(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory banks, balances and paraphrasers: the same bits in both processes, and what one process alone ends with."""
    monkeypatch.setattr(report, "write", lambda folder: folder)
    how = {"precision": "fp64", "batch_size": 8, "probe_every": 2, "steps": 4, "eval_every": 4}
    solo = limbeck.run(recipe(world, world / "one", settings=STATEFUL, train=how), quiet=True)
    (world / "spy.py").write_text(SPY)
    pair.launch(recipe(world, world / "two", settings=STATEFUL, train=how), world, world / "spy.py")
    both = limbeck.Run(world / "two")
    assert both.manifest["processes"] == 2 and both.manifest["students"] == solo.manifest["students"]
    for name in solo.students:
        first, second = (load_file(world / f"two-{rank}-{name}.safetensors") for rank in (0, 1))
        expected = load_file(solo.folder / "checkpoints" / "step-000004" / f"{name}.safetensors")
        assert first.keys() == second.keys() == expected.keys()
        assert sum(key.endswith("_bank") for key in expected) == 2 and "balance.probes" in expected
        for key, tensor in first.items():
            assert torch.equal(tensor, second[key]), key
            torch.testing.assert_close(tensor, expected[key], rtol=1e-9, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")
    close(both.metrics, solo.metrics)
    close(both.evals, solo.evals)
