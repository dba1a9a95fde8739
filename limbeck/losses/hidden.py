"""Losses on features: hidden states, embeddings, pre-activations, `[..., H]`.

Unequal widths are a projection's matter, except where a loss compares what has no width (`attention_transfer`,
`neuron_selectivity`, `cka`) or brings its own modules (`factor_transfer`). B rows, T tokens, H width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.losses.tensors import allowed, both, product, sides, silent, unit, whole


def mse(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference over the width.

    mean_H (h_s - h_t)^2: the hint of FitNets, the hidden and the embedding loss of TinyBERT.
    Source: Romero et al. 2014 (FitNets), arXiv 1412.6550; Jiao et al. 2019 (TinyBERT), arXiv 1909.10351.

    When: the first choice for hidden states and embeddings. Its size follows the teacher's scale: a teacher with large
    states silences other terms unless its weight, or `balance`, says otherwise.

    Args:
        student: `[..., H]`, already projected to the teacher's width.
        teacher: `[..., H]`, taken as a constant.
        mask: bool `[...]`, which positions count. None: all.

    Returns:
        `[...]`, fp32 or wider; 0 at equality.

    Example:
        >>> import torch
        >>> mse(student=torch.zeros(1, 2), teacher=torch.tensor([[1.0, 3.0]]))
        tensor([5.])

    Recipe:
        {loss: mse, tap: hidden, layers: uniform, projection: shared, weight: 1.0}
    """
    student, teacher = both(mask, student, teacher)
    return (student - teacher).square().mean(-1)


