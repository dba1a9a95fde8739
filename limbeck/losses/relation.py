"""Losses on relations: between two layers of a model, or between the examples of a batch.

Losses between examples give one value `[]`: they see one micro-batch of one process, and are averaged over those
(`contrastive` compares each row with a memory and gives `[B]`).
N examples, H width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from limbeck.losses.tensors import (
    allowed,
    blank,
    both,
    fits,
    of_axes,
    product,
    same,
    sides,
    silent,
    smooth_l1,
    unit,
    whole,
)

ANGLES = 2**24  # cosines of angles that exist at a time


def flow(*, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mask: Tensor | None = None) -> Tensor:
    """Flow of solution procedure: how features of one layer go with those of another.

    G = a' b / n of two layers' states over the row's n kept tokens; mean over its entries of (G_s - G_t)^2.
    The paper adds up the entries; the mean is what all published code takes.
    Source: Yim et al. 2017 (FSP), CVPR, doi 10.1109/CVPR.2017.754.

    When: to initialise a student with how the teacher transforms its features, before other losses.

    Args:
        student: two states `[B, T, m]` and `[B, T, n]`, already projected to the teacher's widths.
        teacher: two states of the same widths, taken as constants.
        mask: bool `[B, T]`, which tokens count. None: all.

    Returns:
        `[B]`, fp32 or wider; 0 at equality.

    Example:
        >>> import torch
        >>> x = torch.ones(1, 2, 1)
        >>> flow(student=(x, x), teacher=(x, 3 * x))
        tensor([4.])

    Recipe:
        {loss: flow, tap: hidden, layers: uniform, weight: 50.0}
    """
    (first_s, second_s), (first_t, second_t) = student, teacher
    (first_s, first_t), (second_s, second_t) = (
        both(mask, mine, theirs, "B T H") for mine, theirs in ((first_s, first_t), (second_s, second_t))
    )
    same("the two layers, their widths left out,", first_s.shape[:2], second_s.shape[:2])
    count = whole(mask, first_s, 2).sum(1).clamp(min=1)[:, None, None]
    flow_s, flow_t = (
        product(first.transpose(1, 2), second) / count for first, second in ((first_s, second_s), (first_t, second_t))
    )
    return (flow_s - flow_t).square().mean(dim=(1, 2))


def rkd_distance(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Relational distillation by distances: how far apart the examples are, relative to the mean distance.

    D_ij = |x_i - x_j| over the mean of its positive entries, each side for itself; Huber's loss (delta 1) of the
    difference, mean over all N^2 pairs, the diagonal included. Gradients flow through the student's mean.
    Source: Park et al. 2019 (RKD), arXiv 1904.05068.

    When: embeddings, retrieval, sentence encoders: widths differ freely and only the geometry counts. Authors' weight 25.

    Args:
        student: `[..., H_s]`; the kept leading positions are the examples.
        teacher: `[..., H_t]`, taken as a constant.
        mask: bool `[...]`, which positions are examples. None: all.

    Returns:
        `[]`, fp32 or wider; 0 at equality, where the two differ by a factor, and for fewer than two examples.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> rkd_distance(student=x, teacher=x.square())
        tensor(0.0247)

    Recipe:
        {loss: rkd_distance, tap: pooled, weight: 25.0}
    """
    student, teacher = sides(mask, student, teacher)
    kept = whole(mask, student, student.dim() - 1).flatten()
    pairs = kept[:, None] & kept
    mine, theirs = (_distances(_examples(x, kept), pairs) for x in (student, teacher))
    return torch.where(pairs, smooth_l1(mine - theirs), 0).sum() / pairs.sum().clamp(min=1)


