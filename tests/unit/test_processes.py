"""Two processes (gloo) against one: the same global batch, the same update. Real launches of the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from kernel import lay_out, recipe
from kernel import two_threads as two_threads
from safetensors.torch import load_file

import limbeck
from limbeck.lab import report

TORCHRUN = ["torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--rdzv-backend=c10d",
            "--rdzv-endpoint=localhost:0", "-m", "limbeck"]  # fmt: skip
ACCELERATE = ["accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1",
              "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", "-m", "limbeck"]  # fmt: skip
EXACT = ("step", "stage", "setting", "seed", "learner", "lr", "tokens", "flops", "split")


def launch(launcher: Sequence[str], table: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    path = folder / f"{Path(table['out']).name}.yaml"
    path.write_text(json.dumps(table))
    told = subprocess.run(
        [sys.executable, "-m", *launcher, "run", str(path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert told.returncode == 0, told.stderr[-4000:]
    return told


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


def flat(value: Any) -> list[float | None]:
    if isinstance(value, dict):
        return [value[key] for key in sorted(value)]
    return value if isinstance(value, list) else [value]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a corpus."""
    return lay_out(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def alone(world: Path, two_threads: None) -> limbeck.Run:
    """One process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda folder: folder)
        return limbeck.run(table(world, "alone"), quiet=True)


def table(world: Path, out: str) -> dict[str, Any]:
    settings = recipe(world, world)["settings"]
    settings["label"] = {"terms": [{"loss": "cross_entropy", "name": "label"}, {"loss": "mse", "tap": "hidden"}]}
    how = {"precision": "fp64", "accumulate": 2, "batch_size": 8, "checkpoint_every": 3}
    return recipe(world, world / out, train=how, settings=settings)


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_are_one(world: Path, alone: limbeck.Run, launcher: list[str], request: Any) -> None:
    """Students, metrics and evaluations to 1e-10; one process writes, and says everything once."""
    told = launch(launcher, table(world, request.node.callspec.id), world)
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
    assert both.report.is_file() and told.stdout.count("report:") == 1
    assert "Traceback" not in told.stderr and "leaked" not in told.stderr


def test_a_batch_that_two_processes_cannot_share_is_one_line_each(world: Path) -> None:
    odd = table(world, "odd")
    odd["train"] |= {"batch_size": 6}
    with pytest.raises(AssertionError, match=r"train\.batch_size: 6 blocks cannot be split") as caught:
        launch(TORCHRUN, odd, world)
    assert "make it a multiple of 4" in str(caught.value) and not (world / "odd").exists()
