"""What a published code computes where it differs from the losses here: for comparisons with its numbers.

Padding counts in two of them, as it does in that code, and is averaged over with the rest. B rows, T tokens, h heads, H width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.losses.attention import common_heads, grouped
from limbeck.losses.logits import soft_cross_entropy
from limbeck.losses.tensors import both, fits, maps, wide

ZEROED = -100.0  # the code takes every score from here down for a masked one


def tinybert_scores_mse(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """TinyBERT's code: mean squared difference of the attention scores, hidden keys as zeros that count.

    mean_{h, i, j} (s_s[i, j] - s_t[i, j])^2 over all heads, queries and keys of a row, after every score of a key that is not seen,
    and every score <= -100, is set to 0, on each side for itself. Padded queries stay, and padded keys stay in the denominator. The
    mean over the rows is the code's mean over B h T T. Source: Jiao et al. 2019 (TinyBERT), arXiv 1909.10351, as in
    huawei-noah/Pretrained-Language-Model.

    When: a comparison with numbers of that code; otherwise `attention_scores_mse`, to which padding is nothing.

    Args:
        student: scores `[B, h_s, T, S]`.
        teacher: scores `[B, h_t, T, S]`, taken as a constant; of unequal heads, which the code refuses, those of a group are averaged.
        mask: which key each query sees, bool `[B, 1, T, S]`, or which keys are no padding, bool `[B, S]`. None: all.

    Returns:
        `[B]`, fp32 or wider; 0 at equality.

    Raises:
        ValueError: neither head count divides the other.

    Example:
        >>> import torch
        >>> student, kept = torch.ones(1, 1, 2, 2), torch.tensor([[True, False]])
        >>> tinybert_scores_mse(student=student, teacher=torch.zeros(1, 1, 2, 2), mask=kept)
        tensor([0.5000])

    Recipe:
        {loss: tinybert_scores_mse, tap: scores, layers: skip, weight: 1.0}
    """
    maps(mask, student, teacher)
    seen = mask[:, None, None, :] if mask is not None and mask.dim() == 2 else mask
    heads = common_heads(student, teacher)
    mine, theirs = (grouped(_zeroed(x, seen), heads) for x in (student, teacher.detach()))
    return _mean_of_rows((mine - theirs).square())


def tinybert_hidden_mse(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """TinyBERT's code: mean squared difference of hidden states, padding counted.

    mean_{i, H} (h_s[i] - h_t[i])^2 over all positions of a row; the mean over the rows is the code's mean over B T H, which looks at no
    mask. Source: Jiao et al. 2019 (TinyBERT), arXiv 1909.10351, as in huawei-noah/Pretrained-Language-Model.

    When: a comparison with numbers of that code; otherwise `mse`, to which padding is nothing.

    Args:
        student: `[B, T, H]`, already projected to the teacher's width.
        teacher: `[B, T, H]`, taken as a constant.
        mask: not looked at.

    Returns:
        `[B]`, fp32 or wider; 0 at equality.

    Example:
        >>> import torch
        >>> teacher, kept = torch.tensor([[[1.0], [3.0]]]), torch.tensor([[True, False]])
        >>> tinybert_hidden_mse(student=torch.zeros(1, 2, 1), teacher=teacher, mask=kept)
        tensor([5.])

    Recipe:
        {loss: tinybert_hidden_mse, tap: hidden, layers: skip, projection: shared, weight: 1.0}
    """
    fits(mask, student.shape[:-1])
    student, teacher = both(None, student, teacher, "B T H")
    return _mean_of_rows((student - teacher).square())


def tinybert_soft_cross_entropy(
    *, student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """TinyBERT's code: cross-entropy under the teacher's softened prediction, a mean over the classes.

    -1/C sum_c p_t[c] log p_s[c], p = softmax(z / T), without T^2: `soft_cross_entropy` divided by T^2 C. At C = 2 its gradient is half
    of that one, of a vocabulary next to nothing. Source: Jiao et al. 2019 (TinyBERT), arXiv 1909.10351, as in
    huawei-noah/Pretrained-Language-Model.

    When: a comparison with numbers of that code; otherwise `forward_kl`.

    Args:
        student: logits `[..., C]`.
        teacher: logits `[..., C]`, taken as a constant.
        mask: bool `[...]`, which positions count. None: all.
        temperature: T > 0.

    Returns:
        `[...]`, fp32 or wider; the teacher's entropy over C at equality.

    Example:
        >>> import torch
        >>> tinybert_soft_cross_entropy(student=torch.zeros(1, 2), teacher=torch.tensor([[1.0, 0.0]]))
        tensor([0.3466])

    Recipe:
        {loss: tinybert_soft_cross_entropy, temperature: 1.0, weight: 1.0}
    """
    entropies = soft_cross_entropy(student=student, teacher=teacher, mask=mask, temperature=temperature)
    return entropies / (temperature**2 * student.shape[-1])


def _mean_of_rows(x: Tensor) -> Tensor:
    """The mean over all axes but the first, 0 of nothing."""
    rest = tuple(range(1, x.dim()))
    return x.mean(rest) if x.numel() else x.sum(rest)


def _zeroed(scores: Tensor, seen: Tensor | None) -> Tensor:
    """The scores with 0 where a key is not seen or the score is -100 or less: what stood there reaches no value and no gradient."""
    scores = wide(scores)
    gone = scores <= ZEROED if seen is None else ~seen | (scores <= ZEROED)
    return torch.where(gone, 0, scores)
