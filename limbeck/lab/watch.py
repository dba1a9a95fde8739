"""A run while it goes on, in the terminal: how far it is, how fast, and a curve for each learner."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from limbeck.errors import UserError
from limbeck.rundir import EVALS, MANIFEST, METRICS, STUDY, read_json, read_lines

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 32  # characters of a curve


def watch(folder: Path, every: float = 2.0) -> None:
    """Shows a run until it ends; where standard output is no terminal, one picture of it.

    Raises:
        UserError: there is no run.
    """
    if not sys.stdout.isatty():
        Console(width=120).print(frame(folder))
        return
    with Live(frame(folder), console=Console(), auto_refresh=False) as live:
        while not _is_over(folder):
            time.sleep(every)
            live.update(frame(folder), refresh=True)


def frame(folder: Path) -> Group:
    """The picture of this moment: a table for each arm of a study."""
    parts = _arms(folder)
    return Group(*(_table(name, path) for name, path in parts))


def _arms(folder: Path) -> list[tuple[str, Path]]:
    """(name, directory) of each run that has begun."""
    if (folder / STUDY).is_file():
        told = read_json(folder / STUDY)["arms"]
        begun = [(arm["name"] or arm["folder"], folder / arm["folder"]) for arm in told]
        return [(name, path) for name, path in begun if (path / MANIFEST).is_file()]
    stages = sorted(folder.glob(f"stages/*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
    found = [(path.parent.name, path.parent) for path in stages]
    found += [(folder.name, folder)] if (folder / MANIFEST).is_file() else []
    if not found:
        raise UserError(f"{folder}: no run directory; it has no {MANIFEST}")
    return found


def _is_over(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() and read_json(folder / MANIFEST)["status"] != "running"


def _table(name: str, folder: Path) -> Table:
    manifest = read_json(folder / MANIFEST)
    metrics, evals = read_lines(folder / METRICS)[0], read_lines(folder / EVALS)[0]
    table = Table(title=f"{name}: {manifest['status']}", title_justify="left", box=None, pad_edge=False)
    for word in ("learner", "step", "loss", "", "tokens/s", "held out", ""):
        table.add_column(word, justify="left" if word in ("learner", "") else "right")
    for learner in dict.fromkeys(row["learner"] for row in (*metrics, *evals)):
        mine = [row for row in metrics if row["learner"] == learner]
        asked = [row for row in evals if row["learner"] == learner and row["split"] == "test"]
        losses, heldout = [row["loss"] for row in mine], [_loss(row) for row in asked]
        table.add_row(
            learner,
            f"{mine[-1]['step']:,}" if mine else "0",
            _number(losses),
            Text(curve(losses)),
            f"{mine[-1]['tokens_per_second']:,.0f}" if mine else "",
            _number(heldout),
            Text(curve(heldout)),
        )
    return table


def _loss(row: dict[str, Any]) -> float | None:
    """The held-out loss of an evaluation: from the teacher, or where there is none of the labels."""
    return row["label_loss"] if row["logit_loss"] is None else row["logit_loss"]


def _number(values: Sequence[float | None]) -> str:
    last = next((value for value in reversed(values) if value is not None), None)
    return "" if last is None else f"{last:.4g}"


def curve(values: Sequence[float | None], width: int = WIDTH) -> str:
    """Numbers as a line of blocks, the largest one highest; each block is the mean of its part.

    >>> curve([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    '▁▂▃▄▅▆▇█'
    """
    known = [value for value in values if value is not None]
    if not known:
        return ""
    count = min(width, len(known))
    edges = [round(i * len(known) / count) for i in range(count + 1)]
    means = [sum(known[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * scale)] for mean in means)
