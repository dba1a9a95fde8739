"""Finished students as plain Hugging Face folders: weights, config, tokenizer, model card. Bridges stay behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from limbeck import exits, rundir
from limbeck.actors import Learner


def export(folder: Path, learner: Learner, tokenizer: PreTrainedTokenizerBase, card: str) -> Path:
    """Writes `students/NAME`, whole or not at all; `AutoModel...from_pretrained` loads it without limbeck.

    A student with early exits also leaves their heads there, and the plain model up to each exit in `exit-LAYER`.
    """
    place = folder / rundir.STUDENTS / learner.name
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    learner.model.save_pretrained(temporary)
    if learner.exits:
        exits.save(temporary, learner.exits)
        for tap, head in learner.exits.items():
            layer = int(tap.removeprefix("exit."))
            small = temporary / f"exit-{layer}"
            exits.cut(learner.model, head, layer).save_pretrained(small)
            tokenizer.save_pretrained(small)
    tokenizer.save_pretrained(temporary)
    (temporary / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(place, ignore_errors=True)
    temporary.rename(place)
    return place


def model_card(manifest: dict[str, Any], recipe: str, setting: str, learner: str, numbers: list[dict[str, Any]]) -> str:
    """The card of one student: recipe, teacher, data, numbers, versions."""
    teacher, data = manifest["teacher"], manifest["data"]
    rows = "\n".join(
        f"| {row['split']} | {_number(row['logit_loss'])} | {_number(row['agreement'])} "
        f"| {_number(row['label_loss'])} | {_number(row['label_accuracy'])} |"
        for row in numbers
    )
    described = (
        f"`{teacher['source']}` ({teacher['parameters']:,} parameters, sha256 `{teacher['sha256'][:16]}`)"
        if teacher
        else "none: trained on labels alone"
    )
    return f"""---
library_name: transformers
tags: [limbeck, distillation]
---

# {manifest["name"]}: {learner}

Trained with limbeck {manifest["versions"]["limbeck"]} by the setting `{setting}`.

- teacher: {described}
- student: {manifest["students"][learner]["parameters"]:,} parameters
- data: `{data["corpus"]}`, {data["documents"]:,} documents, {data["tokens"]:,} tokens (sha256 `{data["sha256"][:16]}`)

## Numbers

On the blocks of the run's last evaluation, {numbers[0]["tokens"]:,} tokens a split; losses in nats a token.

| split | logit loss, KL(teacher, student) | top-1 agreement | label loss | label accuracy |
|---|---|---|---|---|
{rows}

## Recipe

```yaml
{recipe.strip()}
```

## Versions

{", ".join(f"{name} {number}" for name, number in manifest["versions"].items())}
"""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
