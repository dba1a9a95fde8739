"""Attention forward and backward on this CPU: torch's fused kernel against two matrix products, alternating, medians.

python benchmarks/attention.py
"""

from __future__ import annotations

from statistics import median
from time import perf_counter

import torch
import torch.nn.functional as F

from limbeck.models.attention import Attended, plain
from limbeck.system.environment import keep_freed_memory

SHAPES = [(32, 8, 128, 32), (32, 12, 128, 16), (16, 12, 128, 64), (4, 12, 512, 64)]  # batch, heads, tokens, width
ROUNDS = 12


def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Torch's own."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """limbeck's."""
    return plain(Attended(q, k, v, mask=None, causal=False, scaling=q.shape[-1] ** -0.5), dropout=0.0)


def milliseconds(attend, inputs: list[torch.Tensor], slope: torch.Tensor) -> float:
    """Of one forward and backward."""
    start = perf_counter()
    attend(*inputs).backward(slope)
    for tensor in inputs:
        tensor.grad = None
    return 1e3 * (perf_counter() - start)


keep_freed_memory()
print("batch x heads x tokens x width  dtype     fused ms  products ms  ratio")
for batch, heads, tokens, width in SHAPES:
    for dtype in (torch.bfloat16, torch.float32):
        inputs = [torch.randn(batch, heads, tokens, width).to(dtype).requires_grad_() for _ in range(3)]
        slope = torch.randn(batch, tokens, heads, width).to(dtype)
        pairs = [(milliseconds(fused, inputs, slope), milliseconds(products, inputs, slope)) for _ in range(ROUNDS)]
        a, b = (median(side) for side in zip(*pairs, strict=True))
        shape = f"{batch} x {heads} x {tokens} x {width}"
        print(f"{shape:30}  {str(dtype).removeprefix('torch.'):8}  {a:8.1f}  {b:11.1f}  {a / b:5.2f}")
