"""Several run directories as one: the arms of a study, or whatever runs are to be compared on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.errors import UserError
from limbeck.lab.read import Lines, Run, read
from limbeck.rundir import MANIFEST, RECIPE, STUDY, read_json


class Part(NamedTuple):
    """One of the runs that are joined: what stands before its notes, and what its settings are called."""

    name: str
    run: Run
    shown: Mapping[str, str]


def gather(folder: str | Path) -> Run:
    """A run directory, or the arms of a study that have begun.

    Raises:
        UserError: it is neither, or no arm has begun.
    """
    folder = Path(folder)
    if not (folder / STUDY).is_file():
        return read(folder)
    told = _study(folder)
    parts = [
        Part(arm["name"] or arm["folder"], read(folder / arm["folder"]), arm["settings"])
        for arm in told["arms"]
        if (folder / arm["folder"] / MANIFEST).is_file()
    ]
    if not parts:
        raise UserError(f"{folder}: no arm of this study has begun; run its recipe")
    missing = len(told["arms"]) - len(parts)
    notes = [f"{missing} of {len(told['arms'])} arms have not begun."] if missing else []
    return join(folder, str(told.get("name") or folder.name), parts, notes)


def several(folders: Sequence[str | Path], out: Path) -> Run:
    """Runs side by side, their settings under the names of their runs where two share one."""
    runs = [gather(folder) for folder in folders]
    names = [Path(folder).resolve().name for folder in folders]
    counts: dict[str, int] = {}
    for run in runs:
        for setting in run.settings:
            counts[setting] = counts.get(setting, 0) + 1
    parts = [
        Part(name, run, {it: f"{name} {it}" if counts[it] > 1 else it for it in run.settings})
        for name, run in zip(names, runs, strict=True)
    ]
    return join(out, " and ".join(names), parts, [])


def join(folder: Path, name: str, parts: Sequence[Part], notes: Sequence[str]) -> Run:
    """One run of many: settings under the names that the parts give them.

    What the page says of model and text is the first one's; where others differ, a note says so.
    """
    first = parts[0].run
    metrics: Lines = {}
    evals: dict[str, Lines] = {}
    for part in parts:
        metrics |= _renamed(part.run.metrics, part.shown)
        for split, lines in part.run.evals.items():
            evals.setdefault(split, {}).update(_renamed(lines, part.shown))
    students = {
        f"{part.name}: {learner}": facts
        for part in parts
        for learner, facts in (part.run.manifest.get("students") or {}).items()
    }
    manifest = first.manifest | {"name": name, "students": students}
    said = [*notes, *(f"{part.name}: {note}" for part in parts for note in part.run.notes)]
    said += [line for what in ("data", "teacher") if (line := _differs(what, parts))]
    recipe = folder / RECIPE
    text = recipe.read_text(encoding="utf-8") if recipe.is_file() else first.recipe
    return Run(folder, manifest, text, metrics, evals, tuple(dict.fromkeys(said)))


def _study(folder: Path) -> dict[str, Any]:
    try:
        told = read_json(folder / STUDY)
        return told | {"arms": [dict(arm) for arm in told["arms"]]}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder / STUDY}: is damaged; restore it, or run the recipe again") from None


def _renamed(lines: Lines, shown: Mapping[str, str]) -> Lines:
    """The lines under other names; tied learners keep what is behind the setting's own: mutual-a."""
    found: Lines = {}
    for (label, seed), rows in lines.items():
        setting = max((it for it in shown if label == it or label.startswith(f"{it}-")), key=len, default=label)
        found[shown.get(setting, setting) + label.removeprefix(setting), seed] = rows
    return found


def _differs(what: str, parts: Sequence[Part]) -> str | None:
    """A sentence where the parts were not trained on, or taught by, the same."""
    seen = {str((part.run.manifest.get(what) or {}).get("sha256")) for part in parts}
    words = {"data": "trained on different text", "teacher": "measured against different teachers"}
    return f"The runs were {words[what]}; shown is the first one's." if len(seen) > 1 else None
