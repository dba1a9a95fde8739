"""Losses on logits, some rows at a time: the value and the slope of a row are found while it is in the cache of the processor.

A loss written plainly makes many passes over `[n, V]`, with a tensor of that size for each. It gives one value a row, so that
rows may be taken a few at a time and differentiated on the spot: the passes then run in fast memory, and all that is kept is
one slope, in the precision of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from limbeck.losses.facts import facts_of
from limbeck.losses.sparse import TopK
from limbeck.losses.tensors import same

BLOCK = 1 << 19  # numbers of a side that are looked at together on a CPU: fp32, 2 MiB


def blockwise(loss: Callable[..., Tensor], student: Tensor, others: Mapping[str, Tensor | TopK | None]) -> Tensor:
    """What `loss(student=student, **others)` gives, value and gradient, one for each row.

    On a GPU, for small logits and where nothing is differentiated it is that call. It can be differentiated once.

    Args:
        loss: maps logits `[n, V]` and the others to `[n]`, row by row.
        student: logits `[n, V]`.
        others: `teacher` `[n, V]` or a `TopK`, `labels` `[n]`, or None, which the loss is given as it is.
    """
    rows = max(1, BLOCK // max(1, student.shape[-1]))
    if student.device.type != "cpu" or len(student) <= rows or not student.requires_grad:
        return loss(student=student, **others)
    for name, it in others.items():
        if it is not None:
            shape = (it.indices if isinstance(it, TopK) else it).shape
            same(f"student and {name}, their rows,", student.shape[:1], shape[:1])
    return _Blockwise.apply(student, loss, others, rows)  # pyright: ignore[reportReturnType]


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, loss: Callable[..., Tensor], others: Any, rows: int) -> Tensor:
        values, ctx.rows, ctx.slope = [], rows, torch.empty_like(student)
        for start in range(0, len(student), rows):
            here = slice(start, start + rows)
            given = {name: _some(it, here) for name, it in others.items()}
            values.append(_on_the_spot(loss, student[here], given, ctx.slope[here]))
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        slope, factors, ctx.slope = ctx.slope, upstream[0], None
        if bool((factors == factors[0]).all()):  # a mean: one number, which stays wide
            return slope.mul_(factors[0].item()), None, None, None
        for start in range(0, len(slope), ctx.rows):
            here = slice(start, start + ctx.rows)
            torch.mul(slope[here], factors[here, None], out=slope[here])
        return slope, None, None, None


def _some(it: Tensor | TopK | None, here: slice) -> Tensor | TopK | None:
    return it.rows(here) if isinstance(it, TopK) else None if it is None else it[here]


def _on_the_spot(
    loss: Callable[..., Tensor], student: Tensor, others: Mapping[str, Tensor | TopK | None], out: Tensor
) -> Tensor:
    """The values of some rows; their slopes go to `out`."""
    if by_hand := facts_of(loss).by_hand:
        values = by_hand(student, others["teacher"], out, **(loss.keywords if isinstance(loss, partial) else {}))
        if bool(values.isfinite().all()):
            return values
    with torch.enable_grad():
        leaf = student.detach().requires_grad_()
        values = loss(student=leaf, **others)
        (slope,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True, materialize_grads=True)
    out.copy_(slope)
    return values.detach()
