"""Rows of a task with their augmented copies, as memory-mapped rows of tokens.

`CACHE/augmented/KEY/` holds `train.bin`, `train.types.bin` and `train.idx.npy` as a tokenised task does, and `train.rows.npy`: of
every row the row of the task that it is, or is a copy of. Labels are those of that row. What is held out is not copied.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.batch import IGNORED
from limbeck.system.files import json_sha256
from limbeck.system.progress import doing
from limbeck.system.store import Facts, Tell, cache_folder, open_or_make
from limbeck.text.augment.copies import Texts
from limbeck.text.blocks import CorpusPart, counted, dtype_of
from limbeck.text.heldout import separate_rows
from limbeck.text.rows import Rows, TaskCorpus
from limbeck.text.tokenise import Encoder

if TYPE_CHECKING:
    from limbeck.recipe.data import Data

LAYOUT = 1  # of the files; a new number leaves older entries unread
FOLDER = "augmented"
BATCH = 1024  # rows that are tokenised at a time

Named = tuple[str, Texts]
Copies = Callable[[Iterator[Named]], Iterator[tuple[str, list[Texts]]]]  # rows -> each with its copies, itself first


def training(data: Data) -> Iterator[Named]:
    """(name, texts) of the rows that are trained on, in the order in which a tokenised task numbers them."""
    for part, name, row in separate_rows(data):
        if part == "train":
            yield name, _texts(row)


def entry(data: Data, corpus: TaskCorpus, encoder: Encoder, made_by: Any) -> Path:
    """The folder of the cache: named by the rows, how they are tokenised, and what the copies are a function of."""
    rows = [corpus.facts["sha256"], corpus.facts["heldout_sha256"], data.max_length, encoder.side, encoder.hashes]
    return cache_folder(data.cache) / FOLDER / json_sha256([LAYOUT, rows, made_by])


def open_augmented(
    folder: Path, data: Data, corpus: TaskCorpus, encoder: Encoder, copies: Copies, tell: Tell
) -> TaskCorpus:
    """The task whose training rows are followed by their copies, from the cache or made now.

    Args:
        folder: from `entry`.
        data: the recipe's table `data`, with a task.
        corpus: the task as it is.
        encoder: with which it was tokenised.
        copies: makes those of the training rows. One that is word for word a held-out row is left out.
        tell: receives one line for each thing that the user should know.

    Raises:
        UserError: two tokenizers disagree, or the cache cannot be written.
    """
    made = open_or_make(folder, partial(_write, data=data, encoder=encoder, copies=copies), tell)
    tokens, types = (
        np.memmap(folder / name, dtype, mode="r")
        for name, dtype in (("train.bin", made["dtype"]), ("train.types.bin", "uint8"))
    )
    starts, source = (np.load(folder / f"train.{name}.npy", allow_pickle=False) for name in ("idx", "rows"))
    labels = corpus.train.labels(source)
    rows = Rows(tokens, types, starts, labels, data.max_length, encoder.special)
    whole, before = made["train"], len(corpus.train)
    note = f"augmented: {len(rows) - before:,} copies of {before:,} training rows"
    tell(f"{note} ({folder})")
    facts = corpus.facts | whole | {"blocks": len(rows), "truncated": made["truncated"]}
    facts |= {"sha256": json_sha256([corpus.facts["sha256"], whole["sha256"]])}
    facts |= {"labelled": int((labels != IGNORED).sum()), "notes": [*corpus.facts["notes"], note]}
    return replace(corpus, train=rows, facts=facts)


def _write(folder: Path, data: Data, encoder: Encoder, copies: Copies) -> Facts:
    """Tokenise rows and copies into a folder; memory grows by 16 bytes a row, and by 32 for each held-out one."""
    source, cut, dtype = array("q"), 0, dtype_of(encoder.special)
    with (
        doing(f"tokenising copies of the rows of {data.corpus}", "rows") as done,
        CorpusPart(folder, "train", dtype) as part,
        open(folder / "train.types.bin", "wb") as types,
    ):
        held = {_digest(_texts(row)) for side, _, row in separate_rows(data) if side != "train"}
        rows = counted(_kept(copies(training(data)), held), done)
        while some := list(islice(rows, BATCH)):
            names, texts = [name for _, name, _ in some], [texts for _, _, texts in some]
            firsts, pairs = [one[0] for one in texts], [one[1] for one in texts if len(one) > 1]
            encoded = encoder.rows(names, firsts, pairs or None, data.max_length)
            for (number, _, said), row in zip(some, encoded, strict=True):
                part.add(json.dumps([*said, number]), row.ids)
                types.write(bytes(row.types))
                source.append(number)
                cut += row.cut
    np.save(folder / "train.rows.npy", np.array(source, np.int64), allow_pickle=False)
    return {"dtype": dtype, "train": part.facts(), "truncated": cut}


def _kept(rows: Iterable[tuple[str, list[Texts]]], held: set[bytes]) -> Iterator[tuple[int, str, Texts]]:
    """(number of the row, name, texts): every row, and behind it its copies that are not held out."""
    for number, (name, (first, *more)) in enumerate(rows):
        yield number, name, first
        yield from ((number, name, copy) for copy in more if _digest(copy) not in held)


def _texts(row: Any) -> Texts:
    return (row["text"],) if row["pair"] is None else (row["text"], row["pair"])


def _digest(texts: Texts) -> bytes:
    return hashlib.sha256(json.dumps(texts).encode()).digest()
