"""Batches that hold fixed shares of rows of other texts, spread evenly among those of the first one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Beside(Generic[Source]):
    """A text that is mixed into every batch of another one."""

    feed: Source  # its own batch size has no meaning
    share: float  # of the rows of a batch, between 0 and 1
    labels: bool = True  # whether its labels are learnt from


class Mixed(Generic[Source]):
    """Several feeds of one kind as one: a fixed share of every batch is of each.

    The rows of each text are those of a feed of its own with that many rows a batch, in its order. Of n rows that are left,
    row i is of the next text where floor((i + 1) * share) > floor(i * share), so that micro-batches hold all texts in
    proportion. Rows without labels have the labels `IGNORED`. Rows are numbered (`blocks`, `documents`) text by text.
    Evaluations (`sample`, `fixed`) read the first text only.

    Args:
        main: its batch size is that of the mixture.
        others: the texts beside it, by the places in a recipe at which their shares stand.

    Raises:
        UserError: a share is no whole number of rows, or none is left for the first text.
    """

    def __init__(self, main: Source, others: Mapping[str, Beside[Source]]) -> None:
        size = main.batch_size
        counts = counts_of({place: other.share for place, other in others.items()}, size)
        feeds = [main, *(other.feed for other in others.values())]
        self.main, self.batch_size = main, size
        self._feeds = [_of_size(it, rows) for it, rows in zip(feeds, [size - sum(counts), *counts], strict=True)]
        self._labels = [True, *(other.labels for other in others.values())]
        self._blocks = np.cumsum([0, *(len(feed) for feed in feeds)])  # the number of each text's first block
        self._documents = np.cumsum([0, *(len(feed.blocks.documents) for feed in feeds)])
        self._whose = _spread(counts, size)  # the text of each row
        self._places = self._of_each([np.arange(feed.batch_size) for feed in self._feeds])  # among the rows of its text

    def indices(self, step: int) -> np.ndarray:
        """The blocks of the whole batch `step`, numbered text by text: int64 [batch_size]."""
        return self._of_each(
            [feed.indices(step) + first for feed, first in zip(self._feeds, self._blocks, strict=False)]
        )

    def lengths(self, step: int) -> np.ndarray:
        """The tokens of every row of the whole batch `step`: int64 [batch_size]."""
        return self._of_each([feed.lengths(step) for feed in self._feeds])

    def _of_each(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """The values of each text's rows at their places in the batch."""
        whole = np.empty(self.batch_size, np.int64)
        for number, mine in enumerate(values):
            whole[self._whose == number] = mine
        return whole

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """Batch `step` (from 0), or only the given rows of it: as in the whole, but for padding."""
        whose, places = self._whose[rows], self._places[rows]
        if not len(whose):
            return self.main.batch(step, slice(0, 0))
        return self._whole(whose, lambda number, mine: _rows(self._feeds[number], step, places[mine]))

    def _whole(self, whose: np.ndarray, read: Callable[[int, np.ndarray], Batch]) -> Batch:
        """The rows of each text, read where they are, as one batch."""
        parts = []
        for number in np.unique(whose):
            mine = whose == number
            parts.append((mine, self._numbered(number, read(number, mine))))
        pad_id = self.main.pad_id if isinstance(self.main, TaskFeed) else 0
        fill = FILL | {"input_ids": pad_id}
        return {
            name: _joined([(where, part[name]) for where, part in parts], fill.get(name, 0)) for name in parts[0][1]
        }

    def __len__(self) -> int:
        return int(self._blocks[-1])

    @property
    def masks(self) -> Any:
        """What a row that is the same in every epoch is a function of, beside its block."""
        return [feed.masks for feed in self._feeds]

    def again(self, indices: np.ndarray) -> Batch:
        """The given blocks as every epoch reads them."""
        whose = np.searchsorted(self._blocks, indices, side="right") - 1
        return self._whole(whose, lambda number, mine: self._feeds[number].again(indices[mine] - self._blocks[number]))

    def sample(self, indices: np.ndarray) -> Batch:
        """The given blocks of the first text, for an evaluation."""
        return self.main.sample(indices)

    def fixed(self, count: int, batch_size: int | None = None) -> Iterator[Batch]:
        """`count` blocks (at most all) spread evenly over the first text, `batch_size` rows at a time."""
        return self.main.fixed(count, batch_size)

    def _numbered(self, number: int, batch: Batch) -> Batch:
        """Rows of a text, numbered after those before it, with labels where they are learnt from."""
        labels, documents = batch["labels"], batch["documents"]
        return batch | {
            "labels": labels if self._labels[number] else torch.full_like(labels, IGNORED),
            "documents": torch.where(documents < 0, documents, documents + int(self._documents[number])),
            "blocks": batch["blocks"] + int(self._blocks[number]),
        }


def counts_of(shares: Mapping[str, float], size: int) -> list[int]:
    """The rows of a batch of each text, whose shares stand at these places of a recipe.

    Raises:
        UserError: a share is no whole number of rows, or none is left for the first text.
    """
    counts = [_whole(place, share, size) for place, share in shares.items()]
    if counts and sum(counts) >= size:
        raise UserError(f"{', '.join(shares)}: their shares leave no row of a batch to data.corpus; lower one")
    return counts


def _whole(place: str, share: float, size: int) -> int:
    """The rows of a batch that a share is."""
    rows = share * size
    count = round(rows)
    if abs(rows - count) <= CLOSE and 0 < count < size:
        return count
    if size < 2:
        raise UserError(f"train.batch_size ({size}) has no room for the rows of {place} beside others; raise it")
    nearest = sorted({min(max(whole, 1), size - 1) for whole in (floor(rows), ceil(rows))})
    shares = " or ".join(str(whole / size) for whole in nearest)
    what = f"{place}.share ({share}) of train.batch_size ({size}) makes {rows:g} rows"
    raise UserError(f"{what}, and must be a whole number of them beside others; set the share to {shares}")


def _spread(counts: Sequence[int], size: int) -> np.ndarray:
    """Which text each row of a batch is of: so many of each but the first, evenly among the rows that are left: int64 [size]."""
    whose, left = np.zeros(size, np.int64), np.arange(size)
    for number, count in enumerate(counts, start=1):
        before = np.arange(len(left) + 1) * count // len(left)
        mine = before[1:] > before[:-1]
        whose[left[mine]] = number
        left = left[~mine]
    return whose


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
