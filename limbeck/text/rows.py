"""Rows of a task: labelled texts, or pairs of them, become memory-mapped rows of tokens, each as long as it is.

`CACHE/tasks/KEY/` holds, for `train` and `heldout`, `PART.bin` (tokens), `PART.types.bin` (the segment of every token),
`PART.idx.npy` (where each row begins), `PART.labels.npy`, and `facts.json`.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.batch import IGNORED
from limbeck.errors import UserError
from limbeck.system.files import json_sha256
from limbeck.system.progress import doing
from limbeck.system.store import Facts, Tell, cache_folder, open_or_make
from limbeck.text.blocks import PARTS, CorpusPart, batches, both_parts, content_of, counted, dtype_of, facts_of
from limbeck.text.corpora import column_names, row_text
from limbeck.text.heldout import each, separate_rows
from limbeck.text.labels import MOST, choose, class_name, numbers, score
from limbeck.text.readers import Row
from limbeck.text.tables import listed
from limbeck.text.tokenise import Encoded, Encoder, Special

if TYPE_CHECKING:
    from limbeck.recipe.data import Data, Task

LAYOUT = 1  # of the files; a new number leaves older entries unread


class Rows:
    """Rows of tokens, special tokens in place, each with a label or none.

    Args:
        tokens: all rows one after the other [N], usually memory-mapped.
        types: the segment of every token [N].
        starts: where each row begins, ascending, int64 [rows].
        labels: the number of the class, int64 [rows], or the score, float32 [rows]; `IGNORED` where there is none.
        max_length: the most tokens of a row.
        special: of the tokenizer.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        types: np.ndarray,
        starts: np.ndarray,
        labels: np.ndarray,
        max_length: int,
        special: Special,
    ) -> None:
        self.tokens, self.types = tokens, types
        self.documents = starts
        self.max_length, self.special = max_length, special
        self._labels = labels
        self._ends = np.append(starts[1:], len(tokens))

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of every row: int64 [rows]."""
        return self._ends - self.documents

    def rows(self, indices: Iterable[int] | np.ndarray) -> list[np.ndarray]:
        """The tokens of the given rows: for each int64 [length]."""
        return [np.array(self.tokens[place], np.int64) for place in self._places(indices)]

    def segments(self, indices: Iterable[int] | np.ndarray) -> list[np.ndarray]:
        """The segment of every token of the given rows (`token_type_ids`): for each int64 [length]."""
        return [np.array(self.types[place], np.int64) for place in self._places(indices)]

    def labels(self, indices: Iterable[int] | np.ndarray) -> np.ndarray:
        """The labels of the given rows: int64 or float32 [n], `IGNORED` where there is none."""
        return self._labels[self._checked(indices)]

    def _places(self, indices: Iterable[int] | np.ndarray) -> Iterator[slice]:
        for index in self._checked(indices):
            yield slice(int(self.documents[index]), int(self._ends[index]))

    def _checked(self, indices: Iterable[int] | np.ndarray) -> np.ndarray:
        indices = np.asarray(indices, dtype=np.int64)
        if not np.all((indices >= 0) & (indices < len(self))):
            raise IndexError(f"rows are numbered from 0 to {len(self) - 1}: {indices}")
        return indices


@dataclass(frozen=True)
class TaskCorpus:
    """A tokenised task: `train` and `heldout` share no row; `facts` are for the manifest."""

    train: Rows
    heldout: Rows
    special: Special
    facts: Facts
    classes: tuple[str, ...]  # in the order of their logits; none for a regression


def prepare_task(
    data: Data,
    teacher_tokenizer: Any,
    student_tokenizer: Any = None,
    *,
    tell: Tell = print,
    classes: Sequence[str] | None = None,
) -> TaskCorpus:
    """Tokenise the rows of `data.task`, or find them tokenised in the cache.

    Args:
        data: the recipe's table `data`, with a task.
        teacher_tokenizer: a fast tokenizer of `transformers`.
        student_tokenizer: the student's, which must give the same tokens; None for the teacher's.
        tell: receives one line for each thing that the user should know.
        classes: those of the teacher's config, in the order of its logits; `data.task.classes` comes first, and the
            labels of the training rows are asked where neither names them.

    Raises:
        UserError: no such rows or columns, rows that cannot be read, labels that are none, tokenizers that disagree.
    """
    task = _task(data)
    encoder = Encoder(teacher_tokenizer, student_tokenizer)
    content = content_of(data, encoder)
    folder = cache_folder(data.cache) / "tasks" / _key(data, encoder, content)
    entry = open_or_make(folder, partial(_write, data=data, encoder=encoder, tell=tell), tell)
    tell(encoder.note)
    found = entry["classes"]["train"] or entry["classes"]["heldout"]
    names = () if task.kind == "regression" else choose(task, classes, found)
    train, heldout = (_rows(folder, part, data, entry, encoder.special, names) for part in PARTS)
    facts = facts_of(data, content, encoder, entry, "rows")
    facts["notes"] += _notes(data, entry)
    facts |= {"blocks": len(train), "heldout_blocks": len(heldout), "classes": list(names)}
    return TaskCorpus(train, heldout, encoder.special, facts, names)


def _task(data: Data) -> Task:
    assert data.task is not None
    return data.task


def _key(data: Data, encoder: Encoder, content: Facts) -> str:
    """SHA-256 over all that the files are a function of; not the classes, for labels are numbered later."""
    settings = [_task(data).kind, _task(data).columns, data.max_bytes, data.max_length, encoder.side]
    return json_sha256({"task": LAYOUT, "settings": settings, **content})


def _rows(folder: Path, part: str, data: Data, entry: Facts, special: Special, classes: Sequence[str]) -> Rows:
    tokens = np.memmap(folder / f"{part}.bin", entry["dtype"], mode="r")
    types = np.memmap(folder / f"{part}.types.bin", "uint8", mode="r")
    starts = np.load(folder / f"{part}.idx.npy", mmap_mode="r", allow_pickle=False)
    labels = np.load(folder / f"{part}.labels.npy", allow_pickle=False)
    if _task(data).kind == "classification":  # the place among the classes found, -1 for no label
        labels = np.array([*numbers(entry["classes"][part], classes), IGNORED], np.int64)[labels]
    return Rows(tokens, types, starts, labels, data.max_length, special)


def _notes(data: Data, entry: Facts) -> list[str]:
    notes = []
    if any(cut := [entry[part]["truncated"] for part in PARTS]):
        notes.append(
            f"longer than data.max_length ({data.max_length}), and cut to it: "
            f"{cut[0]:,} rows to train on, {cut[1]:,} held-out rows"
        )
    for part, what in zip(PARTS, ("training", "held-out"), strict=True):
        if _task(data).label is not None and (bare := entry[part]["documents"] - entry[part]["labelled"]):
            notes.append(f"{bare:,} of {entry[part]['documents']:,} {what} rows have no label")
    return notes


def _write(folder: Path, data: Data, encoder: Encoder, tell: Tell) -> Facts:
    """Tokenise a task into a folder; memory does not grow with the corpus but by 16 bytes a row."""
    tell(f"tokenising {data.corpus} (once: it is kept in {folder.parent})")
    dtype, both = dtype_of(encoder.special), 0
    with ExitStack() as stack:
        parts = {part: stack.enter_context(_RowPart(folder, part, dtype, _task(data).kind)) for part in PARTS}
        items = counted(separate_rows(data), stack.enter_context(doing(f"tokenising {data.corpus}", "rows")))
        for batch in batches(items, lambda row: len(row_text(row))):
            kept = [row for row in batch if row[0] in parts]
            both += sum(row[0] == "both" for row in batch)
            for (part, name, row), encoded in zip(kept, _encoded(encoder, data, kept), strict=True):
                parts[part].add(name, row, encoded)
    found = both_parts(data, parts, both, tell, "row")
    if _task(data).label is not None and not any(found[part]["labelled"] for part in PARTS):
        raise _no_label(data)
    return {"dtype": dtype, "both": both, **found, "classes": {part: parts[part].classes for part in PARTS}}


def _encoded(encoder: Encoder, data: Data, rows: Sequence[tuple[str, str, Row]]) -> list[Encoded]:
    names, texts = [name for _, name, _ in rows], [row["text"] for _, _, row in rows]
    pairs = None if _task(data).pair is None else [row["pair"] for _, _, row in rows]
    return encoder.rows(names, texts, pairs, data.max_length)


def _no_label(data: Data) -> UserError:
    task, spec = _task(data), each(data)[0].corpus
    names = listed(column_names(spec, task.columns))
    remedy = f"set data.task.label to one of: {names}; or to null where nothing is labelled"
    return UserError(f"{data.corpus}: no row has a label in the column '{task.label}'; {remedy}")


def label_of(row: Row, name: str, kind: str) -> str | float | None:
    """The class or the score that stands in a row, None where there is none."""
    label = row["label"]
    if label is None:
        return None
    return class_name(label, name) if kind == "classification" else score(label, name)


def as_text(row: Row, label: str | float | None) -> str:
    """All of a row, as it is hashed."""
    return json.dumps([row["text"], row["pair"], label])


class _RowPart:
    """A part while it is written: as `Part`, and the segments and labels of its rows."""

    def __init__(self, folder: Path, name: str, dtype: str, kind: str) -> None:
        self.part = CorpusPart(folder, name, dtype)
        self.path, self.kind = folder / name, kind
        self.labels = array("q" if kind == "classification" else "d")
        self.classes: dict[str, str] = {}  # class -> where it was first seen
        self.numbers: dict[str, int] = {}  # class -> its place among those
        self.labelled = self.truncated = 0

    def __enter__(self) -> _RowPart:
        self.types = open(f"{self.path}.types.bin", "wb")
        self.part.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.part.__exit__(*error)
        self.types.close()
        dtype = np.int64 if self.kind == "classification" else np.float32
        np.save(f"{self.path}.labels.npy", np.array(self.labels, dtype), allow_pickle=False)

    def add(self, name: str, row: Row, encoded: Encoded) -> None:
        if not encoded.ids:
            raise UserError(f"{name}: the tokenizer leaves nothing of this row's text; remove the row")
        label = label_of(row, name, self.kind)
        self.part.add(as_text(row, label), encoded.ids)
        self.types.write(bytes(encoded.types))
        self.labels.append(self._number(label, name))
        self.labelled += label is not None
        self.truncated += encoded.cut

    def _number(self, label: Any, name: str) -> Any:
        """The score, or the place of a class among those found so far."""
        if self.kind == "regression":
            return IGNORED if label is None else label
        if label is None:
            return -1
        self.classes.setdefault(label, name)
        if len(self.classes) > MOST:
            remedy = "set data.task.label to another column, or data.task.kind to regression"
            raise UserError(f"{name}: more than {MOST:,} classes in the column of labels; {remedy}")
        return self.numbers.setdefault(label, len(self.numbers))

    def facts(self) -> Facts:
        return {**self.part.facts(), "labelled": self.labelled, "truncated": self.truncated}
