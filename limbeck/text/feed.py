"""Batches as pure functions of (seed, step): no state, no queue, nothing to save in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch

Batch = dict[str, torch.Tensor]


class Batches(Protocol):
    """What training and evaluation ask of a feed."""

    batch_size: int

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """Batch `step` (from 0), or only the given rows of it."""
        ...

    def fixed(self, count: int, batch_size: int | None = None) -> Iterator[Batch]:
        """`count` blocks (at most all) spread evenly over the part, `batch_size` rows at a time."""
        ...


class Repeatable(Batches, Protocol):
    """A feed that knows its rows: it can give the same ones in every epoch, which a cache of answers needs, and tells how long they are."""

    def __len__(self) -> int:
        """How many different rows there are."""
        ...

    @property
    def masks(self) -> Any:
        """What a row that is the same in every epoch is a function of, beside its block: as JSON."""
        ...

    def lengths(self, step: int) -> np.ndarray:
        """The tokens of every row of the whole batch `step`, to the longest of which a micro-batch is filled up: int64 [batch_size]."""
        ...

    def again(self, indices: np.ndarray) -> Batch:
        """The given rows as every epoch reads them."""
        ...
