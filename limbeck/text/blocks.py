"""Packed text: a corpus becomes two memory-mapped streams of tokens, cut into blocks when they are read.

`CACHE/tokens/KEY/` holds `train.bin`, `train.idx.npy`, `heldout.bin`, `heldout.idx.npy` and `facts.json`.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import tokenizers

from limbeck.errors import UserError
from limbeck.system.files import json_sha256
from limbeck.system.progress import Doing, doing
from limbeck.system.store import Facts, Tell, cache_folder, open_or_make
from limbeck.text.corpora import fingerprint
from limbeck.text.heldout import BesideData, beyond, each, heldout_source, separate
from limbeck.text.tokenise import Encoder, Special

if TYPE_CHECKING:
    from limbeck.recipe.data import Data

T = TypeVar("T")
LAYOUT = 2  # of the files; a new number leaves older entries unread
PARTS = ("train", "heldout")
BATCH_DOCUMENTS, BATCH_CHARACTERS = 1024, 1 << 20  # what is tokenised at a time


class Blocks:
    """A stream of tokens as `len(blocks)` blocks of `max_length`; what is left over at its end is dropped.

    Args:
        tokens: the stream [N], usually memory-mapped.
        starts: where each document begins in it, ascending, int64 [documents].
        max_length: tokens of a block, special tokens included.
        special: of the tokenizer.
    """

    def __init__(self, tokens: np.ndarray, starts: np.ndarray, max_length: int, special: Special) -> None:
        self.tokens = tokens
        self.documents = starts
        self.max_length = max_length
        self.special = special
        self.room = max_length - 2 if special.frame else max_length  # tokens of the stream in a block

    def __len__(self) -> int:
        return len(self.tokens) // self.room

    def rows(self, indices: Iterable[int] | np.ndarray) -> np.ndarray:
        """The tokens of the given blocks, special tokens in place: int64 [n, max_length]."""
        inner = self.tokens[self._places(indices)].astype(np.int64)
        return _between(inner, *self.special.frame) if self.special.frame else inner

    def documents_of(self, indices: Iterable[int] | np.ndarray) -> np.ndarray:
        """The number of every token's document, -1 for tokens that packing added: int32 [n, max_length]."""
        places = self._places(indices)
        inner = (np.searchsorted(self.documents, places, side="right") - 1).astype(np.int32)
        inner[np.isin(self.tokens[places], self.special.added)] = -1
        return _between(inner, -1, -1) if self.special.frame else inner

    def _places(self, indices: Iterable[int] | np.ndarray) -> np.ndarray:
        """Places in the stream [n, room]."""
        indices = np.asarray(indices, dtype=np.int64)
        if not np.all((indices >= 0) & (indices < len(self))):
            raise IndexError(f"blocks are numbered from 0 to {len(self) - 1}: {indices}")
        return indices[:, None] * self.room + np.arange(self.room)


def _between(inner: np.ndarray, left: int, right: int) -> np.ndarray:
    row = np.empty((len(inner), inner.shape[1] + 2), inner.dtype)
    row[:, 0], row[:, 1:-1], row[:, -1] = left, inner, right
    return row


@dataclass(frozen=True)
class Corpus:
    """A tokenised corpus: `train` and `heldout` share no document; `facts` are for the manifest."""

    train: Blocks
    heldout: Blocks
    special: Special
    facts: Facts


def prepare(data: Data, teacher_tokenizer: Any, student_tokenizer: Any = None, *, tell: Tell = print) -> Corpus:
    """Tokenise a corpus, or find it tokenised in the cache.

    Args:
        data: the recipe's table `data`.
        teacher_tokenizer: a fast tokenizer of `transformers`.
        student_tokenizer: the student's, which must give the same tokens; None for the teacher's.
        tell: receives one line for each thing that the user should know.

    Raises:
        UserError: no such text, text that cannot be read, tokenizers that disagree, less text than one block.
    """
    encoder = Encoder(teacher_tokenizer, student_tokenizer)
    content = content_of(data, encoder)
    folder = cache_folder(data.cache) / "tokens" / _key(data, content)
    entry = open_or_make(folder, partial(_write, data=data, encoder=encoder, tell=tell), tell)
    tell(encoder.note)
    train, heldout = (_blocks(folder, part, data, entry, encoder.special) for part in PARTS)
    facts = facts_of(data, content, encoder, entry) | {"blocks": len(train), "heldout_blocks": len(heldout)}
    return Corpus(train, heldout, encoder.special, facts)


