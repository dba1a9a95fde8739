"""A run while it goes on, in the terminal: how far it is, how fast, and a curve for each student."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from limbeck.errors import UserError, printable
from limbeck.lab.data.evaluated import loss_of
from limbeck.recipe.arms import TUNING
from limbeck.rundir import EVALS, MANIFEST, METRICS, STUDY
from limbeck.system.files import read_json, read_lines

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 32  # characters of a curve


def watch(folder: Path, every: float = 2.0) -> None:
    """Shows a run until it ends; where standard output is no terminal, one picture of it.

    Raises:
        UserError: there is no run.
    """
    if not sys.stdout.isatty():
        Console(width=120).print(frame(folder))  # wide enough for both curves
        return
    with Live(frame(folder), console=Console(), auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while True:
            over = _is_over(folder)  # asked first: what came before the end is in the last picture
            live.update(frame(folder), refresh=True)
            if over:
                return
            time.sleep(every)


def frame(folder: Path) -> Group:
    """The picture of this moment: a table for each arm of a study."""
    parts = _begun(folder)
    if not parts and not (folder / STUDY).is_file():
        raise UserError(f"{folder}: no run directory; it has no {MANIFEST}")
    return Group(*(_table(name, path) for name, path in parts) if parts else (Text("no arm has begun"),))


def _begun(folder: Path) -> list[tuple[str, Path]]:
    """(name, directory) of each run that has begun: of a study its trials or its arms, of each its stages."""
    arms = _told(folder)
    if arms is None:
        trials = [(f"trial {path.name}", path) for path in sorted(folder.glob(f"{TUNING}/*"))]
        return [pair for name, path in (*trials, (folder.resolve().name, folder)) for pair in _stages(name, path)]
    return [pair for name, path in arms for pair in _stages(name, path)]


def _stages(name: str, folder: Path) -> list[tuple[str, Path]]:
    """A run and the stages before it, those that have begun."""
    before = sorted((_read(path)["started"], path.parent) for path in folder.glob(f"stages/*/{MANIFEST}"))
    found = [(f"{name}, stage {path.name}", path) for _, path in before]
    return found + ([(name, folder)] if (folder / MANIFEST).is_file() else [])


def _told(folder: Path) -> list[tuple[str, Path]] | None:
    """(name, directory) of each arm of a study; None where there is no study."""
    if not (folder / STUDY).is_file():
        return None
    try:
        return [
            (", ".join(arm["settings"].values()), folder / arm["folder"]) for arm in read_json(folder / STUDY)["arms"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / STUDY}: is damaged; restore it, or run the recipe again") from None


def _is_over(folder: Path) -> bool:
    """Whether everything is done, or something was interrupted."""
    last = [path for _, path in _told(folder) or [(folder.name, folder)]]
    states = [_read(path / MANIFEST)["status"] if (path / MANIFEST).is_file() else "running" for path in last]
    begun = [_read(path / MANIFEST)["status"] for _, path in _begun(folder)]
    return "interrupted" in begun or "running" not in states


def _read(path: Path) -> dict[str, Any]:
    """A manifest."""
    try:
        told = read_json(path)
        return {"status": told["status"], "started": str(told["started"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is damaged; restore it, or run the recipe again") from None


def _table(name: str, folder: Path) -> Table:
    manifest = _read(folder / MANIFEST)
    metrics, evals = read_lines(folder / METRICS)[0], read_lines(folder / EVALS)[0]
    table = Table(
        title=Text(printable(f"{name}: {manifest['status']}")), title_justify="left", box=None, pad_edge=False
    )
    for word in ("student", "step", "loss", "", "tokens/s", "held out", ""):
        table.add_column(word, justify="left" if word in ("student", "") else "right")
    for learner in dict.fromkeys(row["learner"] for row in (*metrics, *evals)):
        mine = [row for row in metrics if row["learner"] == learner]
        asked = [row for row in evals if row["learner"] == learner and row["split"] == "test"]
        losses, heldout = [row["loss"] for row in mine], [loss_of(row) for row in asked]
        table.add_row(
            Text(printable(learner)),
            f"{mine[-1]['step']:,}" if mine else "0",
            _number(losses),
            Text(curve(losses)),
            f"{mine[-1]['tokens_per_second']:,.0f}" if mine else "",
            _number(heldout),
            Text(curve(heldout)),
        )
    return table


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
