"""Losses on logits: [..., V] -> [...], so that they serve tokens `[B, T, V]` and classes `[B, C]` alike."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from limbeck.losses.precision import wide

IGNORE = -100


def cross_entropy(*, student: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of the labels, in nats.

    -log softmax(z_s)[y]; exactly 0 where the label is -100.

    Args:
        student: logits `[..., V]`.
        labels: int64 `[...]`, -100 where there is none.

    Returns:
        `[...]`, fp32 or wider.

    Example:
        >>> import torch
        >>> cross_entropy(student=torch.zeros(1, 4), labels=torch.tensor([2]))
        tensor([1.3863])
    """
    flat = F.cross_entropy(wide(student).flatten(0, -2), labels.flatten(), reduction="none", ignore_index=IGNORE)
    return flat.view(labels.shape)


def forward_kl(*, student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Forward Kullback-Leibler divergence of the softened predictions, in nats: the logit loss of Hinton et al.

    T^2 KL(softmax(z_t / T) || softmax(z_s / T)), summed over V. It is 0 at equality. The factor T^2 stands in the value
    *and* the gradient, so that the gradient's size hardly depends on T (arXiv 1503.02531, section 2).

    Args:
        student: logits `[..., V]`.
        teacher: logits `[..., V]`, taken as a constant.
        temperature: T > 0.

    Returns:
        `[...]`, fp32 or wider.

    Example:
        >>> import torch
        >>> forward_kl(student=torch.zeros(1, 2), teacher=torch.tensor([[1.0, 0.0]]), temperature=2.0)
        tensor([0.1212])
    """
    log_s = _log_softmax(student, temperature)
    log_t = _log_softmax(teacher.detach(), temperature)
    return F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1) * temperature**2


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """log softmax(z / T) in fp32 or wider; without a pass over V for the division where T is 1."""
    return F.log_softmax(wide(logits) if temperature == 1 else wide(logits) / temperature, dim=-1)