def _key(data: Data, content: Facts) -> str:
    """SHA-256 over all that the files are a function of; not the block length, for blocks are cut later."""
    settings = [data.field, data.separator, data.max_bytes]
    return json_sha256({"layout": LAYOUT, "settings": settings, **content})


def content_of(data: Data, encoder: Encoder) -> Facts:
    """What every tokenised text is a function of, packed or not: as JSON, for the key of an entry of the cache."""
    with doing(f"reading {data.corpus}"):
        corpora = corpora_of(data)
    return {
        **({"train_share": data.train_share} if data.train_share < 1 else {}),
        "corpora": corpora,
        "tokenizers": encoder.hashes,
        "special": asdict(encoder.special),
        "library": tokenizers.__version__,
    }


def corpora_of(data: Data) -> list[Any]:
    """What the documents of both parts are a function of, beside the keys of the recipe: as JSON."""
    apart, drawn = beyond(data)
    more = [["beside", [fingerprint(*source) for source in apart], drawn]] if apart or drawn else []
    return [*([fingerprint(one.corpus), _heldout_key(one)] for one in each(data)), *more]


def _heldout_key(data: Data) -> float | list[str]:
    source = heldout_source(data)
    key = [str(float(data.heldout))] if source is None else fingerprint(*source)
    return [*key, data.fold] if data.fold == "validation" else float(data.heldout) if source is None else key


def _blocks(folder: Path, part: str, data: Data, entry: Facts, special: Special) -> Blocks:
    count, dtype = entry[part]["tokens"], entry["dtype"]
    stream = np.memmap(folder / f"{part}.bin", dtype, mode="r") if count else np.empty(0, dtype)
    starts = np.load(folder / f"{part}.idx.npy", mmap_mode="r", allow_pickle=False)
    blocks = Blocks(stream, starts, data.max_length, special)
    if not len(blocks) and part in needed(data):
        what, remedy = "training", "give more text"
        if part == "heldout":
            what, remedy = "held-out", "raise data.heldout, or name a corpus in it"
        raise UserError(
            f"{data.corpus}: the {what} part has {count} tokens, fewer than the {blocks.room} of one block; "
            f"lower data.max_length ({data.max_length}), or {remedy}"
        )
    return blocks


def facts_of(data: Data, content: Facts, encoder: Encoder, entry: Facts, noun: str = "documents") -> Facts:
    """An entry's facts under the manifest's names, and those of this use of it.

    Args:
        data: the recipe's table `data`.
        content: what the entry is a function of.
        encoder: with which the entry was tokenised.
        entry: `both`, and for each part its facts.
        noun: what the parts consist of.
    """
    notes = [encoder.note]
    if not isinstance(data.heldout, str):
        own = [one.corpus for one in each(data) if heldout_source(one) is not None]
        notes += [
            f"held out of {spec}: its dev or valid files; data.heldout ({data.heldout}) is not used" for spec in own
        ]
    if entry["both"]:
        notes.append(f"{entry['both']} training {noun} are also held out: left out of training")
    sources = {}
    if "docs" in (data.heldout, *(one.corpus for one in each(data))):
        from limbeck.text import docs

        sources = docs.sources()
    return {
        "corpus": data.corpus,
        "heldout": data.heldout,
        "max_length": data.max_length,
        **entry["train"],
        **{f"heldout_{name}": value for name, value in entry["heldout"].items()},
        "corpora_sha256": json_sha256(content["corpora"]),
        "tokenizer_sha256": encoder.hashes[0],
        "sources": sources,
        "notes": notes,
    }


