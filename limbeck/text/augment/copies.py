"""Copies of rows with some words replaced, and where it is kept what may stand in the place of which word.

`CACHE/candidates/KEY/00000/` holds the words of the first `SHARD` rows and what may replace them, and so on: each shard is
written whole or not at all, so that a writer that was killed goes on where it stopped, and processes write side by side.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from limbeck.recipe.data import Augment
from limbeck.system.progress import Done, doing, uncounted
from limbeck.system.seeds import derive_seed
from limbeck.system.store import Facts, Tell, open_or_make
from limbeck.text.order import uniform

SHARD = 256  # rows

Texts = tuple[str, ...]  # one text, or the two of a pair


class Place(NamedTuple):
    """A word of a text that may be replaced, `text[start:end]`, and by what: itself where nothing was found."""

    start: int
    end: int
    candidates: Sequence[str]


Propose = Callable[[Sequence[str], Done], list[list[Place]]]


def copies(texts: Texts, places: Sequence[Sequence[Place]], number: int, how: Augment) -> list[Texts]:
    """A row and its copies, the row itself first, each once.

    Copy j replaces word w where c < p, by candidate floor(u n) of its n, where u and c in [0, 1) are functions of
    (how.draw, number, w, j) alone; w counts the replaceable words of both texts. `as_published`, the copies of the first
    text come first, beside the second as it is, then those of the second beside the last copy of the first.

    Args:
        texts: one, or the two of a pair.
        places: of each text.
        number: of the row.
        how: `copies` tries, `probability` p.

    >>> copies(("good film",), [[Place(0, 4, ("fine",))]], 0, Augment(copies=9))
    [('good film',), ('fine film',)]
    """
    found: list[list[str]] = []
    first = 0
    for text, own in zip(texts, places, strict=True):
        found.append(_variants(text, own, number, first, how))
        first += len(own)
    if not how.as_published:
        return list(dict.fromkeys([texts, *zip(*found, strict=True)]))
    one, *other = (list(dict.fromkeys([text, *some])) for text, some in zip(texts, found, strict=True))
    if not other:
        return [(text,) for text in one]
    return [*((text, texts[1]) for text in one), *((one[-1], text) for text in other[0])]


def _variants(text: str, places: Sequence[Place], number: int, first: int, how: Augment) -> list[str]:
    """A text with words replaced, once for every try; `first` is the number of its first word."""
    tries = np.arange(how.copies)
    pieces: list[list[str]] = [[] for _ in tries]
    done = 0
    for w, (start, end, candidates) in enumerate(places, first):
        draws = uniform(derive_seed(how.draw, "augment", number, w), tries, 2)
        for piece, (u, coin) in zip(pieces, draws.tolist(), strict=True):
            word = candidates[int(u * len(candidates))]
            piece += [text[done:start], word if coin < how.probability else text[start:end]]
        done = end
    return ["".join([*piece, text[done:]]) for piece in pieces]


def _in_rows(done: Done, before: int, rows: int, all_rows: int, count: int, of: int) -> None:
    """Tells how many rows are done, where of some of them `count` of `of` words are."""
    done(before + rows * count // of, all_rows)


class CandidateShelf:
    """The candidates of the rows of a task.

    Args:
        folder: named by a key of the rows and of all that candidates are a function of.
        propose: says of texts which words may be replaced, and by what; asked for what is missing.
        tell: receives a line where a shard is damaged.
    """

    def __init__(self, folder: Path, propose: Propose, tell: Tell) -> None:
        self.folder, self.propose, self.tell = folder, propose, tell

    def write(self, rows: Iterable[tuple[str, Texts]], rank: int = 0, size: int = 1, count: int = 0) -> None:
        """Makes the shards rank, rank + size, ... that are missing: the share of one of `size` processes, of `count` rows."""
        with doing("words to put in place of others", "rows") as done:
            for number, some in self._shards(rows):
                if number % size == rank:
                    self._open(number, some, partial(_in_rows, done, number * SHARD, len(some), count))

    def augmented(self, rows: Iterable[tuple[str, Texts]], how: Augment) -> Iterator[tuple[str, list[Texts]]]:
        """(name of a row, the row and its copies)."""
        for shard, some in self._shards(rows):
            found = self._open(shard, some)
            for number, ((name, texts), places) in enumerate(zip(some, found, strict=True), shard * SHARD):
                yield name, copies(texts, places, number, how)

    def _shards(self, rows: Iterable[tuple[str, Texts]]) -> Iterator[tuple[int, list[tuple[str, Texts]]]]:
        rest = iter(rows)
        for number in count():
            if not (some := list(islice(rest, SHARD))):
                return
            yield number, some

    def _open(self, number: int, rows: Sequence[tuple[str, Texts]], done: Done = uncounted) -> list[list[list[Place]]]:
        """The candidates of a shard, made first where they are missing: row -> text -> word."""
        folder = self.folder / f"{number:05}"
        open_or_make(folder, partial(self._write, texts=[texts for _, texts in rows], done=done), self.tell)
        found = json.loads((folder / "places.json").read_text(encoding="utf-8"))
        return [[[Place(*place) for place in text] for text in row] for row in found]

    def _write(self, folder: Path, texts: Sequence[Texts], done: Done) -> Facts:
        said = iter(self.propose([text for row in texts for text in row], done))
        places = [[next(said) for _ in row] for row in texts]
        (folder / "places.json").write_text(json.dumps(places, ensure_ascii=False), encoding="utf-8")
        return {"rows": len(texts)}
