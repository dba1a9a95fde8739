"""Losses on logits beside the divergences: labels, regression, decoupled and correlated knowledge, two vocabularies.

`[..., V] -> [...]`, so that they serve tokens `[B, T, V]` and classes `[B, C]` alike; `pearson` gives one value `[]`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.batch import IGNORED
from limbeck.losses.divergences import NEVER, dropped_columns, kl, log_probabilities, log_softmax
from limbeck.losses.tensors import allowed, blank, both, fits, same, sides, silent, whole


def cross_entropy(*, student: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of the labels, in nats: training without a teacher.

    -log softmax(z_s)[y]; exactly 0 where the label is -100. Source: Hinton et al. 2015, arXiv 1503.02531, where it is
    the part of the true labels.

    When: as the baseline without a teacher, or beside a distillation loss wherever true labels exist.

    Args:
        student: logits `[..., V]`.
        labels: int64 `[...]`, -100 where there is none.
        mask: bool `[...]`, which positions count. None: all that have a label.

    Returns:
        `[...]`, fp32 or wider.

    Example:
        >>> import torch
        >>> cross_entropy(student=torch.zeros(1, 4), labels=torch.tensor([2]))
        tensor([1.3863])

    Recipe:
        {loss: cross_entropy, weight: 1.0}
    """
    kept = _labelled(labels, mask, student)
    known = torch.where(kept, labels, IGNORED)
    flat = blank(kept, student).reshape(-1, student.shape[-1])
    return F.cross_entropy(flat, known.reshape(-1), reduction="none", ignore_index=IGNORED).view(labels.shape)


