"""A teacher, a corpus, an undisturbed run, and a process whose forks end badly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel import lay_out, recipe, with_dropout

import limbeck

HARNESS = Path(__file__).parents[1] / "harness.py"
Fork = Callable[..., dict[str, Any]]
REMEMBER = [
    {"loss": "forward_kl", "teacher": "ema", "name": "average"},
    {"loss": "contrastive", "tap": "pooled", "negatives": 6, "width": 8},
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a corpus."""
    return lay_out(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def forks() -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """Does jobs of `harness`."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", str(HARNESS)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout

        def do(job: dict[str, Any]) -> dict[str, Any]:
            assert process.stdin and process.stdout
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield do
        process.stdin.close()


@pytest.fixture(scope="module")
def fork(world: Path, tmp_path_factory: pytest.TempPathFactory, forks: Callable[..., Any]) -> Fork:
    """Runs a tiny recipe into a folder, in a fork: `out`, what is changed in the recipe, and a job's words.

    One of its two settings has all that must be remembered: projections, an average of its weights, a memory bank, a balance.
    """
    recipes = tmp_path_factory.mktemp("recipes")

    def go(out: Path, change: Callable[[dict[str, Any]], Any] = lambda table: None, **job: Any) -> dict[str, Any]:
        table = with_dropout(recipe(world, out), 0.1)
        table["settings"]["multi"] |= {"ema": 0.9, "balance": "gradient"}
        table["settings"]["multi"]["terms"] += REMEMBER
        table["train"]["probe_every"] = 2
        table["data"]["cache"] = f"{out}-cache"  # every run tokenises: as many writes each time
        change(table)
        path = recipes / f"{out.name}.yaml"
        path.write_text(json.dumps(table))
        return forks({"recipe": str(path), **job})

    return go


@pytest.fixture(scope="module")
def undisturbed(fork: Fork, tmp_path_factory: pytest.TempPathFactory) -> limbeck.Run:
    """The run that nothing happened to; `told.json` beside it says how long it took, and how many writes."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    told = fork(out)
    assert told["status"] == 0, told["said"]
    (out.parent / "told.json").write_text(json.dumps(told))
    return limbeck.Run(out)