def _write(folder: Path, data: Data, encoder: Encoder, tell: Tell) -> Facts:
    """Tokenise a corpus into a folder; memory does not grow with the corpus but by 8 bytes a document."""
    tell(f"tokenising {data.corpus} (once: it is kept in {folder.parent})")
    special = encoder.special
    dtype = dtype_of(special)
    both = 0
    with ExitStack() as stack:
        parts = {part: stack.enter_context(CorpusPart(folder, part, dtype)) for part in PARTS}
        items = counted(separate(data), stack.enter_context(doing(f"tokenising {data.corpus}", "documents")))
        for batch in batches(items, len):
            kept = [document for document in batch if document[0] in parts]
            both += sum(row[0] == "both" for row in batch)
            encoded = encoder([name for _, name, _ in kept], [text for _, _, text in kept])
            for (part, _, text), ids in zip(kept, encoded, strict=True):
                parts[part].add(text, [*special.before, *ids, *special.after])
    return {"dtype": dtype, "both": both, **both_parts(data, parts, both, tell)}


def dtype_of(special: Special) -> str:
    """The smallest type that holds every id."""
    return "uint16" if special.vocabulary < 1 << 16 else "uint32"


def both_parts(data: Data, parts: Mapping[str, Written], both: int, tell: Tell, noun: str = "document") -> Facts:
    """Part -> its facts, which the user is told.

    Raises:
        UserError: a part is empty.
    """
    found = {part: parts[part].facts() for part in PARTS}
    for part in needed(data):
        if not found[part]["documents"]:
            raise UserError(_one_sided(data, part, both, noun))
    for part, what in zip(needed(data), ("to train on", "held out"), strict=False):
        tell(f"{what}: {found[part]['documents']:,} {noun}s, {found[part]['tokens']:,} tokens")
    return found


def needed(data: Data) -> tuple[str, ...]:
    """The parts that must hold something: of a text beside the corpus nothing is measured."""
    return PARTS[:1] if isinstance(data, BesideData) else PARTS


def _one_sided(data: Data, part: str, both: int, noun: str) -> str:
    if both:
        return f"{data.corpus}: every training {noun} is also held out; name another corpus in data.heldout"
    use, change = ("train on", "lower") if part == "train" else ("hold out", "raise")
    remedy = f"{change} it, give more {noun}s, or name a corpus in it"
    return f"{data.corpus}: no {noun} to {use} with data.heldout at {data.heldout}; {remedy}"


def counted(items: Iterable[T], done: Doing, size: int = 1) -> Iterator[T]:
    """The same items, each of some `size`; how many were taken is told."""
    for number, item in enumerate(items):
        done(number * size)
        yield item


def batches(
    items: Iterator[tuple[str, str, T]], characters_of: Callable[[T], int]
) -> Iterator[list[tuple[str, str, T]]]:
    """What is tokenised at a time: (part, name, item) up to a number of items and of characters."""
    batch, characters = [], 0
    for item in items:
        batch.append(item)
        characters += characters_of(item[2])
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class Written(Protocol):
    """A part that has been written."""

    def facts(self) -> Facts:
        """At least `documents`, `tokens` and `sha256`."""
        ...


class CorpusPart:
    """A part while it is written: tokens go to the file at once, the starts of the documents at the end.

    Args:
        folder: where `NAME.bin` and `NAME.idx.npy` are written.
        name: of the part.
        dtype: of the tokens.
    """

    def __init__(self, folder: Path, name: str, dtype: str) -> None:
        self.path, self.dtype = folder / f"{name}.bin", dtype
        self.starts = array("q")
        self.tokens = 0
        self.text = hashlib.sha256()

    def __enter__(self) -> CorpusPart:
        self.file = open(self.path, "wb")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        np.save(self.path.with_suffix(".idx.npy"), np.array(self.starts, np.int64), allow_pickle=False)

    def add(self, text: str, ids: list[int]) -> None:
        """Appends a document: its text, which only its hash remembers, and its tokens."""
        self.starts.append(self.tokens)
        self.tokens += len(ids)
        self.text.update(text.encode() + b"\0")
        self.file.write(np.array(ids, self.dtype).tobytes())

    def facts(self) -> Facts:
        """Counts, and the hash of the text."""
        return {"documents": len(self.starts), "tokens": self.tokens, "sha256": self.text.hexdigest()}
