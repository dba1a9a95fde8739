"""Several run directories as one: the arms of a study, or whatever runs are to be compared on one page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.errors import UserError
from limbeck.lab.data.run import Lines, Row, RunData, read
from limbeck.recipe import actor_names
from limbeck.rundir import MANIFEST, METRICS, RECIPE, STUDY
from limbeck.system.files import path_of, read_json, read_lines

DIFFER = {  # in the manifest -> what is said where runs have different ones
    "data.sha256": "trained on different text",
    "data.heldout_sha256": "measured on different text",
    "data.classes": "asked for different classes",
    "teacher.sha256": "measured against different teachers",
}


class RunPart(NamedTuple):
    """One of the runs that are joined: what stands before its notes, and what its settings are called."""

    name: str
    run: RunData
    shown: Mapping[str, str]


@dataclass(frozen=True)
class Joined(RunData):
    """One run of many, and what it was made of."""

    parts: tuple[RunPart, ...] = ()


def gather(folder: str | Path) -> RunData:
    """A run directory, or the arms of a study that have begun.

    Raises:
        UserError: it is neither, or no arm has begun.
    """
    folder = path_of(folder)
    if not (folder / STUDY).is_file():
        return read(folder)
    told = _study(folder)
    parts = [
        RunPart(arm["name"] or arm["folder"], read(folder / arm["folder"]), arm["settings"])
        for arm in told["arms"]
        if _begun(folder / arm["folder"])
    ]
    if not parts:
        raise UserError(f"{folder}: no arm of this study has begun; run its recipe")
    missing = len(told["arms"]) - len(parts)
    notes = [f"{missing} of {len(told['arms'])} arms have not begun."] if missing else []
    own_ends = len({arm["steps"] for arm in told["arms"]}) > 1
    return join(folder, str(told.get("name") or folder.name), parts, notes, own_ends)


def several(folders: Sequence[str | Path], out: Path) -> RunData:
    """Runs side by side; where two runs share the name of a setting, it has that of its run too, or alone if it is the only one.

    Raises:
        UserError: a folder is no run, or is named twice; the runs have nothing that can be compared.
    """
    runs = [gather(folder) for folder in folders]
    names = _names(folders)
    _of_one_kind(names, runs)
    counts: dict[str, int] = {}
    for run in runs:
        for setting in run.settings:
            counts[setting] = counts.get(setting, 0) + 1
    parts = []
    for name, run in zip(names, runs, strict=True):
        alone = len(run.settings) == 1 and (name in run.settings or name not in counts)
        told = {it: it if counts[it] == 1 else name if alone else f"{name} {it}" for it in run.settings}
        parts.append(RunPart(name, run, told))
    return join(out, " and ".join(names), parts, _stages_before(parts), _ended_apart(runs))


def _ended_apart(runs: Sequence[RunData]) -> bool:
    """Whether all are done, after different numbers of updates."""
    done = all(run.manifest.get("status") == "done" for run in runs)
    return done and len({rows[-1]["step"] for run in runs for rows in run.metrics.values()}) > 1


def _stages_before(parts: Sequence[RunPart]) -> list[str]:
    """Sentences on runs that came after stages of their own, whose cost no line of theirs holds."""
    before = [dict(part.run.manifest.get("earlier") or {}) for part in parts]
    hashes = [{name: stage.get("recipe_sha256") for name, stage in stages.items()} for stages in before]
    if all(each == hashes[0] for each in hashes):
        return []
    return _once(
        (
            part.name,
            f"trained after {' and '.join(stages)}; updates, time and compute are those of the last stage alone.",
        )
        for part, stages in zip(parts, before, strict=True)
        if stages
    )


def _of_one_kind(names: Sequence[str], runs: Sequence[RunData]) -> None:
    """Whether losses and metrics have one meaning: nats of a token are no nats of a row, and no squares of scores."""
    kinds = {run.task or "running text": name for name, run in zip(names, runs, strict=True)}
    if len(kinds) > 1:
        (first, one), (second, other), *_ = kinds.items()
        raise UserError(f"{one} is about {first} and {other} about {second}; name runs of one kind")


def _names(folders: Sequence[str | Path]) -> list[str]:
    """What runs are called: the ends of their paths, as long as it takes to tell them apart."""
    paths = [path_of(folder).resolve().parts for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"{Path(*path)}: is named twice; name different runs")
    found = []
    for path in paths:
        length = next(n for n in range(1, len(path) + 1) if sum(other[-n:] == path[-n:] for other in paths) == 1)
        found.append("/".join(path[-length:]))
    return found


def _begun(folder: Path) -> bool:
    """Whether there is a first step to read."""
    return (folder / MANIFEST).is_file() and bool(read_lines(folder / METRICS)[0])


def join(folder: Path, name: str, parts: Sequence[RunPart], notes: Sequence[str], own_ends: bool) -> Joined:
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
    manifest = first.manifest | {"name": name, "students": students, "earlier": {}}  # their own pages have those
    said = [*notes, *_once((part.name, note) for part in parts for note in part.run.notes)]
    said += [line for what in DIFFER if (line := _differs(what, parts))]
    recipe = folder / RECIPE
    text = recipe.read_text(encoding="utf-8") if recipe.is_file() else first.recipe
    return Joined(folder, manifest, text, metrics, evals, tuple(dict.fromkeys(said)), own_ends, parts=tuple(parts))


def _once(said: Iterable[tuple[str, str]]) -> list[str]:
    """Sentences of runs, each once, behind the names of those that say it."""
    names: dict[str, list[str]] = {}
    for name, sentence in said:
        names.setdefault(sentence, []).append(name)
    return [f"{', '.join(whose)}: {sentence}" for sentence, whose in names.items()]


def _study(folder: Path) -> dict[str, Any]:
    try:
        told = read_json(folder / STUDY)
        return told | {
            "arms": [
                {word: arm[word] for word in ("name", "folder", "settings")} | {"steps": arm.get("steps")}
                for arm in told["arms"]
            ]
        }
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder / STUDY}: is damaged; restore it, or run the recipe again") from None


def called(label: str, shown: Mapping[str, str]) -> str:
    """A setting under its other name; tied learners keep what is behind the setting's own: mutual-a, mutual-a lr=0.1."""
    setting = max((it for it in shown if label == it or label.startswith(f"{it}-")), key=len, default=label)
    name, suffix = shown.get(setting, setting), label.removeprefix(setting)
    own, more = (setting, name.removeprefix(setting)) if name.startswith(setting) else (name, "")
    return own + suffix + more


def together(label: str, row: Row) -> str:
    """What tied learners are called together, one of which has this label and line: mutual of mutual-a, mutual lr=0.1."""
    setting, suffix = row["setting"], actor_names.peer(row)
    if label.startswith(setting + suffix):
        return setting + label.removeprefix(setting + suffix)
    return label.removesuffix(suffix)


def _renamed(lines: Lines, shown: Mapping[str, str]) -> Lines:
    return {(called(label, shown), seed): rows for (label, seed), rows in lines.items()}


def _differs(what: str, parts: Sequence[RunPart]) -> str | None:
    """A sentence where the parts were not trained on, or measured by, the same; one without a teacher differs from none."""
    table, word = what.split(".")
    seen = {str(told) for part in parts if (told := (part.run.manifest.get(table) or {}).get(word)) is not None}
    return f"The runs were {DIFFER[what]}; shown is the first one's." if len(seen) > 1 else None
