"""Batches of task rows as pure functions of (seed, step), padded to their longest row, or to a length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from limbeck.text.feed import Batch
from limbeck.text.order import block_indices, derive_seed, permute
from limbeck.text.rows import Rows


class TaskFeed:
    """Rows of a task as batches.

    A batch holds, for b rows of which the longest has T tokens, or for T = `length`,

    - `input_ids` int64 [b, T], padded on the right,
    - `attention_mask` int64 [b, T]: 1 for tokens, 0 for padding,
    - `token_type_ids` int64 [b, T], with `types` only: the segment of every token, 0 for padding,
    - `labels` [b]: the number of the class, int64, or the score, float32; `IGNORED` where there is none,
    - `select` bool [b]: ones, for the logits of every row are looked at,
    - `blocks` int64 [b] and `documents` int32 [b]: the number of each row.

    Args:
        rows: the part of a task to read, `corpus.train` or `corpus.heldout`.
        seed: of the order.
        batch_size: rows of the whole batch, over all micro-batches and processes.
        pad_id: of the tokenizer.
        types: the models read `token_type_ids`.
        pool: batches whose rows are put into an order of length together, so that a batch has little padding; 1: none.
        length: to which every row is padded, at least that of the longest; None: to the longest of its batch.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        seed: int = 0,
        batch_size: int = 32,
        pad_id: int = 0,
        types: bool = False,
        pool: int = 1,
        length: int | None = None,
    ) -> None:
        self.blocks = rows
        self.seed, self.batch_size = seed, batch_size
        self.pad_id, self.types, self.pool, self.length = pad_id, types, pool, length

    def indices(self, step: int) -> np.ndarray:
        """The rows of the whole batch `step`: int64 [batch_size].

        With a pool of P, batches qP to qP + P - 1 share the rows that they would have without: sorted by length, cut into
        batches, and these in an order of their own for every (seed, q). Every row is read once an epoch as before.
        """
        if self.pool == 1:
            return block_indices(self.seed, step, self.batch_size, len(self.blocks))
        number, place = divmod(step, self.pool)
        rows = block_indices(self.seed, number, self.pool * self.batch_size, len(self.blocks))
        order = permute(np.arange(self.pool), self.pool, derive_seed(self.seed, "pool", number))
        return self._by_length(rows).reshape(self.pool, self.batch_size)[order[place]]

    def _by_length(self, rows: np.ndarray) -> np.ndarray:
        return rows[np.argsort(self.blocks.lengths[rows], kind="stable")]

    def lengths(self, step: int) -> np.ndarray:
        """The tokens of every row of the whole batch `step`, to the longest of which a micro-batch is filled up: int64 [batch_size]."""
        own = self.blocks.lengths[self.indices(step)]
        return own if self.length is None else np.full_like(own, self.length)

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
            "input_ids": self._padded(ids, self.pad_id),
            "attention_mask": self._padded([np.ones_like(row) for row in ids], 0),
            "labels": self.blocks.labels(indices),
            "select": np.ones(len(indices), bool),
            "documents": indices.astype(np.int32),
            "blocks": indices,
        }
        if self.types:
            batch["token_type_ids"] = self._padded(self.blocks.segments(indices), 0)
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def fixed(self, count: int, batch_size: int | None = None) -> Iterator[Batch]:
        """`count` rows (at most all) spread evenly over the part, `batch_size` rows at a time."""
        count, size = min(count, len(self.blocks)), batch_size or self.batch_size
        indices = np.arange(count) * len(self.blocks) // count
        indices = indices if self.pool == 1 else self._by_length(indices)
        for start in range(0, count, size):
            yield self.sample(indices[start : start + size])

    def _padded(self, rows: Sequence[np.ndarray], value: int) -> np.ndarray:
        """Rows of different lengths as one array, filled up on the right: int64 [n, T]."""
        longest = max(map(len, rows), default=0) if self.length is None else self.length
        array = np.full((len(rows), longest), value, np.int64)
        for line, row in zip(array, rows, strict=True):
            line[: len(row)] = row
        return array
