"""Losses on logits, some rows at a time: value and slope of a row are found while it is in the cache of the processor.

A loss written plainly makes six to eight passes over `[n, V]`, and as many tensors of that size. It gives one value for each
row, so that rows may be taken a few at a time, each few being differentiated on the spot: the passes then run in fast memory,
and all that is kept is one slope in the precision of the logits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

BLOCK = 1 << 20  # numbers of a side that are looked at together on a CPU: fp32, 4 MiB


def blockwise(loss: Callable[..., Tensor], student: Tensor, others: Mapping[str, Tensor | None]) -> Tensor:
    """What `loss(student=student, **others)` gives, value and gradient, one for each row.

    On a GPU, for small logits and where nothing is differentiated, it is that call.

    Args:
        loss: maps logits `[n, V]` and the others to `[n]`, row by row.
        student: logits `[n, V]`.
        others: `teacher` `[n, V]`, `labels` `[n]`, or None, which the loss takes as they are.
    """
    rows = max(1, BLOCK // max(1, student.shape[-1]))
    if student.device.type != "cpu" or len(student) <= rows or not student.requires_grad:
        return loss(student=student, **others)
    return _Blockwise.apply(student, loss, others, rows)  # pyright: ignore[reportReturnType]


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, loss: Callable[..., Tensor], others: Any, rows: int) -> Tensor:
        values, ctx.slope = [], _free(student)
        for start in range(0, len(student), rows):
            here = slice(start, start + rows)
            given = {name: None if it is None else it[here] for name, it in others.items()}
            with torch.enable_grad():
                leaf = student[here].detach().requires_grad_()
                value = loss(student=leaf, **given)
                (found,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True, materialize_grads=True)
            ctx.slope[here] = found
            values.append(value.detach())
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        slope, ctx.slope = ctx.slope, None
        return slope.mul_(upstream[0][:, None]), None, None, None


_buffers: list[Tensor] = []


def _free(like: Tensor) -> Tensor:
    """A buffer of this shape that nobody holds: large fresh ones cost page faults."""
    for buffer in _buffers:
        if buffer.shape == like.shape and buffer.dtype == like.dtype and sys.getrefcount(buffer) == 3:
            return buffer
    _buffers.append(torch.empty_like(like))
    return _buffers[-1]
