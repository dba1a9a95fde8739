"""Which documents, or rows, are held out: by a hash of each, so that no text is on both sides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from limbeck.recipe.data import Data, Mixture, Unlabelled
from limbeck.recipe.stage_texts import corpora, parts
from limbeck.text.corpora import Split, find_files, read_documents, read_rows
from limbeck.text.readers import (
    Document,
    Row,
)

T = TypeVar("T")
Source = tuple[str, Split]  # a corpus, and which part of its folder

VALIDATION = 0.02  # share of the training text that validates where the test has a corpus of its own


def heldout_source(data: Data) -> Source | None:
    """Where the held-out documents are read from; None where they are drawn from the corpus by their hash.

    A corpus named by `data.heldout` comes first, then the dev* or valid* files of the corpus's own folder.
    """
    spec = data.heldout if isinstance(data.heldout, str) else data.corpus
    if find_files(spec, "heldout"):
        return spec, "heldout"
    return (spec, "train") if isinstance(data.heldout, str) else None


def lying(data: Data) -> list[str]:
    """Every corpus that a table names and that no stage has to write first.

    Raises:
        UserError: one on this disk is not there.
    """
    specs = [spec for _, spec in corpora(data) if not spec.startswith("$")]
    for spec in specs:
        find_files(spec)
    return specs


def separate(data: Data) -> Iterator[tuple[str, str, str]]:
    """Every document once, as (part, name, text): first what separate held-out corpora hold, then corpus by corpus.

    The part is `heldout`, `train`, or `both`: training text that is word for word a document of a separate
    held-out corpus and must not be trained on. Drawn by hash, all copies of a text fall on the same side. With the fold
    `validation` other training text is held out, and what the test holds out is `aside`; so is what `data.train_share` leaves out.
    """

    def read(spec: str, split: Split, max_bytes: int | None) -> Iterator[Document]:
        how = {"field": data.field, "separator": data.separator, "longest": data.longest}
        return read_documents(spec, max_bytes=max_bytes, split=split, **how)

    return _separate(data, read, str)


def separate_rows(data: Data) -> Iterator[tuple[str, str, Row]]:
    """Every row of a task once, as (part, name, row): as `separate`, where equal means equal text and equal pair."""
    assert data.task is not None
    columns = data.task.columns

    def read(spec: str, split: Split, max_bytes: int | None) -> Iterator[tuple[str, Row]]:
        return read_rows(spec, columns, split, max_bytes, data.longest)

    def text(row: Row) -> str:
        return row["text"] if row["pair"] is None else json.dumps([row["text"], row["pair"]])

    return _separate(data, read, text)


def _separate(data: Data, read: Read[T], text: Callable[[T], str]) -> Iterator[tuple[str, str, T]]:
    sources, (apart, drawn) = {one.corpus: heldout_source(one) for one in each(data)}, beyond(data)
    separate_ones: list[Source] = list(dict.fromkeys(source for source in (*sources.values(), *apart) if source))
    heldout: set[bytes] = set()
    validates = data.fold == "validation"
    for spec, split in separate_ones:
        for name, item in read(spec, split, None):
            heldout.add(_digest(text(item)))
            yield "aside" if validates else "heldout", name, item
    for corpus, source in sources.items():
        share = float(data.heldout) if source is None else VALIDATION * validates
        bound = share if source is None else 0.0  # below it lies what the test draws
        for name, item in read(corpus, "train", data.max_bytes):
            digest = _digest(text(item))
            place = int.from_bytes(digest[:8], "big") / 2**64
            mine = bound <= place < bound + share if validates else place < share
            left_out = int.from_bytes(digest[8:16], "big") / 2**64 >= data.train_share
            part = "heldout" if mine else "aside" if place < max(bound, drawn) or left_out else "train"
            yield "both" if digest in heldout else part, name, item


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


Read = Callable[[str, Split, int | None], Iterator[tuple[str, T]]]  # (corpus, split, max_bytes) -> (name, item)


class BesideData(Data):
    """The table of a text beside the corpus: nobody is measured on it, and what the corpus holds out is not read in it."""

    apart: tuple[Source, ...] = ()  # the separate texts that the corpus holds out
    drawn: float = 0.0  # the share that it draws by hash, for the test and for validation


def beside(data: Data, other: Unlabelled | Mixture, classes: Sequence[str] = ()) -> BesideData:
    """Another text beside a corpus as a table of its own."""
    bare = {} if other.labels else {"label": None}
    task = data.task and data.task.model_copy(update=bare | {"classes": tuple(classes) or None})
    sources = [heldout_source(one) for one in each(data)]
    apart = tuple(dict.fromkeys(source for source in sources if source))
    drawn = float(data.heldout) * (1 + (data.fold == "validation")) if None in sources else 0.0
    words = {"corpus": other.corpus, "task": task, "unlabelled": None, "mixture": {}, "max_bytes": None}
    words |= {"heldout": apart[0][0] if len({spec for spec, _ in apart}) == 1 else data.heldout}
    return BesideData.model_construct(**dict(data) | words, apart=apart, drawn=drawn)


def beyond(data: Data) -> tuple[list[Source], float]:
    """What a text beside the corpus leaves out beyond its own `heldout`: separate texts, and a share by hash."""
    if not isinstance(data, BesideData):
        return [], 0.0
    sources = [heldout_source(one) for one in each(data)]
    return [source for source in data.apart if source not in sources], data.drawn if any(sources) else 0.0


def each(data: Data) -> list[Data]:
    """One `Data` for every corpus that `data.corpus` joins by ` + `."""
    return [data.model_copy(update={"corpus": spec}) for spec in parts(data.corpus)]
