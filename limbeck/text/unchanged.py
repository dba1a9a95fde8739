"""Whether a text is still the one that a finished run read, without tokenising it, and without asking the Hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from limbeck.errors import UserError
from limbeck.system.files import json_sha256
from limbeck.text.blocks import PARTS, corpora_of
from limbeck.text.heldout import beside, each, separate, separate_rows
from limbeck.text.rows import as_text, label_of

if TYPE_CHECKING:
    from limbeck.recipe.data import Data

KEYS = {"train": "sha256", "heldout": "heldout_sha256"}  # what the facts of a text call the hash of each part


def changed(data: Data, facts: Mapping[str, Any]) -> dict[str, str]:
    """What of a text is not what its facts say: `sha256`, `heldout_sha256`, `unlabelled`, `mixture` -> why, empty where it reads well.

    Files and versions that are the same are not read again. Copies of rows are never made again: a task with `augment` has
    changed where its files have.
    """
    found = _changed(data, facts)
    for place, other in data.others.items():
        table, _, name = place.partition(".")
        if _changed(beside(data, other), facts[table][name] if name else facts[table]).keys() & {"sha256"}:
            found[table] = ""
    return found


def _changed(data: Data, facts: Mapping[str, Any]) -> dict[str, str]:
    specs = [one.corpus for one in each(data)] + ([data.heldout] if isinstance(data.heldout, str) else [])
    if any(spec.startswith("hub:") for spec in specs):
        return {}
    known = facts.get("corpora_sha256")  # runs of earlier versions have none
    try:
        if known == json_sha256(corpora_of(data)):
            return {}
        if data.task and data.task.augment:
            return {"sha256": ""} if known else {}
        now = _hashes(data)
    except UserError as error:
        return {"sha256": str(error).partition(";")[0]}
    return {key: "" for part, key in KEYS.items() if now[part] != facts[key]}


def _hashes(data: Data) -> dict[str, str]:
    """The hash of the text of each part, as it is written when the text is tokenised."""
    found = {part: hashlib.sha256() for part in PARTS}
    for part, text in _texts(data):
        if part in found:
            found[part].update(text.encode() + b"\0")
    return {part: one.hexdigest() for part, one in found.items()}


def _texts(data: Data) -> Iterator[tuple[str, str]]:
    """(part, text) of every document, or of every row all that is hashed of it."""
    if data.task is None:
        yield from ((part, text) for part, _, text in separate(data))
    else:
        for part, name, row in separate_rows(data):
            yield part, as_text(row, label_of(row, name, data.task.kind)) if part in PARTS else ""