def cosine(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """One minus the cosine of the angle between the vectors.

    1 - h_s.h_t / (|h_s| |h_t|). It is blind to length; a zero vector gives 1, with no gradient.
    Source: Sanh et al. 2019 (DistilBERT), arXiv 1910.01108.

    When: directions matter and scales do not, as for the last hidden state of a student made from teacher layers.

    Args:
        student: `[..., H]`, already projected to the teacher's width.
        teacher: `[..., H]`, taken as a constant.
        mask: bool `[...]`, which positions count. None: all.

    Returns:
        `[...]` in [0, 2], fp32 or wider; 0 at equality.

    Example:
        >>> import torch
        >>> cosine(student=torch.tensor([[1.0, 0.0]]), teacher=torch.tensor([[0.0, 2.0]]))
        tensor([1.])

    Recipe:
        {loss: cosine, tap: hidden, layers: last, weight: 1.0}
    """
    student, teacher = both(mask, student, teacher)
    return silent(mask, 1 - (unit(student) * unit(teacher)).sum(-1))


def patient(
    *, student: Tensor, teacher: Tensor, mask: Tensor | None = None, position: Literal["first", "last"] = "first"
) -> Tensor:
    """Patient distillation: the normalised state of one token of each row, layer by layer.

    mean_H (h_s / |h_s| - h_t / |h_t|)^2 of the first kept token ([CLS]) or of the last. The authors' code also averages
    over its M layers, where the pairs of a term add up: their beta is M times this weight. (Their paper sums over H
    and M.) Source: Sun et al. 2019 (PKD), arXiv 1908.09355.

    When: sentence-level tasks. The authors leave the last student layer out: 6 layers of 12 learn by {1: 2, 2: 4, 3: 6, 4: 8,
    5: 10} (PKD-Skip) or {1: 7, 2: 8, 3: 9, 4: 10, 5: 11} (PKD-Last). In a causal model the first token sees nothing: take
    position: last.

    Args:
        student: `[B, T, H]`, already projected to the teacher's width; or `[B, H]`, one vector for each row.
        teacher: of the same shape, taken as a constant.
        mask: bool `[B, T]` (or `[B]`), which tokens count. None: all.
        position: `first` or `last` of the kept tokens.

    Returns:
        `[B]` in [0, 4 / H], fp32 or wider; 0 at equality; 0 for a row without a kept token.

    Raises:
        ValueError: no such position.

    Example:
        >>> import torch
        >>> patient(student=torch.tensor([[[3.0, 0.0]]]), teacher=torch.tensor([[[0.0, 1.0]]]))
        tensor([1.])

    Recipe:
        {loss: patient, tap: hidden, layers: {1: 2, 2: 4}, weight: 100.0}
    """
    if position not in ("first", "last"):
        raise ValueError(f"position is first or last, not {position!r}")
    student, teacher = both(mask, student, teacher, "B T H" if student.dim() != 2 else "B H")
    kept = whole(mask, student, student.dim() - 1)
    if not kept.shape[-1]:
        return student.flatten(1).sum(-1)
    if student.dim() == 3:
        order = kept.long() if position == "first" else kept.long().cumsum(1) * kept
        place = order.argmax(1)[:, None, None].expand(-1, 1, student.shape[-1])
        student, teacher = student.gather(1, place).squeeze(1), teacher.gather(1, place).squeeze(1)
        kept = kept.any(1)
    return silent(kept, (unit(student) - unit(teacher)).square().mean(-1))


def attention_transfer(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention transfer: which tokens carry large activations, whatever the width.

    q = mean_H h^2 of each token, divided by the Euclidean norm of q over the row's kept tokens; (q_s - q_t)^2 for each
    token. Its mean over tokens is the authors' code; their paper takes the unsquared norm of each row instead.
    Not to be confused with attention maps. Source: Zagoruyko and Komodakis 2016 (AT), arXiv 1612.03928.

    When: widths differ and no projection is wanted; the signal is weak, the authors' weight is 1000. One token gives 0.

    Args:
        student: `[B, T, H_s]`.
        teacher: `[B, T, H_t]`, taken as a constant.
        mask: bool `[B, T]`, which tokens count. None: all.

    Returns:
        `[B, T]`, fp32 or wider; 0 at equality, and where the two differ by a factor.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[1.0], [0.0]]])
        >>> attention_transfer(student=x, teacher=1 - x)
        tensor([[1., 1.]])

    Recipe:
        {loss: attention_transfer, tap: hidden, layers: uniform, weight: 1000.0}
    """
    energy_s, energy_t = (x.square().mean(-1) for x in sides(mask, student, teacher, "B T H"))
    return silent(mask, (unit(energy_s) - unit(energy_t)).square())


def neuron_selectivity(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Neuron selectivity transfer: the two sides' channels as samples of a distribution over tokens.

    Every channel is a vector over the row's kept tokens, of length 1. With k(a, b) = (a.b)^2 the squared maximum mean
    discrepancy is mean k(t, t) + mean k(s, s) - 2 mean k(s, t) over pairs of channels, which is the squared Frobenius
    norm of the difference of the two sides' Gram matrices over tokens, each divided by its number of channels: so it
    is computed, without a matrix of H_s x H_t. Source: Huang and Wang 2017 (NST), arXiv 1707.01219.

    When: widths differ and no projection is wanted; the authors' weight is 50. A row of one token gives no signal.

    Args:
        student: `[B, T, H_s]`.
        teacher: `[B, T, H_t]`, taken as a constant.
        mask: bool `[B, T]`, which tokens count. None: all.

    Returns:
        `[B]`, fp32 or wider; 0 at equality.

    Example:
        >>> import torch
        >>> x = torch.eye(2).unsqueeze(0)
        >>> neuron_selectivity(student=x, teacher=torch.ones(1, 2, 3))
        tensor([0.5000])

    Recipe:
        {loss: neuron_selectivity, tap: hidden, layers: last, weight: 50.0}
    """
    channels_s, channels_t = (unit(x, dim=1) for x in sides(mask, student, teacher, "B T H"))
    gram_s, gram_t = (product(x, x.transpose(1, 2)) / x.shape[-1] for x in (channels_s, channels_t))
    return (gram_s - gram_t).square().sum(dim=(1, 2))


def activation_boundary(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None, margin: float = 1.0) -> Tensor:
    """Activation boundaries: which neurons fire, the pattern of sparsity, and not how much.

    mean_F of max(m - s, 0)^2 where the teacher's pre-activation is above 0, and of max(s + m, 0)^2 elsewhere. At equality
    it is not 0: every |s| < m is punished. The authors add up over neurons and weigh with 3/1000; this is the mean.
    Source: Heo et al. 2019 (AB), arXiv 1811.03233.

    When: to initialise a student before other losses, on the pre-activations of the feed-forward layers (tap: ffn).

    Args:
        student: pre-activations `[..., F]`, already projected to the teacher's width.
        teacher: pre-activations `[..., F]`, taken as a constant.
        mask: bool `[...]`, which positions count. None: all.
        margin: m > 0, how far from the boundary a neuron must be.

    Returns:
        `[...]`, fp32 or wider.

    Example:
        >>> import torch
        >>> activation_boundary(student=torch.tensor([[0.5, -2.0]]), teacher=torch.tensor([[3.0, -3.0]]))
        tensor([0.1250])

    Recipe:
        {loss: activation_boundary, tap: ffn, layers: uniform, margin: 1.0, weight: 1.0}
    """
    allowed("positive", margin=margin)
    student, teacher = both(mask, student, teacher)
    signed = torch.where(teacher > 0, student, torch.where(teacher.isnan(), teacher, -student))
    return silent(mask, F.relu(margin - signed).square().mean(-1))


