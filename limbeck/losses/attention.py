"""Losses on attention: maps [B, h, T, S] and their relatives -> [B, T], one value per query token.

B rows, h heads, T queries, S keys, A relation heads. A mask says which key each query sees, bool `[B, 1, T, S]` (an axis may be 1); or which
tokens are no padding, bool `[B, S]`, which where T = S takes out the padded queries as well. Where the head counts differ
and one divides the other, contiguous groups of the larger side's heads are averaged (`grouped`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.losses.divergences import NEVER, dropped_columns, kl
from limbeck.losses.tensors import allowed, fits, maps, of_axes, product, same, silent, wide


def attention_scores_mse(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of the attention scores before softmax, over heads and visible keys.

    For query i: mean over heads and over the keys j that i sees of (s_s[i, j] - s_t[i, j])^2, s = q.k / sqrt(d). Without
    padding its mean over the tokens equals TinyBERT's mean over B h T T. Where TinyBERT sets scores under -100 to 0, keys
    that are not seen are left out, of sum and count. Source: Jiao et al. 2019 (TinyBERT), arXiv 1909.10351.

    When: student and teacher have the same number of heads. Scores are large: mind the weight, or set `balance`.

    Args:
        student: scores `[B, h_s, T, S]`.
        teacher: scores `[B, h_t, T, S]`, taken as a constant; of unequal heads the scores of a group are averaged.
        mask: which key each query sees. None: all.

    Returns:
        `[B, T]`, fp32 or wider; 0 at equality; a query that sees nothing gives exactly 0.

    Raises:
        ValueError: neither head count divides the other.

    Example:
        >>> import torch
        >>> attention_scores_mse(student=torch.zeros(1, 2, 1, 3), teacher=torch.full((1, 2, 1, 3), 2.0))
        tensor([[4.]])

    Recipe:
        {loss: attention_scores_mse, tap: scores, layers: uniform, weight: 1.0}
    """
    return _map_mse(student, teacher, mask)


