"""Whether a text is still the one that a finished run read, without tokenising it, and without asking the Hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from limbeck.errors import UserError
from limbeck.system.files import json_sha256
from limbeck.text.blocks import PARTS, corpora_of
from limbeck.text.heldout import beside, each

if TYPE_CHECKING:
    from limbeck.recipe.data import Data

KEYS = {"train": "sha256", "heldout": "heldout_sha256"}  # what the facts of a text call the hash of each part


Texts = Callable[["Data"], Iterator[tuple[str, str]] | None]


def changed(data: Data, facts: Mapping[str, Any], texts: Texts) -> dict[str, str]:
    """What of a text is not what its facts say: `sha256`, `heldout_sha256`, `unlabelled`, `mixture` -> why, empty where it reads well.

    Files and versions that are the same are not read again. `texts` gives (part, text) of every document as it was hashed; where it gives
    None, as of a task whose rows have copies, the text has changed where its files have.
    """
    found = _changed(data, facts, texts)
    for place, other in data.others.items():
        table, _, name = place.partition(".")
        if _changed(beside(data, other), facts[table][name] if name else facts[table], texts).keys() & {"sha256"}:
            found[table] = ""
    return found


def _changed(data: Data, facts: Mapping[str, Any], texts: Texts) -> dict[str, str]:
    specs = [one.corpus for one in each(data)] + ([data.heldout] if isinstance(data.heldout, str) else [])
    if any(spec.startswith("hub:") for spec in specs):
        return {}
    known = facts.get("corpora_sha256")  # runs of earlier versions have none
    try:
        if known == json_sha256(corpora_of(data)):
            return {}
        if (read := texts(data)) is None:
            return {"sha256": ""} if known else {}
        now = _hashes(read)
    except UserError as error:
        return {"sha256": str(error).partition(";")[0]}
    return {key: "" for part, key in KEYS.items() if now[part] != facts[key]}


def _hashes(texts: Iterator[tuple[str, str]]) -> dict[str, str]:
    """The hash of the text of each part, as it is written when the text is tokenised."""
    found = {part: hashlib.sha256() for part in PARTS}
    for part, text in texts:
        if part in found:
            found[part].update(text.encode() + b"\0")
    return {part: one.hexdigest() for part, one in found.items()}
