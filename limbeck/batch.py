"""The batch: its views, their named tensors, where they are, and their parts.

B rows, T tokens. A view holds what an actor reads and what belongs to it:

| name | dtype and shape | |
|---|---|---|
| `input_ids` | int64 `[B, T]` | |
| `attention_mask` | int64 `[B, T]` | 1 where a token is, 0 for padding |
| `labels` | int64 `[B, T]`, of a task `[B]` | `IGNORED` where there is none |
| `select` | bool, as `labels` | whose logits a logit loss looks at |
| `documents` | int32, as `labels` | the number of the document or row, -1 for none |
| `blocks` | int64 `[B]` | the number of the block or row |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Batch: TypeAlias = "Mapping[str, Tensor]"  # one view: its tensors by name
Views: TypeAlias = "Mapping[str, Batch]"  # what a step reads: its views by name, row for row of the same texts
TEXT = "text"  # the view that a feed gives
IGNORED = -100  # the label of what has none


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch where the models are."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def cut(batch: Batch, parts: int) -> list[Batch]:
    """A batch in up to `parts` runs of rows, of equal length but for the last.

    >>> import torch
    >>> [part["x"].tolist() for part in cut({"x": torch.arange(5)}, 2)]
    [[0, 1, 2], [3, 4]]
    """
    rows = len(next(iter(batch.values())))
    size = -(-rows // parts)
    return [{name: tensor[start : start + size] for name, tensor in batch.items()} for start in range(0, rows, size)]


def cut_views(views: Views, parts: int) -> list[Views]:
    """All views in the same runs of rows."""
    pieces = {name: cut(batch, parts) for name, batch in views.items()}
    return [dict(zip(pieces, part, strict=True)) for part in zip(*pieces.values(), strict=True)]
