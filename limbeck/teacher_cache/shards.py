"""Shards of the teacher cache: the answers to some hundred rows of text in a folder, one file for each tensor.

`NAME.bin` holds a tensor's rows one after another, `NAME.scale.bin` the scales of int8 states, `index.npy` for every row of
text where its tokens and its predictions begin, and a checksum of what the teacher read.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from limbeck.batch import Batch

LOGITS = "logits"
DTYPES = {"fp32": np.dtype(np.float32), "bf16": np.dtype(np.int16), "int8": np.dtype(np.int8)}


class Answered(NamedTuple):
    """What a teacher said to some rows of text: of each, how many tokens and predictions, and its checksum."""

    tokens: list[int]
    selected: list[int]
    checks: list[int]
    arrays: dict[str, np.ndarray]  # all rows one after another


def checks(batch: Batch) -> list[int]:
    """A checksum of each row: its tokens, and which of them are selected."""
    ids, kept = batch["input_ids"].cpu().numpy(), batch["attention_mask"].cpu().numpy().astype(bool)
    select = batch["select"].cpu().numpy().reshape(len(ids), -1)
    return [
        zlib.crc32(np.flatnonzero(chosen).tobytes(), zlib.crc32(row[real].tobytes()))
        for row, real, chosen in zip(ids, kept, select, strict=True)
    ]


def write(folder: Path, answers: Iterable[Answered]) -> dict[str, int]:
    """Fills an empty folder; returns the width of a line of every file in its own numbers."""
    tokens, selected, sums, widths = [], [], [], {}
    with ExitStack() as stack:
        files = {}
        for answered in answers:
            for name, array in answered.arrays.items():
                if name not in files:
                    files[name] = stack.enter_context((folder / f"{name}.bin").open("wb"))
                    widths[name] = 1 if array.ndim == 1 else array.shape[1]
                files[name].write(np.ascontiguousarray(array).data)
            tokens += answered.tokens
            selected += answered.selected
            sums += answered.checks
    index = [np.cumsum([0, *tokens]), np.cumsum([0, *selected]), [*sums, 0]]
    np.save(folder / "index.npy", np.array(index, np.int64), allow_pickle=False)
    return widths


class Shard:
    """A written shard, memory-mapped.

    Args:
        folder: of the shard.
        dtypes: name of a file -> of its numbers; `logits` are bytes.
        widths: what `write` returned.
    """

    def __init__(self, folder: Path, dtypes: Mapping[str, np.dtype], widths: Mapping[str, int]) -> None:
        self.folder = folder
        self.tokens, self.selected, self.checks = np.load(folder / "index.npy", allow_pickle=False)
        self._files = {name: _lines(folder / f"{name}.bin", dtypes[name], width) for name, width in widths.items()}
        self.bytes = sum(path.stat().st_size for path in folder.iterdir())

    def row(self, row: int, name: str) -> np.ndarray:
        """What a file holds of a row: a line for each of its tokens, or of its predictions."""
        starts = self.selected if name == LOGITS else self.tokens
        return self._files[name][starts[row] : starts[row + 1]]


def _lines(path: Path, dtype: np.dtype, width: int) -> np.ndarray:
    if not path.stat().st_size:  # no token was selected
        return np.empty((0, width), dtype)
    return np.memmap(path, dtype, mode="r").reshape(-1, width)
