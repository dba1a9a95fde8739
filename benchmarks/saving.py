"""What checkpoints cost: the time of one over that of the updates between two at the default interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from benchmarks import sides
from benchmarks.rows import Row, row
from benchmarks.shapes import QUICK, Shape, Size, batch
from limbeck.distil.reduce import Share
from limbeck.recipe.recipe import Train
from limbeck.training import checkpoint

STUDENTS = 2
EVERY = Train.model_fields["checkpoint_every"].default
SHAPES = {
    "6x256_to_3x128": Shape(Size(6, 256, 8, 640), Size(3, 128, 8, 320), vocabulary=8192),
    "minilm_to_4x312": Shape(Size(6, 384, 12, 1536), Size(4, 312, 12, 1200)),
}


def measured(shape: Shape, rounds: int) -> dict[str, Any]:
    """An update and a checkpoint in turn, on the disk of the temporary folder; two older ones lie there, and one goes."""
    sides.prepare(shape)
    still, one = sides.still_of(shape, shape.precision, STUDENTS), batch(shape)
    updates, saves = [], []
    with TemporaryDirectory() as place:
        folder = Path(place) / "checkpoints"
        for step in range(rounds + checkpoint.KEPT + 1):
            begin = perf_counter()
            tallies = still.step(Share.of([one]), step)
            assert all(tally.norms is not None for tally in tallies.values())  # read, so that a GPU has done it
            between = perf_counter()
            checkpoint.save(folder, step, still.learners, {"tokens": {}})
            updates.append(between - begin)
            saves.append(perf_counter() - between)
        size = sum(path.stat().st_size for path in checkpoint.list_all(folder)[0].iterdir())
    update, save = (median(found[checkpoint.KEPT + 1 :]) for found in (updates, saves))
    return {"update": update, "save": save, "bytes": size, "every": EVERY, "share": save / (EVERY * update)}


def rows(names: Sequence[str], device: str, rounds: int, quick: bool) -> list[Row]:
    """`saving`: the worse of two sizes."""
    shapes = {"quick": QUICK} if quick else SHAPES
    detail = {name: measured(replace(shape, device=device), rounds) for name, shape in shapes.items()}
    worst = max(detail.values(), key=lambda found: found["share"])
    return [row("saving", device, worst["share"], EVERY * worst["update"], detail)]
