"""Losses on hidden states: [..., H] -> [...]. Unequal widths are a bridge's matter, not theirs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from limbeck.losses.precision import wide


def mse(*, student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference over the width: mean_H (h_s - h_t)^2.

    The hint of FitNets (arXiv 1412.6550), the hidden and embedding loss of TinyBERT (arXiv 1909.10351).

    Args:
        student: `[..., H]`, already bridged to the teacher's width.
        teacher: `[..., H]`, taken as a constant.

    Returns:
        `[...]`, fp32 or wider.

    Example:
        >>> import torch
        >>> mse(student=torch.zeros(1, 2), teacher=torch.tensor([[1.0, 3.0]]))
        tensor([5.])
    """
    return (wide(student) - wide(teacher.detach())).square().mean(-1)


def cosine(*, student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine of the angle between the vectors: 1 - h_s.h_t / (|h_s| |h_t|).

    The alignment loss of DistilBERT (arXiv 1910.01108). It is blind to length; a zero vector gives 1.

    Args:
        student: `[..., H]`, already bridged to the teacher's width.
        teacher: `[..., H]`, taken as a constant.

    Returns:
        `[...]` in [0, 2], fp32 or wider.

    Example:
        >>> import torch
        >>> cosine(student=torch.tensor([[1.0, 0.0]]), teacher=torch.tensor([[0.0, 2.0]]))
        tensor([1.])
    """
    return 1 - F.cosine_similarity(wide(student), wide(teacher.detach()), dim=-1)