def squared_error(*, student: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Squared distance of a score from its label: training a regression without a teacher.

    (z_s - y)^2; exactly 0 where the label is -100. Source: Gauss 1809; as transformers (Wolf et al. 2020,
    arXiv 1910.03771) trains a head of one logit.

    When: for tasks whose label is a number, as the baseline without a teacher, or beside `logit_mse` from one.

    Args:
        student: scores `[..., 1]`.
        labels: numbers `[...]`, taken as constants; -100 where there is none.
        mask: bool `[...]`, which positions count. None: all that have a label.

    Returns:
        `[...]`, fp32 or wider.

    Raises:
        ValueError: the student has more than one logit.

    Example:
        >>> import torch
        >>> squared_error(student=torch.tensor([[3.0]]), labels=torch.tensor([1.0]))
        tensor([4.])

    Recipe:
        {loss: squared_error, weight: 1.0}
    """
    if student.shape[-1] != 1:
        raise ValueError(f"squared_error takes one score for each label, not {student.shape[-1]} logits")
    kept = _labelled(labels, mask, student)
    return (blank(kept, student).squeeze(-1) - torch.where(kept, labels.detach(), 0)).square()


def soft_cross_entropy(
    *, student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """Cross-entropy of the student under the teacher's softened prediction, in nats.

    -T^2 sum_v p_t log p_s, p = softmax(z / T): forward KL plus T^2 times the teacher's entropy. Its gradient is that of
    forward KL; its value does not vanish at equality. Source: Hinton et al. 2015, arXiv 1503.02531.

    When: numbers must be comparable with code that reports this value (TinyBERT, TextBrewer); otherwise `forward_kl`.

    Args:
        student: logits `[..., V]`.
        teacher: logits `[..., V]`, taken as a constant.
        mask: bool `[...]`, which positions count. None: all.
        temperature: T > 0.

    Returns:
        `[...]`, fp32 or wider; T^2 times the teacher's entropy at equality.

    Example:
        >>> import torch
        >>> soft_cross_entropy(student=torch.zeros(1, 2), teacher=torch.tensor([[1.0, 0.0]]))
        tensor([0.6931])

    Recipe:
        {loss: soft_cross_entropy, temperature: 1.0, weight: 1.0}
    """
    log_s, log_t = log_probabilities(student, teacher, temperature, mask)
    return silent(mask, -(log_t.exp() * log_s).sum(-1) * temperature**2)


def logit_mse(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of the logits over V: regression instead of classification.

    mean_v (z_s - z_t)^2 over the columns that are finite on both sides. Logits are compared as they are, not centred: a
    constant added to all of one side changes the loss, though not the prediction.
    Source: Ba and Caruana 2014, arXiv 1312.6184.

    When: the teacher's confidence itself matters, as in binary or regression heads and in small class counts.

    Args:
        student: logits `[..., V]`.
        teacher: logits `[..., V]`, taken as a constant.
        mask: bool `[...]`, which positions count. None: all.

    Returns:
        `[...]`, fp32 or wider; 0 at equality.

    Example:
        >>> import torch
        >>> logit_mse(student=torch.zeros(1, 2), teacher=torch.tensor([[1.0, 3.0]]))
        tensor([5.])

    Recipe:
        {loss: logit_mse, weight: 1.0}
    """
    student, teacher = both(mask, student, teacher)
    dropped = dropped_columns(student, teacher)
    if dropped is None:
        return silent(mask, (student - teacher).square().mean(-1))
    squares = (student.masked_fill(dropped, 0) - teacher.masked_fill(dropped, 0)).square()
    return silent(mask, squares.sum(-1) / (~dropped).sum(-1).clamp(min=1))


def decoupled_kl(
    *,
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 1.0,
) -> Tensor:
    """Forward KL taken apart: how sure of the label (target), and how the rest is divided (non-target).

    T^2 (alpha TCKD + beta NCKD). TCKD = KL between the pairs (p(y), 1 - p(y)); NCKD = KL between the predictions
    over the columns other than y, renormalised. With beta = 1 - p_t(y) of each token and alpha = 1 it is forward KL.
    All in log space: finite where the authors' code takes the log of an underflown probability.
    Source: Zhao et al. 2022 (DKD), arXiv 2203.08679.

    When: a confident teacher hides what it knows of the other classes; beta brings it out. With two classes NCKD is 0.

    Args:
        student: logits `[..., V]`.
        teacher: logits `[..., V]`, taken as a constant.
        labels: int64 `[...]`, the targets; -100 where there is none: exactly 0 there.
        mask: bool `[...]`, which positions count. None: all that have a label.
        alpha: weight of TCKD.
        beta: weight of NCKD; the authors use 1 to 10, depending on the pair of models.
        temperature: T > 0; the authors use 4 for images.

    Returns:
        `[...]`, fp32 or wider; 0 at equality.

    Example:
        >>> import torch
        >>> teacher, labels = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])
        >>> decoupled_kl(student=torch.zeros(1, 3), teacher=teacher, labels=labels, beta=0.0)
        tensor([0.2291])

    Recipe:
        {loss: decoupled_kl, alpha: 1.0, beta: 2.0, temperature: 2.0, weight: 1.0}
    """
    allowed("weight", alpha=alpha, beta=beta)
    kept = _labelled(labels, mask, student)
    log_s, log_t = log_probabilities(student, teacher, temperature, kept)
    target = torch.where(kept, labels, 0).unsqueeze(-1)
    pairs, others = zip(*(_decouple(log_p, target) for log_p in (log_s, log_t)), strict=True)
    values = alpha * kl(pairs[1], pairs[0]) + beta * kl(others[1], others[0])
    return silent(kept, values * temperature**2)


def pearson(
    *,
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    inter: float = 1.0,
    intra: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """Correlation instead of equality: of the classes of each example, and of the examples for each class.

    T^2 (inter (1 - mean_i r(p_s[i, :], p_t[i, :])) + intra (1 - mean_v r(p_s[:, v], p_t[:, v]))), r Pearson's
    correlation, p = softmax(z / T). A side without variance has correlation 0 and no gradient (one example alone: the
    second part is constant). No epsilon stands below the fraction: the authors' 1e-8 would hide every column of a large
    vocabulary. Source: Huang et al. 2022 (DIST), arXiv 2205.10536.

    When: the teacher is much stronger than the student, so that its exact probabilities are out of reach.

    Args:
        student: logits `[..., V]`; the kept leading positions are the examples.
        teacher: logits `[..., V]`, taken as a constant.
        mask: bool `[...]`, which positions count. None: all.
        inter: weight of the correlation over classes.
        intra: weight of the correlation over examples.
        temperature: T > 0.

    Returns:
        `[]`, fp32 or wider; 0 at equality where rows and columns vary, and for no example.

    Example:
        >>> import torch
        >>> z = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]])
        >>> pearson(student=z, teacher=-z)
        tensor(3.8374)

    Recipe:
        {loss: pearson, inter: 1.0, intra: 1.0, weight: 2.0}
    """
    allowed("weight", inter=inter, intra=intra)
    log_s, log_t = log_probabilities(student, teacher, temperature, mask)
    kept = whole(mask, student, student.dim() - 1).flatten()
    if not len(kept):
        return log_s.sum()
    p_s, p_t = log_s.exp().flatten(0, -2), log_t.exp().flatten(0, -2)
    used = kept[:, None] & ~(log_s.detach() <= NEVER).flatten(0, -2)
    rows = _correlation(p_s, p_t, used, dim=1)
    columns = _correlation(p_s, p_t, used, dim=0)
    values = inter * _mean_gap(rows, kept) + intra * _mean_gap(columns, used.any(0))
    return values * temperature**2


def universal_logit(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Distance between predictions over different vocabularies: only the sorted probabilities are compared.

    sum_r |sort(p_s)[r] - sort(p_t)[r]|, descending, the shorter list padded with zeros: the optimal transport cost when
    every token costs the same. Two predictions that differ by a permutation of the vocabulary have distance 0.
    Source: Boizard et al. 2024 (ULD), arXiv 2402.12030.

    When: teacher and student have different tokenizers. Positions are paired by index: align the texts first. (Recipes
    train on one tokenizer so far; this is for a loop of one's own.)

    Args:
        student: logits `[..., V_s]`.
        teacher: logits `[..., V_t]`, taken as a constant.
        mask: bool `[...]`, which positions count. None: all.

    Returns:
        `[...]` in [0, 2], fp32 or wider; 0 at equality.

    Example:
        >>> import torch
        >>> universal_logit(student=torch.tensor([[0.0, 0.0]]), teacher=torch.tensor([[5.0, 5.0, -1e9]]))
        tensor([0.])

    Recipe:
        {loss: universal_logit, weight: 1.5}
    """
    p_s, p_t = (x.softmax(-1).sort(-1, descending=True).values for x in sides(mask, student, teacher))
    missing = p_t.shape[-1] - p_s.shape[-1]
    p_s, p_t = F.pad(p_s, (0, max(missing, 0))), F.pad(p_t, (0, max(-missing, 0)))
    return silent(mask, (p_s - p_t).abs().sum(-1))


def _labelled(labels: Tensor, mask: Tensor | None, student: Tensor) -> Tensor:
    """Which positions count and have a label."""
    same("labels and student, its columns left out,", labels.shape, student.shape[:-1])
    fits(mask, labels.shape)
    return labels != IGNORED if mask is None else mask & (labels != IGNORED)


def _decouple(log_p: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """log (p(y), 1 - p(y)) and the log-probabilities of the other columns among themselves."""
    others = log_p.scatter(-1, target, NEVER)
    pair = torch.cat([log_p.gather(-1, target), others.logsumexp(-1, keepdim=True)], -1)
    return pair, log_softmax(others, 1).scatter(-1, target, NEVER).clamp(min=NEVER)


def _correlation(x: Tensor, y: Tensor, used: Tensor, dim: int) -> Tensor:
    """Pearson's correlation along `dim` over the used entries; 0 for a side that does not vary."""
    x, y = (_standard(each, used, dim) for each in (x, y))
    return (x * y).sum(dim)


def _standard(x: Tensor, used: Tensor, dim: int) -> Tensor:
    """`x` less its mean, of length 1; 0 where what is left is no more than rounding."""
    x = torch.where(used, x, 0)
    largest = (
        x.detach().abs().amax(dim, keepdim=True)
    )  # scale is no matter of correlation: small ones must not underflow
    x = x / torch.where(largest != 0, largest, 1)
    count = used.sum(dim, keepdim=True).clamp(min=1)
    centred = torch.where(used, x - x.sum(dim, keepdim=True) / count, 0)
    squares, noise = centred.square().sum(dim, keepdim=True), 8 * torch.finfo(x.dtype).eps
    varies = ~(squares <= noise**2 * x.square().sum(dim, keepdim=True))
    return torch.where(varies, centred, 0) * torch.where(varies, squares, 1).rsqrt()


def _mean_gap(correlations: Tensor, counted: Tensor) -> Tensor:
    """The mean of 1 - r over what is counted, 0 for nothing."""
    return torch.where(counted, 1 - correlations, 0).sum() / counted.sum().clamp(min=1)
