"""The batch: its named tensors, where they are, and its parts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Batch = Mapping[str, Tensor]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch where the models are."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def cut(batch: Batch, parts: int) -> list[Batch]:
    """A batch in up to `parts` runs of rows, of equal length but for the last.

    >>> [part["x"].tolist() for part in cut({"x": torch.arange(5)}, 2)]
    [[0, 1, 2], [3, 4]]
    """
    rows = len(next(iter(batch.values())))
    size = -(-rows // parts)
    return [{name: tensor[start : start + size] for name, tensor in batch.items()} for start in range(0, rows, size)]
