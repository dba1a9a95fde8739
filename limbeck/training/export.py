"""Finished students as plain Hugging Face folders: weights, config, tokenizer, model card. Projections stay behind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from limbeck import rundir
from limbeck.distil.learner import Learner
from limbeck.models import compressed, exits
from limbeck.recipe import actor_names

NAMES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}


def export(folder: Path, learner: Learner, tokenizer: PreTrainedTokenizerBase, card: str) -> Path:
    """Writes `students/NAME`, whole or not at all; `AutoModel...from_pretrained` loads it without limbeck.

    A student with early exits also leaves their heads there, and the plain model up to each exit in `exit-LAYER`.
    """
    place = folder / rundir.STUDENTS / learner.name
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    model, small = learner.folded()
    model.save_pretrained(temporary)
    if small:
        compressed.write(temporary, small)
    if learner.exits:
        exits.save(temporary, learner.exits)
        for tap, head in learner.exits.items():
            layer = int(tap.removeprefix("exit."))
            small = temporary / f"exit-{layer}"
            exits.cut(model, head, layer).save_pretrained(small)
            tokenizer.save_pretrained(small)
    tokenizer.save_pretrained(temporary)
    (temporary / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(place, ignore_errors=True)
    temporary.rename(place)
    return place


def model_card(
    manifest: dict[str, Any], recipe: str, who: Mapping[str, Any], learner: str, numbers: list[dict[str, Any]]
) -> str:
    """The card of one student: recipe, teachers, data, numbers, versions; of files and folders their names alone.

    Args:
        manifest: of the run.
        recipe: text of its recipe.yaml.
        who: the `setting` and the `seed` that trained the student.
        learner: the student's name.
        numbers: its last rows of evals.jsonl, one a split.
    """
    manifest, recipe = rundir.shared(manifest), rundir.shared_recipe(recipe)
    data, setting = manifest["data"], who["setting"]
    noun = "documents" if data.get("classes") is None else "rows"
    about = [
        *(f"- {line}" for line in _teachers(manifest, setting, who["seed"])),
        f"- student: {manifest['students'][learner]['parameters']:,} parameters",
        f"- data: {_text(data, noun)}",
        *_weights(manifest, numbers),
        *([f"- unlabelled: {_text(data['unlabelled'], noun)}"] if data.get("unlabelled") else []),
        *(f"- mixed with {name}: {_text(other, noun)}" for name, other in data.get("mixture", {}).items()),
        *([f"- classes: {', '.join(map(str, data['classes']))}"] if data.get("classes") else []),
    ]
    table = "\n".join("| " + " | ".join(line) + " |" for line in _table(numbers))
    return f"""---
library_name: transformers
tags: [limbeck, distillation]
---

# {manifest["name"]}: {learner}

Trained with limbeck {manifest["versions"]["limbeck"]} by the setting `{setting}`.

{chr(10).join(about)}

## Numbers

{_measured(data, numbers)}

{table}

## Recipe

```yaml
{recipe.strip()}
```

## Versions

{", ".join(f"{name} {number}" for name, number in manifest["versions"].items())}
"""


def _weights(manifest: dict[str, Any], numbers: list[dict[str, Any]]) -> list[str]:
    """Which weights these are, where they are not the last."""
    if not numbers or numbers[0].get("kept_step") is None:
        return []
    by, step = manifest["kept_by"].replace("_", " "), numbers[0]["kept_step"]
    return [f"- weights: of update {step:,}, whose evaluation on held-out data was the best by {NAMES.get(by, by)}"]


def _teachers(manifest: dict[str, Any], setting: str, seed: int) -> list[str]:
    """One line for each; of students of an earlier stage those that teach this learner."""
    told = [teacher for teacher in (manifest["teacher"], *manifest.get("teachers", [])) if teacher]
    roles: dict[str, list[dict[str, Any]]] = {}
    for teacher in told:
        roles.setdefault(_role_and_student(teacher)[0], []).append(teacher)
    found = []
    for role, players in roles.items():
        known = [(actor_names.setting_and_seed(_role_and_student(it)[1]), it) for it in players]
        mine = [it for who, it in known if who == (setting, seed)]
        mine = mine or [it for who, it in known if who and who[1] == seed] or players
        found += [f"{role}: {_described(teacher)}" for teacher in mine]
    return found or ["teacher: none: trained on labels alone"]


def _role_and_student(teacher: dict[str, Any]) -> tuple[str, str]:
    return actor_names.role_and_student(str(teacher.get("name", "teacher")))


def _described(teacher: dict[str, Any]) -> str:
    source, student = teacher["source"], _role_and_student(teacher)[1]
    stage = source.removeprefix("$").partition("/")[0]
    who = f"`{student}` of the stage `{stage}`" if student and source.startswith("$") else f"`{source}`"
    return f"{who} ({teacher['parameters']:,} parameters, sha256 `{teacher['sha256'][:16]}`)"


def _text(data: dict[str, Any], noun: str) -> str:
    amount = f"{data['documents']:,} {noun}, {data['tokens']:,} tokens"
    return f"`{data['corpus']}`, {amount} (sha256 `{data['sha256'][:16]}`)"


def _measured(data: dict[str, Any], numbers: list[dict[str, Any]]) -> str:
    """What was measured, how much of what there is, and in which unit."""
    rows = bool(numbers[0].get("metrics"))
    counts = []
    for row in numbers:
        there = data.get(("heldout_" if row["split"] == "test" else "") + ("documents" if rows else "tokens"))
        counts.append(f"{row['tokens']:,}{'' if there is None else f' of {there:,}'} ({row['split']})")
    on = f"The run's last evaluation, on {' and '.join(counts)} {'rows' if rows else 'tokens'}; losses"
    if not rows:
        return f"{on} in nats a token."
    unit = "are squared errors" if _scored(numbers) else "in nats a row"
    return f"{on} {unit}. A metric that is not defined is left empty."


def _table(numbers: list[dict[str, Any]]) -> list[list[str]]:
    """Split by split the student, its early exits, and of a task its teacher."""
    metrics = list(numbers[0].get("metrics") or {})
    losses = {"logit_loss": "logit loss, KL(teacher, student)", "agreement": "top-1 agreement"}
    losses |= {"label_loss": "label loss", "label_accuracy": "label accuracy"}
    if _scored(numbers):
        losses = {"logit_loss": "squared error against the teacher", "label_loss": "squared error against the labels"}
    elif metrics:
        del losses["label_accuracy"]  # is among the metrics
    lines = []
    for row in numbers:
        split = row["split"]
        told: list[tuple[str, dict[str, Any]]] = [(split, row)]
        told += [
            (f"{split}, exit after layer {tap.removeprefix('exit.')}", said)
            for tap, said in row.get("exits", {}).items()
        ]
        told += [(f"{split}, the teacher", {"metrics": row["teacher_metrics"]})] if row.get("teacher_metrics") else []
        for what, said in told:
            values = [(said.get("metrics") or {}).get(name) for name in metrics] + [said.get(name) for name in losses]
            lines.append([what, *map(_number, values)])
    head = ["split", *(NAMES.get(name, name) for name in metrics), *losses.values()]
    return [head, ["---"] * len(head), *lines]


def _scored(numbers: list[dict[str, Any]]) -> bool:
    """Whether these are numbers of a regression."""
    return "pearson" in (numbers[0].get("metrics") or {})


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
