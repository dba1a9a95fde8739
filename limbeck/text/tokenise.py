"""Text to ids: the tokenizer's special tokens, and the proof that teacher and student read the same ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from tokenizers import Encoding, Tokenizer

from limbeck.errors import UserError

SHARED = "teacher and student share one tokenizer: tokenised once"
COMPARED = "the tokenizers of teacher and student differ on disk and give the same tokens for every document"


@dataclass(frozen=True)
class Special:
    """What a batch must know of a tokenizer.

    A BERT-like tokenizer (one with `cls` and `sep`) frames every block; any other puts `before` and `after`
    around every document.
    """

    vocabulary: int  # number of ids
    every: tuple[int, ...]  # ids of all special tokens
    mask: int | None = None
    frame: tuple[int, int] | None = None  # [CLS] and [SEP]
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @property
    def added(self) -> tuple[int, ...]:
        """Ids of the tokens that packing adds to the text."""
        return self.frame or self.before + self.after


def special_of(tokenizer: Any) -> Special:
    """The special tokens of a fast tokenizer of `transformers`.

    A causal document ends with the end-of-text token if there is one, and begins with the begin-of-text token
    if the tokenizer itself puts one there: Llama's does, GPT-2's does not.

    Raises:
        UserError: the tokenizer is not a fast one.
    """
    backend = _backend(tokenizer)
    cls, sep, bos, eos = (getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "bos", "eos"))
    frame = None if cls is None or sep is None else (cls, sep)
    opening = backend.encode("").ids[:1]
    return Special(
        vocabulary=1 + max(backend.get_vocab().values()),
        every=tuple(sorted(tokenizer.all_special_ids)),
        mask=tokenizer.mask_token_id,
        frame=frame,
        before=(bos,) if frame is None and opening == [bos] != [eos] else (),
        after=() if frame or eos is None else (eos,),
    )


def _backend(tokenizer: Any) -> Tokenizer:
    if not getattr(tokenizer, "is_fast", False):
        name = type(tokenizer).__name__
        raise UserError(f"{name} is not a fast tokenizer; give a folder or Hub id with a tokenizer.json")
    return tokenizer.backend_tokenizer


def serialised(tokenizer: Any) -> str:
    """The tokenizer as canonical JSON, without truncation and padding, which are settings of a call."""
    table = json.loads(_backend(tokenizer).to_str())
    return json.dumps(table | {"truncation": None, "padding": None}, sort_keys=True)


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of every text, without special tokens, in parallel over the texts.

    TOKENIZERS_PARALLELISM is left as it is. Unset, `tokenizers` goes on in one thread after a fork; `true`
    would make it wait for threads that the child does not have.
    """
    with _able():
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


@contextmanager
def _able() -> Iterator[None]:
    """One clear line for a tokenizer that fails at its work: the library raises bare exceptions."""
    try:
        yield
    except Exception as error:
        why = " ".join(str(error).split())
        raise UserError(f"the tokenizer cannot read this text ({why:.200}); mend its tokenizer.json") from error


class Encoded(NamedTuple):
    """A row of a task as tokens."""

    ids: list[int]  # special tokens included
    types: list[int]  # the segment of every token, as the tokenizer's template numbers them
    cut: bool  # there were more


def encode_rows(
    tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, length: int, side: str
) -> list[Encoded]:
    """The tokens of every row, special tokens included, cut to `length`.

    The library's own truncation is not asked for: it also builds every way of pairing the tokens that it cuts off.
    """
    rows = texts if pairs is None else list(zip(texts, pairs, strict=True))
    with _able():
        encodings = tokenizer.encode_batch_fast(rows)
    return [_cut(encoding, length, side) for encoding in encodings]