def factor_transfer(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Factor transfer: the teacher's paraphrase of its features, the student's translation into it.

    mean over the kept tokens and K of |f_t / |f_t| - f_s / |f_s||, norms over all kept tokens and K of a row. f_t comes
    from a paraphraser (an autoencoder of the teacher's features, trained alone beforehand), f_s from a translator
    (trained with the student): `limbeck.distil.paraphraser` has both, a recipe makes them. The authors' beta is 500.
    Source: Kim et al. 2018 (FT), arXiv 1802.04977.

    When: teacher features are redundant or unlike the student's, so that plain regression copies noise.

    Args:
        student: factors `[B, T, K]`.
        teacher: factors `[B, T, K]`, taken as a constant.
        mask: bool `[B, T]`, which tokens count. None: all.

    Returns:
        `[B]`, fp32 or wider; 0 at equality.

    Example:
        >>> import torch
        >>> factor_transfer(student=torch.tensor([[[1.0, 0.0]]]), teacher=torch.tensor([[[0.0, 4.0]]]))
        tensor([1.])

    Recipe:
        {loss: factor_transfer, tap: hidden, layers: last, rate: 0.5, paraphraser_steps: 200, weight: 500.0}
    """
    student, teacher = both(mask, student, teacher, "B T K")
    count = whole(mask, student, 2).sum(1).clamp(min=1) * student.shape[-1]
    return (unit(student.flatten(1)) - unit(teacher.flatten(1))).abs().sum(-1) / count


def cka(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """One minus the linear centred kernel alignment of two representations of the same examples.

    1 - |Y'X|_F^2 / (|X'X|_F |Y'Y|_F), columns centred over the examples: the kept leading positions. Blind to rotation
    and scale of either side. With fewer examples than dimensions it is biased towards 0, and the mean over batches is
    not the value of the whole. Source: Kornblith et al. 2019, arXiv 1905.00414.

    When: layers of any widths are to carry the same information in whatever basis.

    Args:
        student: `[..., H_s]`.
        teacher: `[..., H_t]`, taken as a constant.
        mask: bool `[...]`, which positions are examples. None: all.

    Returns:
        `[]` in [0, 1], fp32 or wider; 0 at equality and for fewer than two examples; 1 where a side does not vary.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -2.0]])
        >>> cka(student=x, teacher=3 * x.flip(1)).abs() < 1e-6
        tensor(True)

    Recipe:
        {loss: cka, tap: hidden, layers: uniform, weight: 1.0}
    """
    kept = whole(mask, student, student.dim() - 1).flatten()
    x, y = (_centred(each.flatten(0, -2), kept) for each in sides(mask, student, teacher))
    scale = _gram_norm_squared(x) * _gram_norm_squared(y)
    varies = scale != 0
    alignment = _cross_norm_squared(x, y) * torch.where(varies, scale, 1).rsqrt()
    return torch.where(kept.sum() > 1, 1 - torch.where(varies, alignment, 0 * alignment), 0 * alignment)


def _centred(x: Tensor, kept: Tensor) -> Tensor:
    """`[N, H]` less its column means over the kept rows, divided by its own size; zero where rounding is all that is left."""
    mean = x.sum(0, keepdim=True) / kept.sum().clamp(min=1)
    centred = torch.where(kept[:, None], x - mean, 0)
    squares, noise = centred.square().sum(), 8 * torch.finfo(x.dtype).eps
    varies = ~(squares <= noise**2 * x.square().sum())
    return torch.where(varies, centred, 0) * torch.where(varies, squares, 1).rsqrt()


def _cross_norm_squared(x: Tensor, y: Tensor) -> Tensor:
    return product(x.transpose(0, 1), y).square().sum()


def _gram_norm_squared(x: Tensor) -> Tensor:
    return _cross_norm_squared(x, x)