def rkd_angle(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Relational distillation by angles: the angle at each example between any two others.

    e_ij = (x_i - x_j) / |x_i - x_j|; Huber's loss (delta 1) of the difference of the cosines e_ij.e_kj, mean over all N^3
    triples, degenerate ones included. Evaluated in parts, so that N^3 numbers are never held.
    Source: Park et al. 2019 (RKD), arXiv 1904.05068.

    When: with `rkd_distance`, at twice its weight (50). The work grows with N^3: for sentence vectors, not for tokens.

    Args:
        student: `[..., H_s]`; the kept leading positions are the examples.
        teacher: `[..., H_t]`, taken as a constant.
        mask: bool `[...]`, which positions are examples. None: all.

    Returns:
        `[]`, fp32 or wider; 0 at equality and for fewer than two examples.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> rkd_angle(student=x, teacher=x * torch.tensor([1.0, 3.0]))
        tensor(0.0078)

    Recipe:
        {loss: rkd_angle, tap: pooled, weight: 50.0}
    """
    kept = whole(mask, student, student.dim() - 1).flatten()
    mine, theirs = (_examples(x, kept) for x in sides(mask, student, teacher))
    part = max(1, ANGLES // max(1, len(kept)) ** 2)
    sums = [
        checkpoint(_angle_gap, mine, theirs, kept, start, start + part, use_reentrant=False)
        for start in range(0, len(kept), part)
    ]
    return torch.stack([*sums, mine.sum() * 0]).sum() / kept.sum().clamp(min=1) ** 3


def similarity(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Similarity preservation: which rows of the batch produce similar activations.

    G = A A', A the batch's activations flattened to one vector for each row, every row of G normalised;
    sum (G_t - G_s)^2 / N^2. Padded tokens are zeros. One row gives 0.
    Source: Tung and Mori 2019 (SP), arXiv 1907.09682.

    When: widths differ freely and batches are large; the authors' weight is 3000.

    Args:
        student: `[B, ...]`, such as `[B, T, H_s]` or `[B, H_s]`.
        teacher: `[B, ...]`, taken as a constant.
        mask: bool `[B, T]` or `[B]`, what counts. None: all.

    Returns:
        `[]`, fp32 or wider; 0 at equality.

    Example:
        >>> import torch
        >>> similarity(student=torch.eye(2), teacher=torch.ones(2, 2))
        tensor(0.2929)

    Recipe:
        {loss: similarity, tap: hidden, layers: last, weight: 3000.0}
    """
    same("student and teacher, their rows,", student.shape[:1], teacher.shape[:1])
    for x in (student, teacher):
        fits(mask, x.shape[:1], *([x.shape[:2]] if x.dim() > 2 else []))
    rows = whole(mask, student, 1)
    rows = rows if rows.dim() == 1 else rows.any(1)
    mine, theirs = (blank(mask, x).flatten(1) for x in (student, teacher.detach()))
    gap = unit(product(mine, mine.T)) - unit(product(theirs, theirs.T))
    return gap.square().sum() / rows.sum().clamp(min=1) ** 2


def contrastive(
    *,
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    mask: Tensor | None = None,
    temperature: float = 0.07,
    log_partition: float | None = None,
) -> Tensor:
    """Contrastive representation distillation: each example's two views find each other among K others.

    For each side, with e = exp(v.m / T): -log e+ / (e+ + c K) - sum over the K negatives of log c K / (e- + c K), where v
    is one side's embedding and m the other side's memory; both sides added. The size of the memory cancels. c is what the
    authors estimate from the first batch; here it is the expectation of e for random directions, a constant.
    `limbeck.distil.contrastive` has the embeddings and the memory bank, a recipe makes them.
    Source: Tian et al. 2019 (CRD), arXiv 1910.10699.

    When: sentence or class representations, with many negatives; the authors' weight is 0.8.

    Args:
        student: `v [B, D]` and candidates `[B, 1 + K, D]` from the teacher's memory, the positive first; unit vectors.
        teacher: `v [B, D]` and candidates `[B, 1 + K, D]` from the student's memory. Its v is a trained embedding and gets
            a gradient, as in the paper; candidates are constants.
        mask: bool `[B]`, which rows count. None: all.
        temperature: T > 0.
        log_partition: log c; the closed form when left out.

    Returns:
        `[B]`, fp32 or wider.

    Example:
        >>> import torch
        >>> v, others = torch.tensor([[1.0, 0.0]]), torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
        >>> contrastive(student=(v, others), teacher=(v, others), temperature=1.0)
        tensor([1.2749])

    Recipe:
        {loss: contrastive, tap: pooled, negatives: 1024, width: 128, momentum: 0.5, weight: 0.8}
    """
    allowed("positive", temperature=temperature)
    for mine, theirs in zip(student, teacher, strict=True):
        same("student and teacher", mine.shape, theirs.shape)
    of_axes("B D", student[0])
    of_axes("B 1+K D", student[1])
    same("a vector and its candidates, their number left out,", student[0].shape, student[1].shape[::2])
    fits(mask, student[0].shape[:1])
    if log_partition is not None:
        allowed("number", log_partition=log_partition)
    else:
        log_partition = log_mean_exponential(student[0].shape[-1], temperature)
    one, other = (_find(v, candidates, mask, temperature, log_partition) for v, candidates in (student, teacher))
    return silent(mask, one + other)


def log_mean_exponential(width: int, temperature: float) -> float:
    """log E exp(u / T), u the cosine of the angle between random directions in `width` dimensions.

    The power series of 0F1(; width / 2; 1 / (4 T^2)), summed up in logarithms.

    >>> round(log_mean_exponential(3, 1.0), 6) == round(math.log(math.sinh(1.0)), 6)
    True
    """
    terms, log_x, n = [0.0], -2 * math.log(2 * temperature), 0
    top = 0.0
    while n < 10 or terms[-1] > top - 40:
        terms.append(terms[-1] + log_x - math.log((n + 1) * (width / 2 + n)))
        top, n = max(top, terms[-1]), n + 1
    return top + math.log(math.fsum(math.exp(term - top) for term in terms))


def _examples(x: Tensor, kept: Tensor) -> Tensor:
    """The examples `[N, H]`, less their mean (distances do not change, cancellation does); 0 where they are not kept."""
    flat = x.flatten(0, -2)
    return blank(kept, flat - flat.detach().sum(0) / kept.sum().clamp(min=1))


def _distances(x: Tensor, pairs: Tensor) -> Tensor:
    """Distances between examples `[N, N]` in units of their mean, 0 on the diagonal and for what is masked."""
    apart = pairs & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    exact = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")  # near ones cancel in x.x + y.y - 2 x.y
    distances = torch.where(apart | exact.isnan(), exact.clamp(min=1e-6), 0)
    return distances / (distances.sum() / apart.sum().clamp(min=1)).clamp(min=1e-12)


def _angle_gap(mine: Tensor, theirs: Tensor, kept: Tensor, start: int, stop: int) -> Tensor:
    """The sum of Huber's loss over all triples whose vertex is one of the examples start to stop."""
    rows = kept[start:stop, None] & kept
    triples = rows[:, :, None] & rows[:, None, :]
    return torch.where(triples, smooth_l1(_cosines(mine, start, stop) - _cosines(theirs, start, stop)), 0).sum()


def _cosines(x: Tensor, start: int, stop: int) -> Tensor:
    """cos of the angle at vertex j between the examples i and k: `[j, i, k]`."""
    edges = unit(x - x[start:stop, None])
    return product(edges, edges.transpose(1, 2))


def _find(v: Tensor, candidates: Tensor, mask: Tensor | None, temperature: float, log_partition: float) -> Tensor:
    """-log P(the first candidate is the pair) - sum log P(the others are not): `[B]`."""
    scores = product(blank(mask, candidates.detach()), blank(mask, v).unsqueeze(-1)).squeeze(-1) / temperature
    odds = scores - log_partition - math.log(max(1, scores.shape[-1] - 1))
    signs = torch.ones_like(odds)
    signs[:, 0] = -1
    return torch.nn.functional.softplus(signs * odds).sum(-1)
