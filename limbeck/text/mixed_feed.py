"""Batches that hold a fixed share of rows without labels, spread evenly among the labelled ones."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from math import ceil, floor
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from limbeck.batch import IGNORED
from limbeck.errors import UserError
from limbeck.text.block_feed import Feed
from limbeck.text.feed import Batch
from limbeck.text.row_feed import TaskFeed

Source = TypeVar("Source", Feed, TaskFeed)

FILL = {"labels": IGNORED, "documents": -1}  # beyond the end of a row; zeros elsewhere
CLOSE = 1e-9  # how near to a whole number of rows the share must bring a batch


class Mixed(Generic[Source]):
    """Two feeds of one kind as one: `share` of every batch is text of which no label is used.

    The rows of either kind are those of a feed of its own with that many rows a batch, in its order; row i is
    unlabelled where floor((i + 1) * share) > floor(i * share), so that micro-batches hold both kinds in proportion.
    Unlabelled rows have the labels `IGNORED`, and are numbered (`blocks`, `documents`) after the labelled ones.
    Evaluations (`sample`, `fixed`) read labelled text only.

    Args:
        labelled: its batch size is that of the mixture.
        unlabelled: another feed of the same kind; its own batch size has no meaning.
        share: of the rows of a batch, between 0 and 1.

    Raises:
        UserError: the share is no whole number of rows, or leaves no row of one kind.
    """

    def __init__(self, labelled: Source, unlabelled: Source, share: float) -> None:
        size = labelled.batch_size
        count = _whole(share, size)
        self.labelled, self.batch_size = labelled, size
        self._with, self._without = _of_size(labelled, size - count), _of_size(unlabelled, count)
        before = np.arange(size + 1) * count // size  # unlabelled rows above each row
        self._bare = before[1:] > before[:-1]
        self._places = np.where(self._bare, before[:-1], np.arange(size) - before[:-1])  # among the rows of its kind

    def indices(self, step: int) -> np.ndarray:
        """The blocks of the whole batch `step`, unlabelled ones numbered after the labelled: int64 [batch_size]."""
        indices = np.empty(self.batch_size, np.int64)
        indices[~self._bare] = self._with.indices(step)
        indices[self._bare] = self._without.indices(step) + len(self.labelled.blocks)
        return indices

    def lengths(self, step: int) -> np.ndarray:
        """The tokens of every row of the whole batch `step`: int64 [batch_size]."""
        lengths = np.empty(self.batch_size, np.int64)
        lengths[~self._bare], lengths[self._bare] = self._with.lengths(step), self._without.lengths(step)
        return lengths

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """Batch `step` (from 0), or only the given rows of it: as in the whole, but for padding."""
        chosen = np.arange(self.batch_size)[rows]
        bare, places = self._bare[chosen], self._places[chosen]
        parts: list[tuple[np.ndarray, Batch]] = []
        if not bare.all() or not len(bare):
            parts.append((~bare, _rows(self._with, step, places[~bare])))
        if bare.any():
            parts.append((bare, self._after(_rows(self._without, step, places[bare]))))
        return self._whole(parts)

    def _whole(self, parts: list[tuple[np.ndarray, Batch]]) -> Batch:
        pad_id = self.labelled.pad_id if isinstance(self.labelled, TaskFeed) else 0
        fill = FILL | {"input_ids": pad_id}
        return {
            name: _joined([(where, part[name]) for where, part in parts], fill.get(name, 0)) for name in parts[0][1]
        }

    def __len__(self) -> int:
        return len(self._with) + len(self._without)

    @property
    def masks(self) -> Any:
        """What a row that is the same in every epoch is a function of, beside its block."""
        return [self._with.masks, self._without.masks]

    def again(self, indices: np.ndarray) -> Batch:
        """The given blocks as every epoch reads them."""
        bare = indices >= len(self._with)
        kinds = (
            (~bare, self._with.again),
            (bare, lambda rows: self._after(self._without.again(rows - len(self._with)))),
        )
        return self._whole([(where, read(indices[where])) for where, read in kinds if where.any()])

    def sample(self, indices: np.ndarray) -> Batch:
        """The given blocks of the labelled text, for an evaluation."""
        return self.labelled.sample(indices)

    def fixed(self, count: int, batch_size: int | None = None) -> Iterator[Batch]:
        """`count` blocks (at most all) spread evenly over the labelled text, `batch_size` rows at a time."""
        return self.labelled.fixed(count, batch_size)

    def _after(self, batch: Batch) -> Batch:
        """A batch without labels, numbered after the labelled text."""
        blocks, documents = self.labelled.blocks, batch["documents"]
        return batch | {
            "labels": torch.full_like(batch["labels"], IGNORED),
            "documents": torch.where(documents < 0, documents, documents + len(blocks.documents)),
            "blocks": batch["blocks"] + len(blocks),
        }


def _whole(share: float, size: int) -> int:
    """The unlabelled rows of a batch."""
    rows = share * size
    count = round(rows)
    if abs(rows - count) <= CLOSE and 0 < count < size:
        return count
    if size < 2:
        raise UserError(f"train.batch_size ({size}) has no room for both kinds of rows of data.unlabelled; raise it")
    nearest = sorted({min(max(whole, 1), size - 1) for whole in (floor(rows), ceil(rows))})
    shares = " or ".join(str(whole / size) for whole in nearest)
    what = f"data.unlabelled.share ({share}) of train.batch_size ({size}) makes {rows:g} rows without labels"
    raise UserError(f"{what}, and must be a whole number of them beside labelled ones; set the share to {shares}")


def _of_size(feed: Source, size: int) -> Source:
    """The same feed with other batches."""
    feed = copy(feed)
    feed.batch_size = size
    return feed


def _rows(feed: Feed | TaskFeed, step: int, places: np.ndarray) -> Batch:
    """The given rows of a batch."""
    if not len(places):
        return feed.batch(step, slice(0, 0))
    first = int(places.min())
    batch = feed.batch(step, slice(first, int(places.max()) + 1))
    return {name: tensor[torch.from_numpy(places - first)] for name, tensor in batch.items()}


def _joined(parts: list[tuple[np.ndarray, Tensor]], fill: int) -> Tensor:
    """Rows put where each part says, filled up on the right to the longest."""
    shape = [max(tensor.shape[axis] for _, tensor in parts) for axis in range(parts[0][1].dim())]
    shape[0] = len(parts[0][0])
    whole = parts[0][1].new_full(shape, fill)
    for where, tensor in parts:
        rows = torch.from_numpy(where)
        if tensor.dim() == 1:
            whole[rows] = tensor
        else:
            whole[rows, : tensor.shape[1]] = tensor
    return whole
