"""Reads reasons.jsonl: why one setting beats another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import UserError
from limbeck.lab.data.joined import Joined, called
from limbeck.lab.data.run import Row, RunData, parsed
from limbeck.rundir import REASONS

NEEDED = {"learner": ("step", "seed", "learner"), "pair": ("step", "seed", "learners")}


@dataclass(frozen=True)
class ToldReasons:
    """What was measured at the last step: setting -> the lines of its seeds, and the lines of pairs of learners.

    Of several runs step is that of the longest one. before: the same at step 0. labels: learner -> setting, as the
    page calls it. one_teacher: of all settings. notes: what is damaged or missing.
    """

    run: RunData
    step: int
    learners: dict[str, list[Row]]
    before: dict[str, list[Row]]
    pairs: list[Row]
    labels: dict[str, str]
    one_teacher: bool
    notes: tuple[str, ...]


def of(run: RunData) -> ToldReasons | None:
    """What the run, or each of several that were joined, recorded of reasons in its last stage; None without a file.

    Raises:
        UserError: a line other than the last one is damaged.
    """
    if isinstance(run, Joined):
        return _of_parts(run)
    path = run.folder / REASONS
    if not path.is_file():
        return None
    rows, notes = _rows(path)
    labels = {row["learner"]: label for (label, _), rows in run.metrics.items() for row in rows[-1:]}
    stage = next(iter(run.metrics.values()))[-1].get("stage")
    rows = [row for row in rows if row.get("stage") == stage and _names(row) <= labels.keys()]
    step = max((row["step"] for row in rows if row["kind"] == "learner"), default=0)
    pairs = {tuple(row["learners"]): row for row in rows if row["kind"] == "pair" and row["step"] == step}
    now, then = (_at(rows, labels, run, at) for at in (step, 0))
    return ToldReasons(run, step, now, then, list(pairs.values()), labels, run.shares_teacher, tuple(notes))


def _of_parts(run: Joined) -> ToldReasons | None:
    """Those of the parts under the names of the page; a part without reasons is noted."""
    found = [(part, why) for part in run.parts if (why := of(part.run)) is not None]
    if not found:
        return None
    has = [part.name for part, _ in found]
    notes = [f"{part.name}: no reasons were recorded." for part in run.parts if part.name not in has]
    notes += [f"{part.name}: {note}" for part, why in found for note in why.notes]
    now = {called(it, part.shown): rows for part, why in found for it, rows in why.learners.items()}
    then = {called(it, part.shown): rows for part, why in found for it, rows in why.before.items()}
    labels = {f"{part.name}/{it}": called(label, part.shown) for part, why in found for it, label in why.labels.items()}
    pairs = [
        row | {"learners": [f"{part.name}/{it}" for it in row["learners"]]} for part, why in found for row in why.pairs
    ]
    teachers = {str((part.run.manifest.get("teacher") or {}).get("sha256")) for part, _ in found}
    one = len(teachers) == 1 and all(why.one_teacher for _, why in found)
    return ToldReasons(run, max(why.step for _, why in found), now, then, pairs, labels, one, tuple(notes))


def mean(rows: Iterable[Row], name: str) -> np.ndarray | None:
    """One quantity, such as "cka" or "calibration.ece", the mean over the seeds that have it; nan where none has."""
    found = stacked(rows, name)
    if found is None:
        return None
    known = np.isfinite(found)
    total = np.where(known, found, 0.0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)


def stacked(rows: Iterable[Row], name: str) -> np.ndarray | None:
    """One quantity of all seeds that have it, `[seeds, ...]`, nan for null; None where no seed has it."""
    values = [value for row in rows if (value := _entry(row, name)) is not None]
    return np.array(values, dtype=np.float64) if values else None


def calibrated(rows: Iterable[Row], name: str = "calibration") -> dict[str, np.ndarray] | None:
    """The tokens of all seeds in one reliability table, and `ece`, the mean of that of each seed."""
    rows = list(rows)
    counts, ece = stacked(rows, f"{name}.count"), mean(rows, f"{name}.ece")
    if counts is None or ece is None:
        return None
    total = counts.sum(axis=0)
    found = {"ece": ece, "count": total}
    for column in ("confidence", "accuracy"):
        values = stacked(rows, f"{name}.{column}")
        if values is None:
            return None
        found[column] = np.where(total > 0, np.nansum(counts * values, axis=0) / np.maximum(total, 1), np.nan)
    return found


def _rows(path: Path) -> tuple[list[Row], list[str]]:
    """Rows of the file; a damaged last line (a run killed while writing) is noted, one before it is an error."""
    lines = path.read_bytes().rstrip(b"\n").split(b"\n") if path.stat().st_size else []
    rows: list[Row] = []
    for place, line in enumerate(lines, start=1):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif place == len(lines):
            return rows, [f"The last line of {path.name} (line {place}) is damaged and was skipped."]
        else:
            raise UserError(f"{path}: line {place} is damaged; restore the file, or delete that line")
    return rows, []


def _row(line: bytes) -> Row | None:
    try:
        row = parsed(line)
    except ValueError:  # of JSON or of UTF-8
        return None
    needed = NEEDED.get(str(row.get("kind"))) if isinstance(row, dict) else None
    return row if needed and all(key in row for key in needed) else None


def _names(row: Row) -> set[str]:
    return set(row["learners"]) if row["kind"] == "pair" else {row["learner"]}


def _at(rows: list[Row], labels: dict[str, str], run: RunData, step: int) -> dict[str, list[Row]]:
    """Setting -> the lines of its seeds at a step, in the order of the run; of a line written twice, the later one."""
    last = {row["learner"]: row for row in rows if row["kind"] == "learner" and row["step"] == step}
    found = {it: [row for learner, row in last.items() if labels[learner] == it] for it in run.settings}
    return {setting: sorted(lines, key=lambda row: row["seed"]) for setting, lines in found.items() if lines}


def _entry(row: Row, name: str) -> Any:
    value: Any = row
    for key in name.split("."):
        value = (value or {}).get(key)
    return value
