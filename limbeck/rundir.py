"""The files of a run directory: their names, how they are read, and how they are written (whole or not at all)."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from limbeck.system.files import read_lines, write_text

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
TEXT = "text.jsonl"  # of a stage that writes one
FIGURES = "figures"
ABSOLUTE = re.compile(r"(?<![\w.:/~-])(?:~?/|[A-Za-z]:\\)[^\s,;\"'`)\]}]+")  # a path that tells folders of a machine
VALUE = re.compile(  # a path that is all of a value in YAML
    r"^([ \t]*(?:- )*(?:[^\s:]+:[ \t]+)?['\"]?)((?:~?/|[A-Za-z]:\\).*?)(?=['\"]?(?: +#.*)?$)", re.MULTILINE
)


def step_name(step: int) -> str:
    """`step-000200`."""
    return f"step-{step:06d}"


def keep_until(path: Path, step: int) -> None:
    """Drops the lines of steps after `step` (they are trained again after a resume)."""
    if path.exists():
        rows, _ = read_lines(path)
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows if row["step"] <= step))


def drop_after(folder: Path, step: int) -> None:
    """Drops what a run has written of the steps after `step`: it is written again."""
    for name in LINES:
        keep_until(folder / name, step)
    for path in (folder / DOCUMENTS).glob("step-*.parquet"):
        if int(path.stem.removeprefix("step-")) > step:
            path.unlink()


def remove_left(folder: Path) -> None:
    """Removes what a writer that was killed had begun."""
    for name in (".", CHECKPOINTS, STUDENTS, DOCUMENTS, FIGURES):
        for left in (folder / name).glob(".*.tmp"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def shared(value: Any) -> Any:
    """A value of which every text may leave this machine: of an absolute path the name alone.

    >>> shared({"out": "/home/me/my runs/first", "command": "limbeck run ~/mine.yaml out=/tmp/x", "corpus": "hub:a/b"})
    {'out': 'first', 'command': 'limbeck run mine.yaml out=x', 'corpus': 'hub:a/b'}
    """
    if isinstance(value, str):
        whole = ABSOLUTE.match(value) and "\n" not in value
        return _name(value) if whole else ABSOLUTE.sub(lambda found: _name(found[0]), value)
    if isinstance(value, list):
        return [shared(each) for each in value]
    return {name: shared(each) for name, each in value.items()} if isinstance(value, dict) else value


def shared_recipe(text: str) -> str:
    """The text of a recipe as `shared` would have it.

    >>> print(shared_recipe("out: /home/me/my runs/first  # mine\\ndata: {corpus: [/a/b.txt, ~/c.txt]}"))
    out: first  # mine
    data: {corpus: [b.txt, c.txt]}
    """
    return shared("\n" + VALUE.sub(lambda found: found[1] + _name(found[2]), text))[1:]


def _name(path: str) -> str:
    """What stands behind the last slash."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path
