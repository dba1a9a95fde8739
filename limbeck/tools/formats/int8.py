"""Layers of whole numbers: what a file of ONNX multiplies, in torch and as operators of ONNX.

In torch they are the quantised model in memory that a file is held against; while `torch.onnx.export` reads the model, they are the
operators themselves. Both do the same arithmetic: products of whole numbers are exact, so nothing differs but the last bits of what
lies between them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.models.compressed import Grid, from_grid, on_grid


def dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ONNX's DynamicQuantizeLinear: one scale for the whole tensor, and 0 is exact.

    `s = (max(0, max x) - min(0, min x)) / 255`, `z = round(-min(0, min x) / s)`, `q = clamp(round(x / s) + z, 0, 255)`, half to even.

    Returns:
        q, uint8 shaped as x, s and z.

    >>> dynamic_quantize(torch.tensor([0.0, 1.0, 255.0]))
    (tensor([  0,   1, 255], dtype=torch.uint8), tensor(1.), tensor(0, dtype=torch.uint8))
    """
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = (-low / scale).round().clamp(0, 255)
    return ((x / scale).round() + zero).clamp(0, 255).to(torch.uint8), scale, zero.to(torch.uint8)


class _Whole(nn.Module):
    """What the kinds share: whole numbers `[out, in]` and their scales `[out, groups]`."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, grid: Grid) -> None:
        super().__init__()
        whole, scale = on_grid(weight, grid)
        self.register_buffer("weight", whole)
        self.register_buffer("scale", scale)
        self.bias, self.bits = bias, grid.bits


class IntegerLinear(_Whole):
    """A linear layer of int8 weights, one scale for each output, whose inputs become 8 bits as they come.

    `y = s_x s_w (q_x - z_x) q_w^T + b`, the product in whole numbers.

    Args:
        weight: `[out, in]`.
        bias: `[out]`, or None.
        grid: without groups.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, grid: Grid) -> None:
        super().__init__(weight, bias, grid)
        self.register_buffer("scale", self.scale[:, 0].contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`."""
        if torch.onnx.is_in_onnx_export():
            total, scale = self._operators(x)
        else:
            whole, scale, zero = dynamic_quantize(x)
            rows = whole.double() - zero.double()  # float64 holds every sum
            total = (rows @ self.weight.double().T).float()
        y = total * (scale * self.scale)
        return y if self.bias is None else y + self.bias

    def _operators(self, x: Tensor) -> tuple[Tensor, Tensor]:
        op: Any = torch.onnx.ops
        whole, scale, zero = op.symbolic_multi_out(
            "DynamicQuantizeLinear",
            (x,),
            dtypes=(torch.uint8, torch.float32, torch.uint8),
            shapes=(x.shape, (), ()),
        )
        shape = (*x.shape[:-1], self.weight.shape[0])
        inputs = (whole, self.weight.T, zero)
        return op.symbolic("MatMulInteger", inputs, dtype=torch.int32, shape=shape).float(), scale


class GroupedLinear(_Whole):
    """A linear layer of int8 weights whose input columns have a scale for each group: they are multiplied out first.

    Args:
        weight: `[out, in]`.
        bias: `[out]`, or None.
        grid: with groups.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`."""
        return F.linear(x, from_grid(self.weight, self.scale), self.bias)


class IntegerEmbedding(_Whole):
    """A table of int8 rows with a scale for each, or for each group of columns: a row is multiplied out when it is read.

    Args:
        weight: `[V, H]`.
        grid: of a row.
    """

    def __init__(self, weight: Tensor, grid: Grid) -> None:
        super().__init__(weight, None, grid)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 `[...]` -> `[..., H]`."""
        rows, scale = F.embedding(ids, self.weight).float(), F.embedding(ids, self.scale)
        return (rows.unflatten(-1, (scale.shape[-1], -1)) * scale.unsqueeze(-1)).flatten(-2)
