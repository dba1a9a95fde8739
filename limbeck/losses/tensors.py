"""What all losses share: their precision, how a mask acts on what goes in and on what comes out, and what is refused.

A loss whose input is garbage must not be multiplied by 0: NaN x 0 is NaN, in the value and in the gradient. So masked
positions are replaced before the mathematics (`blank`), and their values after it (`silent`). A NaN that counts must reach
the value: so a comparison that NaN fails (`x > 0`) never decides what is left out.

Shapes that would broadcast are refused, with a `ValueError` of one line. The checks look at shapes and dtypes alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.errors import KINDS


def wide(x: Tensor) -> Tensor:
    """The tensor in fp32, or as it is when it is wider: softmax and sums of a loss never run in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def blank(mask: Tensor | None, x: Tensor) -> Tensor:
    """`x`, wide, with 0 where the mask (over its leading axes) is False: what stood there reaches no value and no gradient."""
    if mask is None:
        return wide(x)
    return torch.where(mask.reshape(mask.shape + (1,) * (x.dim() - mask.dim())), wide(x), 0)


def both(mask: Tensor | None, student: Tensor, teacher: Tensor, axes: str = "") -> tuple[Tensor, Tensor]:
    """Student and teacher of one shape, blanked; the teacher as a constant. `axes` names all of theirs: `B T H`.

    Raises:
        ValueError: the shapes differ, or the mask has not exactly their axes before the last.
    """
    same("student and teacher", student.shape, teacher.shape)
    return sides(mask, student, teacher, axes)


def sides(mask: Tensor | None, student: Tensor, teacher: Tensor, axes: str = "") -> tuple[Tensor, Tensor]:
    """As `both`, but the last axis, the width, may differ."""
    of_axes(axes, student, teacher)
    same("student and teacher, their widths left out,", student.shape[:-1], teacher.shape[:-1])
    fits(mask, student.shape[:-1])
    return blank(mask, student), blank(mask, teacher.detach())


def maps(mask: Tensor | None, student: Tensor, teacher: Tensor) -> None:
    """Refuses attention maps `[B, h, T, S]` that differ in more than their heads, and a mask that is not theirs."""
    of_axes("B h T S", student, teacher)
    rows, queries, keys = (student.shape[axis] for axis in (0, 2, 3))
    same("student and teacher, their heads left out,", (rows, queries, keys), teacher.shape[:1] + teacher.shape[2:])
    pairs = (rows, 1, queries, keys)
    if mask is not None and mask.dim() == 4:  # an axis of 1 is said, not guessed
        pairs = tuple(1 if here == 1 else whole for here, whole in zip(mask.shape, pairs, strict=True))
    fits(mask, (rows, keys), pairs)


def same(what: str, one: Sequence[int], other: Sequence[int]) -> None:
    """Refuses two shapes that differ: broadcasting would compare what does not belong together."""
    if tuple(one) != tuple(other):
        raise ValueError(f"{what} differ in shape: {list(one)} and {list(other)}")


def of_axes(names: str, *tensors: Tensor) -> None:
    """Refuses tensors that have not so many axes as are named: `of_axes("B T H", states)`."""
    count = len(names.split())
    for x in tensors:
        if count and x.dim() != count:
            raise ValueError(f"this loss takes [{', '.join(names.split())}], not {list(x.shape)}")


def fits(mask: Tensor | None, *shapes: Sequence[int]) -> None:
    """Refuses a mask that is not bool, or of none of these shapes."""
    if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) not in [tuple(shape) for shape in shapes]):
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"the mask must be torch.bool {wanted} here, not {mask.dtype} {list(mask.shape)}")


def allowed(kind: str, **values: float) -> None:
    """Refuses hyper-parameters that a recipe refuses: `allowed("positive", temperature=2.0)`; `kind` is one of `errors.KINDS`."""
    what, holds = KINDS[kind]
    for name, value in values.items():
        if not holds(value.item() if hasattr(value, "item") else value):  # pyright: ignore[reportAttributeAccessIssue]
            raise ValueError(f"{name} must be {what}, not {value!r}")


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
    """`x` divided by its Euclidean norm along `dim`; a zero vector stays zero, with no gradient; NaN anywhere is NaN all over."""
    squares = x.square().sum(dim, keepdim=True)
    some = squares != 0
    return torch.where(some, x, 0) * torch.where(some, squares, 1).rsqrt()


def smooth_l1(difference: Tensor) -> Tensor:
    """d^2 / 2 within 1 of zero, |d| - 1/2 outside (Huber's loss at delta = 1)."""
    size = difference.abs()
    return torch.where(size < 1, size.square() / 2, size - 0.5)
