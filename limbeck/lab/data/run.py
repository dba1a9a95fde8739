"""Reads a run directory into a value: manifest, recipe, metrics and evaluations as numpy columns."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import UserError, printable
from limbeck.recipe import actor_names, plain_yaml
from limbeck.rundir import EVALS, MANIFEST, METRICS, RECIPE
from limbeck.system.files import path_of

Row = dict[str, Any]
Lines = dict[tuple[str, int], list[Row]]  # (setting, seed) -> rows in the order of their steps
OWN_TEACHERS = (
    "Each setting has a teacher of its own, a student of an earlier stage: what is measured against the teacher "
    "(its loss, agreement) does not compare across settings."
)
IDENTITY = {"step": int, "setting": str, "seed": int, "learner": str}  # what every line must carry


@dataclass(frozen=True)
class RunData:
    """The numbers of one run directory; make it with `read`.

    manifest: content of manifest.json. recipe: text of recipe.yaml ("" if there is none). settings: names in
    the order in which the run trains them; tied learners of one setting ("mutual-seed0-a") appear one by one
    ("mutual-a"). splits: the evaluated splits, such as ["train", "test"]. notes: sentences on what is
    missing, damaged or unfinished. own_ends: each setting is told at its own last step, not at the last one that all
    have reached. against: the setting that verdicts compare with; None: all pairs.
    """

    folder: Path
    manifest: dict[str, Any]
    recipe: str
    metrics: Lines
    evals: dict[str, Lines]
    notes: tuple[str, ...]
    own_ends: bool = False
    against: str | None = None

    @property
    def name(self) -> str:
        """The name of the study; that of the folder if the manifest has none."""
        return str(self.manifest.get("name") or self.folder.resolve().name)

    @property
    def settings(self) -> list[str]:
        """Names of the settings, in the order of the run."""
        return list(dict.fromkeys(setting for setting, _ in self.metrics))

    @property
    def splits(self) -> list[str]:
        """Names of the evaluated splits."""
        return list(self.evals)

    def seeds(self, setting: str) -> list[int]:
        """Seeds of a setting, rising."""
        return sorted(seed for name, seed in self.metrics if name == setting)

    def series(self, name: str, setting: str, seed: int, split: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Steps `[N]` and values `[N]` of one column; `[N, L]` for a list over layers, nan for null.

        name: a column ("logit_loss", "grad_norm_layers") or one entry of a mapping ("terms.hidden").
        split: None reads the training metrics, "train" or "test" the evaluations. Nothing recorded: empty.
        """
        lines = self.metrics if split is None else self.evals.get(split, {})
        rows = lines.get((setting, seed), [])
        steps = np.array([row["step"] for row in rows], dtype=np.int64)
        return steps, _column([_entry(row, name) for row in rows])

    def terms(self, setting: str) -> list[str]:
        """Names of the loss terms of a setting, in the order in which they were recorded."""
        rows = (row for seed in self.seeds(setting) for row in self.metrics[setting, seed])
        return list(dict.fromkeys(term for row in rows for term in row.get("terms") or {}))

    def has(self, name: str, split: str | None = None) -> bool:
        """Whether any setting recorded a finite value of this column."""
        return any(np.isfinite(self.series(name, setting, seed, split)[1]).any() for setting, seed in self.metrics)

    @property
    def taught(self) -> bool:
        """Whether anything was measured against a teacher."""
        return any(self.has("logit_loss", split) for split in (None, *self.splits))

    @property
    def shares_teacher(self) -> bool:
        """Whether all settings are measured against one teacher, or one of their seed; not each against its own."""
        told = [self.manifest.get("teacher"), *(self.manifest.get("teachers") or [])]
        names = [str(teacher["name"]) for teacher in told if teacher and teacher.get("name")]
        played = [actor_names.role_and_student(name) for name in names]
        known = [(role, actor_names.setting_and_seed(student)) for role, student in played]
        roles = {(role, who[0]) for role, who in known if who and actor_names.is_of_measure(role)}
        return len(roles) == len({role for role, _ in roles})

    @property
    def data(self) -> dict[str, Any]:
        """What the manifest says of the text or rows."""
        return self.manifest.get("data") or {}

    @property
    def table(self) -> dict[str, Any]:
        """The recipe of this run; of a staged one the stage's own."""
        table = plain_yaml.of_run(self.recipe)
        if not isinstance(table, dict):
            return {}
        return next((it for it in table.get("stages") or [] if it.get("stage") == self.manifest.get("stage")), table)

    @property
    def task(self) -> str | None:
        """classification or regression; None for running text."""
        classes = self.data.get("classes")
        return None if classes is None else "classification" if classes else "regression"


