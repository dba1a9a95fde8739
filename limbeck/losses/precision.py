"""The precision in which losses are computed."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """The tensor in fp32, or as it is when it is wider: softmax and sums of a loss never run in half precision."""
    return x if x.dtype == torch.float64 else x.float()
