"""Batches of task rows as pure functions of (seed, step), padded to their longest row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from limbeck.feeds.feed import Batch
from limbeck.feeds.order import block_indices
from limbeck.feeds.tasks import Rows


class TaskFeed:
    """Rows of a task as batches.

    A batch holds, for b rows of which the longest has T tokens,

    - `input_ids` int64 [b, T], padded on the right,
    - `attention_mask` int64 [b, T]: 1 for tokens, 0 for padding,
    - `token_type_ids` int64 [b, T], with `types` only: the segment of every token, 0 for padding,
    - `labels` [b]: the number of the class, int64, or the score, float32; -100 where there is none,
    - `select` bool [b]: ones, for the logits of every row are looked at,
    - `blocks` int64 [b] and `documents` int32 [b]: the number of each row.

    Args:
        rows: the part of a task to read, `corpus.train` or `corpus.heldout`.
        seed: of the order.
        batch_size: rows of the whole batch, over all micro-batches and processes.
        pad_id: of the tokenizer.
        types: the models read `token_type_ids`.
    """

    def __init__(
        self, rows: Rows, *, seed: int = 0, batch_size: int = 32, pad_id: int = 0, types: bool = False
    ) -> None:
        self.blocks = rows
        self.seed, self.batch_size = seed, batch_size
        self.pad_id, self.types = pad_id, types

    def indices(self, step: int) -> np.ndarray:
        """The rows of the whole batch `step`: int64 [batch_size]."""
        return block_indices(self.seed, step, self.batch_size, len(self.blocks))

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """Batch `step` (from 0), or only the given rows of it: as in the whole, but for padding."""
        return self.sample(self.indices(step)[rows])

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def masks(self) -> Any:
        """Nothing is masked."""
        return ["rows", self.types]

    def again(self, indices: np.ndarray) -> Batch:
        """The given rows, which are the same in every epoch."""
        return self.sample(indices)

    def sample(self, indices: np.ndarray) -> Batch:
        """The given rows."""
        indices = np.array(indices, np.int64, order="C")
        ids = self.blocks.rows(indices)
        batch = {
            "input_ids": _padded(ids, self.pad_id),
            "attention_mask": _padded([np.ones_like(row) for row in ids], 0),
            "labels": self.blocks.labels(indices),
            "select": np.ones(len(indices), bool),
            "documents": indices.astype(np.int32),
            "blocks": indices,
        }
        if self.types:
            batch["token_type_ids"] = _padded(self.blocks.segments(indices), 0)
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def fixed(self, count: int, batch_size: int | None = None) -> Iterator[Batch]:
        """`count` rows (at most all) spread evenly over the part, `batch_size` rows at a time."""
        count, size = min(count, len(self.blocks)), batch_size or self.batch_size
        indices = np.arange(count) * len(self.blocks) // count
        for start in range(0, count, size):
            yield self.sample(indices[start : start + size])


def _padded(rows: Sequence[np.ndarray], value: int) -> np.ndarray:
    """Rows of different lengths as one array, filled up on the right: int64 [n, longest]."""
    array = np.full((len(rows), max(map(len, rows), default=0)), value, np.int64)
    for line, row in zip(array, rows, strict=True):
        line[: len(row)] = row
    return array