def read(folder: str | Path) -> RunData:
    """Read a run directory.

    Raises UserError when the folder, its manifest or its metrics are missing or damaged. A damaged *last*
    line of a .jsonl file (a run killed while writing) is skipped and noted.

    Example: `steps, loss = read("runs/first").series("logit_loss", "multi", seed=0, split="test")`
    """
    folder = path_of(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run directory; give the folder that `limbeck run` wrote")
    notes: list[str] = []
    manifest = manifest_of(folder)
    if manifest.get("written"):
        raise UserError(f"{folder}: this stage wrote a text and has no page; give the folder of a stage that trained")
    rows = _last_stage(_jsonl(_need(folder, METRICS), notes), notes)
    if not rows:
        raise UserError(f"{folder / METRICS}: no training step yet; let the run take its first steps")
    metrics = _by_learner(rows)
    evals = _evals(folder, rows[-1].get("stage"), notes)
    recipe = folder / RECIPE
    if not recipe.is_file():
        notes.append(f"{RECIPE} is missing: the page cannot show the recipe.")
    notes += _unfinished(manifest, rows) + _kept(manifest)
    metrics, evals = _without_failed(manifest, metrics, evals, notes)
    text = recipe.read_text(encoding="utf-8") if recipe.is_file() else ""
    run = RunData(folder, manifest, text, metrics, evals, tuple(notes))
    return run if run.shares_teacher else replace(run, notes=(*notes, OWN_TEACHERS))


def parsed(text: bytes) -> Any:
    """JSON of a run directory, which may be a stranger's: what is not printable is written as its code, everywhere alike."""
    value = json.loads(text)
    return value if text.isascii() and b"\\" not in text else shown(value)


def shown(value: Any) -> Any:
    """A value of which every text, and every name, is printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [shown(each) for each in value]
    return {shown(name): shown(each) for name, each in value.items()} if isinstance(value, dict) else value


def _need(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise UserError(f"{folder}: {name} is missing; give a folder that `limbeck run` wrote")
    return folder / name


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest of a run directory; raises UserError where there is none, or a damaged one."""
    path = _need(folder, MANIFEST)
    try:
        manifest = parsed(path.read_bytes())
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict):
        raise UserError(f"{path}: not a JSON object; restore the file, or run the recipe again")
    return manifest


def _jsonl(path: Path, notes: list[str]) -> list[Row]:
    """Rows of a file of JSON lines; a damaged last line is noted, a damaged line before it is an error."""
    lines = path.read_bytes().split(b"\n")
    lines = lines[:-1] if lines[-1] == b"" else lines
    rows = []
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif number == len(lines):
            notes.append(f"The last line of {path.name} (line {number}) is damaged and was skipped.")
        else:
            raise UserError(f"{path}: line {number} is damaged; restore the file, or delete that line")
    return rows


def _row(line: bytes) -> Row | None:
    try:
        row = parsed(line)
    except ValueError:  # of JSON or of UTF-8
        return None
    whole = isinstance(row, dict) and all(isinstance(row.get(key), kind) for key, kind in IDENTITY.items())
    return row if whole else None


def _last_stage(rows: list[Row], notes: list[str]) -> list[Row]:
    stages = list(dict.fromkeys(row.get("stage") for row in rows))
    if len(stages) > 1:
        notes.append(f"The run has the stages {', '.join(map(str, stages))}; shown is the last one only.")
    return [row for row in rows if row.get("stage") == stages[-1]]


def _evals(folder: Path, stage: object, notes: list[str]) -> dict[str, Lines]:
    path = folder / EVALS
    rows = _jsonl(path, notes) if path.is_file() else []
    rows = [row for row in rows if row.get("stage") == stage]
    if not rows:
        notes.append("The run has no evaluation yet: what is measured on test text is missing.")
    splits = sorted({str(row.get("split")) for row in rows}, key=lambda split: (split != "train", split))
    return {s: _by_learner([row for row in rows if row.get("split") == s]) for s in splits}


def _by_learner(rows: list[Row]) -> Lines:
    """Rows per (setting, seed), by step; of a step that was written twice, the later row counts."""
    found: dict[tuple[str, int], dict[int, Row]] = {}
    for row in rows:
        found.setdefault((_label(row), row["seed"]), {})[row["step"]] = row
    return {key: [steps[step] for step in sorted(steps)] for key, steps in found.items()}


def _label(row: Row) -> str:
    """The setting, and the learner's own name where a setting ties several: mutual-seed0-a -> mutual-a."""
    return row["setting"] + actor_names.peer(row)


def _without_failed(
    manifest: dict[str, Any], metrics: Lines, evals: dict[str, Lines], notes: list[str]
) -> tuple[Lines, dict[str, Lines]]:
    """The learners that have not failed, which are the ones that can be compared; of a run without any, all."""
    failed = manifest.get("failed") or {}
    notes += [f"Failed: {line}." for line in dict.fromkeys(failed.values())]
    left = {key: rows for key, rows in metrics.items() if rows[-1]["learner"] not in failed}
    if not left:
        return metrics, evals
    return left, {split: {key: rows for key, rows in lines.items() if key in left} for split, lines in evals.items()}


def _unfinished(manifest: dict[str, Any], rows: list[Row]) -> list[str]:
    last, status = max(row["step"] for row in rows), manifest.get("status")
    if status == "done":
        return []
    if status == "failed":
        return [f"No setting of the run has ended; shown is what they left, up to step {last}."]
    how = "was interrupted" if status == "interrupted" else "has not ended (it is running, or was killed)"
    return [f"The run {how}; shown is what it left, up to step {last}."]


def _kept(manifest: dict[str, Any]) -> list[str]:
    """That the last evaluation is of the best weights, where it is."""
    if not manifest.get("kept_by"):
        return []
    by = str(manifest["kept_by"]).replace("_", " ")
    return [
        f"At the last step stand the weights that each student keeps: those of its best evaluation on held-out data, by {by}. "
        "The same data chose and measure them, so that these numbers are a little too good, for all settings alike.",
        *(
            f"{name} waited long enough for a better one, and ended at step {step}."
            for name, step in (manifest.get("ended") or {}).items()
        ),
    ]


def _entry(row: Row, name: str) -> Any:
    if name in row:
        return row[name]
    outer, _, inner = name.partition(".")
    return (row.get(outer) or {}).get(inner) if inner else None


def _column(values: list[Any]) -> np.ndarray:
    if not any(isinstance(value, list) for value in values):
        return np.array([_number(value) for value in values], dtype=np.float64)
    width = max(len(value) for value in values if isinstance(value, list))
    table = np.full((len(values), width), np.nan)
    for place, value in zip(table, values, strict=True):
        for layer, number in enumerate(value if isinstance(value, list) else []):
            place[layer] = _number(number)
    return table


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
