"""The files of a run directory: their names, how they are read, and how they are written (whole or not at all)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from limbeck.errors import UserError

RECIPE = "recipe.yaml"
MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
EVALS = "evals.jsonl"
REASONS = "reasons.jsonl"
PROFILE = "profile.json"  # what the models cost when they answer
LINES = (METRICS, EVALS, REASONS)  # the files that grow line by line
REPORT = "report.html"
STUDY = "study.json"  # of a study of several arms
DOCUMENTS = "evals"  # evals/step-000200.parquet
CHECKPOINTS = "checkpoints"
STUDENTS = "students"
FIGURES = "figures"


def step_name(step: int) -> str:
    """`step-000200`."""
    return f"step-{step:06d}"


def write_text(path: Path, text: str) -> None:
    """Replaces the file in one stroke: a reader sees the old text or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON in one stroke: a number that is not finite becomes null."""
    write_text(path, json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def append_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Appends one JSON object a line and flushes it."""
    text = "".join(json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def read_lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """All whole lines of a JSON-lines file, and whether a damaged last line was left out."""
    rows, lines = [], path.read_bytes().split(b"\n") if path.exists() else []
    lines = lines[:-1] if lines and not lines[-1] else lines
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise UserError(
                    f"{path}, line {number}: not JSON; the file is damaged, restore it or run again"
                ) from None
            return rows, True
    return rows, False


def keep_until(path: Path, step: int) -> None:
    """Drops the lines of steps after `step` (they are trained again after a resume)."""
    if path.exists():
        rows, _ = read_lines(path)
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows if row["step"] <= step))


def finite(value: Any) -> Any:
    """The value with every number that is not finite replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
