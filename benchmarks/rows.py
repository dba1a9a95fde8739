"""A row of the result: a number, what it is held against, and on which machine it was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from limbeck.system.environment import machine, versions

LATEST = Path(__file__).parent / "results" / "latest.json"


@dataclass(frozen=True)
class Target:
    """What a row should reach."""

    unit: str
    cpu: float
    cuda: float
    at_least: bool = True  # else at most

    def reached(self, value: float, device: str) -> bool:
        """Whether a value is good enough."""
        wanted = getattr(self, device)
        return value >= wanted if self.at_least else value <= wanted


TARGETS = {
    "textbrewer_fp32": Target("x tokens/s", 1.2, 1.2),
    "textbrewer_bf16": Target("x tokens/s", 3.5, 5.0),
    "loop_bf16": Target("x tokens/s", 1.6, 2.0),
    "memory": Target("x peak bytes", 0.5, 0.5, at_least=False),
    "ceiling": Target("of the matrix-product rate", 0.60, 0.45),
    "lockstep_8": Target("of the bound", 0.85, 0.85),
    "cache_epoch": Target("x epochs/s", 2.0, 2.0),
    "cache_bytes": Target("bytes a token", 120, 120, at_least=False),
    "shared": Target("x tokens/s", 1.0, 1.0),
    "overhead": Target("of the bare time", 0.03, 0.03, at_least=False),
    "growth_vocabulary": Target("off a straight line", 0.25, 0.25, at_least=False),
    "growth_length": Target("off a straight line", 0.25, 0.25, at_least=False),
    "saving": Target("of the time between two", 0.02, 0.02, at_least=False),
    "data": Target("x MB/s", 0.8, 0.8),
}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    value: float | None  # None: could not be measured; `detail` says why
    unit: str
    target: float | None  # None, like `met`: nothing is asked of this machine
    met: bool | None
    baseline: float | None  # what the value is a ratio to
    machine: dict[str, Any]
    detail: dict[str, Any] = field(default_factory=dict)


def row(name: str, device: str, value: float, baseline: float | None, detail: dict[str, Any]) -> Row:
    """A measured row, held against its target."""
    target = TARGETS[name]
    where = machine() | {"device": device, "versions": versions(), "date": date.today().isoformat()}
    return Row(
        name, value, target.unit, getattr(target, device), target.reached(value, device), baseline, where, detail
    )


def missing(name: str, device: str, why: str) -> Row:
    """A row that could not be measured: its target is not met."""
    target = TARGETS[name]
    where = machine() | {"device": device, "versions": versions(), "date": date.today().isoformat()}
    return Row(name, None, target.unit, getattr(target, device), False, None, where, {"missing": why})


def unfit(name: str, device: str, why: str) -> Row:
    """A row that means nothing on this machine: it has no target here."""
    return replace(missing(name, device, why), target=None, met=None)


def write(rows: Sequence[Row], path: Path) -> None:
    """Writes the rows as a JSON list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> list[Row]:
    """Reads them again."""
    return [Row(**plain) for plain in json.loads(path.read_text(encoding="utf-8"))]


HEAD = ("row", "value", "target", "unit", "met", "baseline")


def cells(row: Row) -> tuple[str, ...]:
    """A row as words."""
    sign = ">=" if TARGETS[row.name].at_least else "<="
    if row.target is None:
        return row.name, "-", "-", row.unit, "-", ""
    value = "missing" if row.value is None else f"{row.value:.3g}"
    baseline = "" if row.baseline is None else f"{row.baseline:.4g}"
    return row.name, value, f"{sign} {row.target:g}", row.unit, "yes" if row.met else "NO", baseline


def table(rows: Sequence[Row]) -> str:
    """The rows as plain text."""
    lines = [HEAD, *(cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    said = ["  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    reasons = [f"{row.name}: {row.detail['missing']}" for row in rows if row.value is None]
    return "\n".join([*said, *reasons])


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table for docs/benchmarks.md, with the machine above."""
    where = rows[0].machine
    torch = where["versions"]["torch"]
    head = f"{where['accelerator'] or where['processor']}, {where['threads']} threads, torch {torch}, {where['date']}"
    lines = [HEAD, ("---",) * len(HEAD), *(cells(row) for row in rows)]
    return "\n".join([head, "", *("| " + " | ".join(line) + " |" for line in lines)])
