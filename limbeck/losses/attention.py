"""Losses on attention maps: [B, h, T, S] -> [B, T], one value per query token.

B batch, h heads, T queries, S keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.losses.precision import wide


def attention_scores_mse(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of the attention scores before softmax, over heads and visible keys.

    For query i: mean over heads and over the keys j that i sees of (s_s[i, j] - s_t[i, j])^2, s = q.k / sqrt(d). The
    attention loss of TinyBERT (arXiv 1909.10351); without padding its mean over the tokens equals TinyBERT's mean over
    B h T T. Where TinyBERT sets scores under -100 to 0, keys that are not seen are left out, of sum and count.

    Args:
        student: scores `[B, h, T, S]`.
        teacher: scores `[B, h, T, S]`, taken as a constant.
        mask: bool, which key each query sees: `[B, 1, T, S]`, or `[B, S]` for padding alone. None: all.

    Returns:
        `[B, T]`, fp32 or wider. A query that sees nothing gives exactly 0.

    Example:
        >>> import torch
        >>> attention_scores_mse(student=torch.zeros(1, 2, 1, 3), teacher=torch.full((1, 2, 1, 3), 2.0))
        tensor([[4.]])
    """
    difference = wide(student) - wide(teacher.detach())
    if mask is None:
        return difference.square().mean(dim=(1, 3))
    seen_BTS = (mask[:, None, None, :] if mask.dim() == 2 else mask).expand(-1, 1, *difference.shape[2:])
    squares_BTS = torch.where(seen_BTS, difference, 0).square().mean(1)
    return squares_BTS.sum(-1) / seen_BTS.squeeze(1).sum(-1).clamp(min=1)
