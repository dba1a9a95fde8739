"""What all losses share: their precision, and how a mask acts on what goes in and on what comes out.

A loss whose input is garbage must not be multiplied by 0: NaN x 0 is NaN, in the value and in the gradient. So masked
positions are replaced before the mathematics (`blank`), and their values after it (`silent`).
"""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """The tensor in fp32, or as it is when it is wider: softmax and sums of a loss never run in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def blank(mask: Tensor | None, x: Tensor) -> Tensor:
    """`x`, wide, with 0 where the mask (over its leading axes) is False: what stood there reaches no value and no gradient."""
    if mask is None:
        return wide(x)
    if mask.shape != x.shape[: mask.dim()] or mask.dtype != torch.bool:
        raise ValueError(
            f"a mask is bool and has the leading axes of what it masks: {list(mask.shape)} ({mask.dtype}) for {list(x.shape)}"
        )
    return torch.where(mask.reshape(mask.shape + (1,) * (x.dim() - mask.dim())), wide(x), 0)


def both(mask: Tensor | None, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Student and teacher of one shape, blanked; the teacher as a constant.

    Raises:
        ValueError: the shapes differ: broadcasting would compare what does not belong together.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student and teacher differ in shape: {list(student.shape)} and {list(teacher.shape)}")
    return blank(mask, student), blank(mask, teacher.detach())


def silent(mask: Tensor | None, values: Tensor) -> Tensor:
    """The values with exactly 0 where the mask is False."""
    return values if mask is None else torch.where(mask, values, 0)


def whole(mask: Tensor | None, like: Tensor, axes: int) -> Tensor:
    """The mask, or all True over the first `axes` axes of `like` where there is none."""
    return torch.ones(like.shape[:axes], dtype=torch.bool, device=like.device) if mask is None else mask


def product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product in the operands' own precision, also where autocast would take a lower one."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    with torch.autocast(a.device.type, enabled=False):
        return a.to(dtype) @ b.to(dtype)


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """`x` divided by its Euclidean norm along `dim`; a zero vector stays zero, with no gradient."""
    squares = x.square().sum(dim, keepdim=True)
    some = squares > 0
    return torch.where(some, x, 0) * torch.where(some, squares, 1).rsqrt()


def smooth_l1(difference: Tensor) -> Tensor:
    """d^2 / 2 within 1 of zero, |d| - 1/2 outside (Huber's loss at delta = 1)."""
    size = difference.abs()
    return torch.where(size < 1, size.square() / 2, size - 0.5)