def _cut(encoding: Encoding, length: int, side: str) -> Encoded:
    """At most `length` tokens: all special ones, and of the texts what `longest_first` leaves, without its `side`."""
    ids, types = encoding.ids, encoding.type_ids
    if len(ids) <= length:
        return Encoded(ids, types, cut=False)
    segments = encoding.sequence_ids
    places = [[i for i, segment in enumerate(segments) if segment == k] for k in (0, 1)]
    kept = [i for i, segment in enumerate(segments) if segment is None]
    for place, size in zip(places, longest_first(len(places[0]), len(places[1]), length - len(kept)), strict=True):
        kept += place[:size] if side == "right" else place[len(place) - min(size, len(place)) :]
    kept.sort()
    return Encoded([ids[i] for i in kept], [types[i] for i in kept], cut=True)


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """The tokens that two texts keep where both do not fit: one by one, the longer text gives.

    >>> longest_first(9, 2, 7), longest_first(9, 8, 7), longest_first(8, 8, 7), longest_first(9, 0, 7)
    ((5, 2), (4, 3), (3, 4), (7, 0))
    """
    short = min(first, second, room // 2)
    return (room - short, short) if first > second else (short, room - short)


class Encoder:
    """Tokenises with the teacher's tokenizer, and asserts that the student's gives the same.

    Args:
        teacher: fast tokenizer of `transformers`.
        student: the student's; None for the teacher's.

    Raises:
        UserError: a tokenizer is not fast, or their special tokens differ.
    """

    def __init__(self, teacher: Any, student: Any = None) -> None:
        self.special = special_of(teacher)
        self.json = [serialised(teacher)]
        if student is not None and student is not teacher and (other := serialised(student)) != self.json[0]:
            self.json.append(other)
        if student is not None:
            _assert_same_specials(self.special, special_of(student))
        self.side: str = getattr(teacher, "truncation_side", "right")  # of a text that is too long, what is cut off
        self._tokenizers: list[Tokenizer] = []

    @property
    def note(self) -> str:
        """One line for the user: tokenised once, or twice and compared."""
        return SHARED if len(self.json) == 1 else COMPARED

    @property
    def hashes(self) -> list[str]:
        """SHA-256 of the teacher's tokenizer, and of the student's if it is another."""
        return [hashlib.sha256(text.encode()).hexdigest() for text in self.json]

    def __call__(self, names: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
        """The ids of every document, without special tokens.

        Raises:
            UserError: the two tokenizers disagree; it names the document, the position and both tokens.
        """
        teacher, *student = (encode(tokenizer, texts) for tokenizer in self._copies())
        for other in student:
            for name, a, b in zip(names, teacher, other, strict=True):
                if a != b:
                    raise UserError(self._difference(name, a, b))
        return teacher

    def rows(
        self, names: Sequence[str], texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
    ) -> list[Encoded]:
        """The rows of a task under the tokenizer's own template, cut to `max_length` tokens, longest text first.

        Args:
            names: of the rows, for errors.
            texts: the first texts.
            pairs: the second texts; None where rows have one.
            max_length: tokens of a row, special tokens included.

        Raises:
            UserError: no room for text, or the two tokenizers disagree on tokens or segments.
        """
        for tokenizer in self._copies():
            added = tokenizer.num_special_tokens_to_add(pairs is not None)
            if max_length < added + (1 if pairs is None else 2):
                what = f"no room for text beside the {added} special tokens of a row"
                raise UserError(f"data.max_length ({max_length}) has {what}; raise it")
        teacher, *student = (encode_rows(one, texts, pairs, max_length, self.side) for one in self._copies())
        for other in student:
            for name, a, b in zip(names, teacher, other, strict=True):
                if a.ids != b.ids:
                    raise UserError(self._difference(name, a.ids, b.ids))
                if a.types != b.types:
                    what = "the tokenizers of teacher and student number the segments differently"
                    raise UserError(f"{name}: {what}; give both the same tokenizer (models.student.tokenizer)")
        return teacher

    def _copies(self) -> list[Tokenizer]:
        """The tokenizers, free of truncation and padding; the caller's stay as they are."""
        if not self._tokenizers:
            self._tokenizers = [Tokenizer.from_str(text) for text in self.json]
            for tokenizer in self._tokenizers:
                tokenizer.encode_special_tokens = True  # "[MASK]" in a text is text
        return self._tokenizers

    def _difference(self, name: str, teacher: list[int], student: list[int]) -> str:
        shorter = min(len(teacher), len(student))
        place = next((i for i in range(shorter) if teacher[i] != student[i]), shorter)
        sides = zip(("teacher", "student"), self._tokenizers, (teacher, student), strict=True)
        found = ", ".join(f"{who} {_token(tokenizer, ids, place)}" for who, tokenizer, ids in sides)
        return (
            f"{name}: the tokenizers of teacher and student disagree at token {place} (from 0): {found}; "
            "give both the same tokenizer (models.student.tokenizer)"
        )


def _token(tokenizer: Tokenizer, ids: list[int], place: int) -> str:
    if place == len(ids):
        return "nothing (its tokens have ended)"
    return f"{tokenizer.id_to_token(ids[place])!r} (id {ids[place]})"


def _assert_same_specials(teacher: Special, student: Special) -> None:
    for name in ("frame", "mask", "before", "after"):
        a, b = getattr(teacher, name), getattr(student, name)
        if name == "mask" and b is None:
            continue  # a student without a mask token of its own reads the teacher's
        if a != b:
            raise UserError(
                f"special tokens ({name}): the teacher's tokenizer has {a}, the student's {b}; "
                "give both the same tokenizer (models.student.tokenizer)"
            )
