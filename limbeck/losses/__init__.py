"""The losses: pure functions that do not reduce, in one dict that you can read.

Every loss is called by keyword with what it needs of `student, teacher, labels, mask` and its hyper-parameters, and
returns one value per token. Masking and averaging happen outside, once, in `limbeck.reduce`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from limbeck.losses.attention import attention_scores_mse
from limbeck.losses.hidden import cosine, mse
from limbeck.losses.logits import cross_entropy, forward_kl

Loss = Callable[..., Tensor]

LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "forward_kl": forward_kl,
    "mse": mse,
    "cosine": cosine,
    "attention_scores_mse": attention_scores_mse,
}

__all__ = ["LOSSES", "Loss", "attention_scores_mse", "cosine", "cross_entropy", "forward_kl", "mse"]