def attention_mse(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of the attention probabilities, over heads and visible keys.

    For query i: mean over heads and over the keys j that i sees of (a_s[i, j] - a_t[i, j])^2.
    Source: Jiao et al. 2019 (TinyBERT), arXiv 1909.10351, where it is weighed against the scores.

    When: the scores' scale differs too much between the models. Probabilities are small: the weight must be large.

    Args:
        student: probabilities `[B, h_s, T, S]`.
        teacher: probabilities `[B, h_t, T, S]`, taken as a constant; those of a group of heads are averaged.
        mask: which key each query sees. None: all.

    Returns:
        `[B, T]`, fp32 or wider; 0 at equality; a query that sees nothing gives exactly 0.

    Raises:
        ValueError: neither head count divides the other.

    Example:
        >>> import torch
        >>> attention_mse(student=torch.zeros(1, 2, 1, 2), teacher=torch.full((1, 2, 1, 2), 0.5))
        tensor([[0.2500]])

    Recipe:
        {loss: attention_mse, tap: probs, layers: uniform, weight: 100.0}
    """
    return _map_mse(student, teacher, mask)


def attention_kl(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Kullback-Leibler divergence of the attention distributions, in nats, from the scores before softmax.

    For query i: mean over heads of KL(softmax(s_t[i, :]) || softmax(s_s[i, :])) over the keys that i sees. From scores and
    not from probabilities, so that nothing underflows. The mean over tokens weighs all tokens alike; the paper takes the
    mean of each sequence first. Source: Wang et al. 2020 (MiniLM), arXiv 2002.10957.

    When: only the last layer's attention is to be copied, and layers and widths differ freely.

    Args:
        student: scores `[B, h_s, T, S]`.
        teacher: scores `[B, h_t, T, S]`, taken as a constant; of unequal heads the probabilities of a group are averaged.
        mask: which key each query sees. None: all.

    Returns:
        `[B, T]`, fp32 or wider; 0 at equality; a query that sees nothing gives exactly 0.

    Raises:
        ValueError: neither head count divides the other.

    Example:
        >>> import torch
        >>> attention_kl(student=torch.zeros(1, 1, 1, 2), teacher=torch.tensor([[[[1.0, 0.0]]]]))
        tensor([[0.1109]])

    Recipe:
        {loss: attention_kl, tap: scores, layers: last, weight: 1.0}
    """
    seen = _pairs(mask, student, teacher)
    log_s, log_t = _log_attention(student, seen), _log_attention(teacher.detach(), seen)
    heads = common_heads(log_s, log_t)
    log_s, log_t = (_mean_of_logs(x, heads) for x in (log_s, log_t))
    return _of_queries(kl(log_t, log_s).mean(1), seen)


def relation_kl(
    *,
    student: Tensor | tuple[Tensor, ...],
    teacher: Tensor | tuple[Tensor, ...],
    mask: Tensor | None = None,
    relation_heads: int | None = None,
) -> Tensor:
    """Relations among queries, among keys, or among values: self-attention knowledge of any head count.

    All heads are joined to one vector for each token and cut into A relation heads of width d = width / A;
    R = softmax(X X' / sqrt(d)) over the kept tokens; mean over A of KL(R_t || R_s) for each token, added up over the
    relations given. The mean over tokens weighs all alike; the paper takes each sequence's first. Causal models too: relations reach forwards as in the paper, since they describe vectors and predict
    nothing. Taps are read after rotary embedding. Grouped-query models have narrower keys and values: A must divide each
    width. Source: Wang et al. 2020 (MiniLMv2), arXiv 2012.15828.

    When: head counts differ, or as the one loss of task-agnostic distillation: last student layer from the teacher's last
    (or, in large teachers, an upper-middle one).

    Args:
        student: `[B, h, T, d]`, or a tuple of such (queries, keys, values); `[B, T, width]` where heads are joined already.
        teacher: alike, taken as a constant; its heads and widths may differ.
        mask: bool `[B, T]`, which tokens count. None: all.
        relation_heads: A; the teacher's own head count of each relation when left out.

    Returns:
        `[B, T]`, fp32 or wider; 0 at equality.

    Raises:
        ValueError: A does not divide a width.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
        >>> relation_kl(student=x, teacher=2 * x, relation_heads=2)
        tensor([[0.1206, 0.1206]])

    Recipe:
        {loss: relation_kl, tap: [query, key, value], layers: last, relation_heads: 8, weight: 1.0}
    """
    if isinstance(student, Tensor) and isinstance(teacher, Tensor):
        return _relation(student, teacher, mask, relation_heads)
    if isinstance(student, Tensor) or isinstance(teacher, Tensor) or len(student) != len(teacher):
        raise ValueError("relations of several kinds are tuples on both sides, of one length")
    pairs = zip(student, teacher, strict=True)
    return torch.stack([_relation(mine, theirs, mask, relation_heads) for mine, theirs in pairs]).sum(0)


def grouped(x: Tensor, heads: int) -> Tensor:
    """`[B, h, ...]` -> `[B, heads, ...]`: the mean of each contiguous group of heads."""
    return x if x.shape[1] == heads else x.unflatten(1, (heads, -1)).mean(2)


def common_heads(student: Tensor, teacher: Tensor) -> int:
    """The number of heads in which two maps can be compared."""
    few, many = sorted((student.shape[1], teacher.shape[1]))
    if many % few:
        raise ValueError(
            f"{student.shape[1]} student heads and {teacher.shape[1]} teacher heads cannot be grouped; use relation_kl"
        )
    return few


def _pairs(mask: Tensor | None, student: Tensor, teacher: Tensor) -> Tensor | None:
    """Which key each query sees: bool `[B, 1, T, S]`, None where every query sees every key.

    A key that is -inf on either side, in any head, is not seen: many maps carry their mask so.
    """
    maps(mask, student, teacher)
    if mask is not None and mask.dim() == 2:
        queries, keys = student.shape[-2:]
        mask = mask[:, None, None, :] & mask[:, None, :, None] if queries == keys else mask[:, None, None, :]
    out_s, out_t = (dropped_columns(x, x) for x in (student, teacher.detach()))
    for out in (out_s, out_t):
        if out is not None:
            seen = ~out.any(1, keepdim=True)
            mask = seen if mask is None else mask & seen
    return mask


def _of_queries(values: Tensor, seen: Tensor | None) -> Tensor:
    """Values `[B, T]`, exactly 0 for a query that sees nothing."""
    return silent(None if seen is None else seen.any(-1).squeeze(1).expand_as(values), values)


def _map_mse(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    seen, heads = _pairs(mask, student, teacher), common_heads(student, teacher)
    if seen is None:
        return (grouped(wide(student), heads) - grouped(wide(teacher.detach()), heads)).square().mean(dim=(1, 3))
    seen = seen.expand(-1, 1, *student.shape[2:])
    mine, theirs = (grouped(torch.where(seen, wide(x), 0), heads) for x in (student, teacher.detach()))
    squares_BTS = (mine - theirs).square().mean(1)
    return squares_BTS.sum(-1) / seen.squeeze(1).sum(-1).clamp(min=1)


def _log_attention(scores: Tensor, seen: Tensor | None) -> Tensor:
    """log softmax over the visible keys; keys that are not seen at `NEVER`, on both sides alike."""
    if seen is None:
        return wide(scores).log_softmax(-1)
    return torch.where(seen, wide(scores), NEVER).log_softmax(-1).masked_fill(~seen, NEVER)


def _mean_of_logs(log_p: Tensor, heads: int) -> Tensor:
    """The logarithm of the mean probability of each group of heads."""
    size = log_p.shape[1] // heads
    return log_p if size == 1 else log_p.unflatten(1, (heads, size)).logsumexp(2) - math.log(size)


def _relation(student: Tensor, teacher: Tensor, mask: Tensor | None, heads: int | None) -> Tensor:
    of_axes("B T width" if student.dim() == 3 else "B h T d", student)
    of_axes("B T width" if teacher.dim() == 3 else "B h T d", teacher)
    rows_and_tokens = (student.shape[0], student.shape[-2])
    same("student and teacher, their widths left out,", rows_and_tokens, (teacher.shape[0], teacher.shape[-2]))
    fits(mask, rows_and_tokens)
    if heads is None:
        heads = teacher.shape[1] if teacher.dim() == 4 else 1
    allowed("count", relation_heads=heads)
    log_s, log_t = (_log_relation(x, mask, heads) for x in (student, teacher.detach()))
    return silent(mask, kl(log_t, log_s).mean(1))


def _log_relation(x: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """log softmax(X X' / sqrt(d)) among the kept tokens: `[B, A, T, T]`."""
    joined = x if x.dim() == 3 else x.transpose(1, 2).flatten(2)
    if joined.shape[-1] % heads:
        raise ValueError(
            f"relation_heads: {heads} do not divide the width {joined.shape[-1]}; choose a divisor of both"
        )
    joined = wide(joined) if mask is None else torch.where(mask[..., None], wide(joined), 0)
    split = joined.unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = product(split * split.shape[-1] ** -0.5, split.transpose(-1, -2))
    return _log_attention(scores, None if mask is None else mask[:, None, None, :])
