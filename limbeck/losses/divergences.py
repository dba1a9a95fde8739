"""Divergences between predictions: logits [..., V] -> [...], one value per token `[B, T]` or per example `[B]`.

Conventions, for all of them (docs/decisions/0005): softmax over V in fp32 or wider; T^2 in value and gradient; a column
that is -inf on either side is dropped on both and the rest is not renormalised; 0 at equality; a masked token gives 0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.losses.tensors import allowed, both, silent

NEVER = (
    -1e30
)  # the log-probability of a dropped column, on both sides: its probability is exactly 0, its difference too


def log_probabilities(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """log softmax(z / T) of both sides, the teacher's as a constant, dropped columns at `NEVER`."""
    allowed("positive", temperature=temperature)
    student, teacher = both(mask, student, teacher)
    dropped = dropped_columns(student, teacher)
    if dropped is not None:  # a row without any column left has no softmax
        gone = dropped.all(-1, keepdim=True)
        student, teacher = student.masked_fill(gone, 0), teacher.masked_fill(gone, 0)
    log_s, log_t = log_softmax(student, temperature), log_softmax(teacher, temperature)
    if dropped is None:
        return log_s, log_t
    return log_s.masked_fill(dropped, NEVER), log_t.masked_fill(dropped, NEVER)


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """log softmax(z / T); without a pass over V for the division where T is 1."""
    return F.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)


def dropped_columns(student: Tensor, teacher: Tensor) -> Tensor | None:
    """Where either side is -inf, None where neither is anywhere (the usual case, found by one pass and not four).

    NaN hides what is lowest: then it is looked for.
    """
    student = student.detach()
    if not torch.compiler.is_compiling() and student.numel() and teacher.numel():
        lowest = torch.minimum(student.amin().to(teacher.dtype), teacher.amin())
        if bool(lowest > -math.inf):
            return None
    return student.isneginf() | teacher.isneginf()


def forward_kl(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Forward Kullback-Leibler divergence of the softened predictions, in nats: the logit loss of Hinton et al.

    T^2 KL(p_t || p_s), p = softmax(z / T), summed over V. The factor T^2 stands in the value *and* the gradient, so that
    the gradient's size hardly depends on T. Source: Hinton et al. 2015, arXiv 1503.02531.

    When: the first choice. It makes the student cover everything that the teacher holds possible.

    Args:
        student: logits `[..., V]`.
        teacher: logits `[..., V]`, taken as a constant.
        mask: bool `[...]`, which positions count. None: all.
        temperature: T > 0.

    Returns:
        `[...]`, fp32 or wider; 0 at equality.

    Example:
        >>> import torch
        >>> forward_kl(student=torch.zeros(1, 2), teacher=torch.tensor([[1.0, 0.0]]), temperature=2.0)
        tensor([0.1212])

    Recipe:
        {loss: forward_kl, temperature: 2.0, weight: 1.0}
    """
    log_s, log_t = log_probabilities(student, teacher, temperature, mask)
    return silent(mask, kl(log_t, log_s) * temperature**2)


def reverse_kl(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Reverse Kullback-Leibler divergence of the softened predictions, in nats.

    T^2 KL(p_s || p_t), p = softmax(z / T), summed over V. Source: Gu et al. 2023 (MiniLLM), arXiv 2306.08543.

    When: generation with a student too small to cover the teacher: it gives up the teacher's rarer modes rather than
    put probability where the teacher has none.

    Args:
        student: logits `[..., V]`.
        teacher: logits `[..., V]`, taken as a constant.
        mask: bool `[...]`, which positions count. None: all.
        temperature: T > 0.

    Returns:
        `[...]`, fp32 or wider; 0 at equality.

    Example:
        >>> import torch
        >>> reverse_kl(student=torch.zeros(1, 2), teacher=torch.tensor([[1.0, 0.0]]))
        tensor([0.1201])

    Recipe:
        {loss: reverse_kl, weight: 1.0}
    """
    log_s, log_t = log_probabilities(student, teacher, temperature, mask)
    return silent(mask, kl(log_s, log_t) * temperature**2)


def symmetric_kl(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """The mean of forward and reverse Kullback-Leibler divergence, in nats.

    T^2 (KL(p_t || p_s) + KL(p_s || p_t)) / 2, half of Jeffreys' divergence. Both parts are true divergences.
    Source: Jeffreys 1946, doi 10.1098/rspa.1946.0056; for language models Wen et al. 2023, arXiv 2307.15190.

    When: neither direction alone is wanted. It punishes both missing and invented probability, without a bound.

    Args:
        student: logits `[..., V]`.
        teacher: logits `[..., V]`, taken as a constant.
        mask: bool `[...]`, which positions count. None: all.
        temperature: T > 0.

    Returns:
        `[...]`, fp32 or wider; 0 at equality.

    Example:
        >>> import torch
        >>> symmetric_kl(student=torch.zeros(1, 2), teacher=torch.tensor([[1.0, 0.0]]))
        tensor([0.1155])

    Recipe:
        {loss: symmetric_kl, weight: 1.0}
    """
    log_s, log_t = log_probabilities(student, teacher, temperature, mask)
    return silent(mask, ((log_t.exp() - log_s.exp()) * (log_t - log_s)).sum(-1) * (temperature**2 / 2))


def jensen_shannon(
    *, student: Tensor, teacher: Tensor, mask: Tensor | None = None, beta: float = 0.5, temperature: float = 1.0
) -> Tensor:
    """Generalised Jensen-Shannon divergence, in nats: the loss of GKD.

    T^2 (beta KL(p_t || m) + (1 - beta) KL(p_s || m)) with m = beta p_t + (1 - beta) p_s. At beta = 0 and beta = 1 the
    formula is 0 for all predictions; as in GKD these two values mean forward and reverse KL. So there is a jump: the
    loss at a small beta is about beta times forward KL. Source: Agarwal et al. 2023, arXiv 2306.13649.

    When: a bounded compromise between the two KLs (at most log 2 at beta = 1/2), robust where the two models differ much.

    Args:
        student: logits `[..., V]`.
        teacher: logits `[..., V]`, taken as a constant.
        mask: bool `[...]`, which positions count. None: all.
        beta: the teacher's weight in the mixture, 0 to 1.
        temperature: T > 0.

    Returns:
        `[...]`, fp32 or wider; 0 at equality.

    Raises:
        ValueError: beta is not between 0 and 1.

    Example:
        >>> import torch
        >>> jensen_shannon(student=torch.zeros(1, 2), teacher=torch.tensor([[1.0, 0.0]]))
        tensor([0.0285])

    Recipe:
        {loss: jensen_shannon, beta: 0.5, weight: 1.0}
    """
    log_s, log_t = log_probabilities(student, teacher, temperature, mask)
    return silent(mask, generalised_js(log_s, log_t, beta) * temperature**2)


def skew_forward_kl(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None, alpha: float = 0.1) -> Tensor:
    """Forward KL to a mixture with a little of the teacher in it, in nats.

    KL(p_t || alpha p_t + (1 - alpha) p_s): alpha weighs the model named first. A true divergence, where the authors'
    code leaves the teacher's entropy out. Source: Ko et al. 2024 (DistiLLM), arXiv 2402.03898.

    When: forward KL spikes on tokens to which the student gives almost nothing; this one is at most log(1 / alpha).

    Args:
        student: logits `[..., V]`.
        teacher: logits `[..., V]`, taken as a constant.
        mask: bool `[...]`, which positions count. None: all.
        alpha: the teacher's weight in the mixture, 0 (forward KL) to below 1.

    Returns:
        `[...]`, fp32 or wider; 0 at equality.

    Raises:
        ValueError: alpha is not at least 0 and below 1.

    Example:
        >>> import torch
        >>> skew_forward_kl(student=torch.zeros(1, 2), teacher=torch.tensor([[1.0, 0.0]]))
        tensor([0.0906])

    Recipe:
        {loss: skew_forward_kl, alpha: 0.1, weight: 1.0}
    """
    log_s, log_t = log_probabilities(student, teacher, mask=mask)
    return silent(mask, kl(log_t, _skewed(log_t, log_s, alpha)))


def skew_reverse_kl(*, student: Tensor, teacher: Tensor, mask: Tensor | None = None, alpha: float = 0.1) -> Tensor:
    """Reverse KL to a mixture with a little of the student in it, in nats.

    KL(p_s || alpha p_s + (1 - alpha) p_t): alpha weighs the model named first.
    Source: Ko et al. 2024 (DistiLLM), arXiv 2402.03898.

    When: reverse KL explodes on tokens that the teacher all but excludes; this one is at most log(1 / alpha).

    Args:
        student: logits `[..., V]`.
        teacher: logits `[..., V]`, taken as a constant.
        mask: bool `[...]`, which positions count. None: all.
        alpha: the student's weight in the mixture, 0 (reverse KL) to below 1.

    Returns:
        `[...]`, fp32 or wider; 0 at equality.

    Raises:
        ValueError: alpha is not at least 0 and below 1.

    Example:
        >>> import torch
        >>> skew_reverse_kl(student=torch.zeros(1, 2), teacher=torch.tensor([[1.0, 0.0]]))
        tensor([0.0950])

    Recipe:
        {loss: skew_reverse_kl, alpha: 0.1, weight: 1.0}
    """
    log_s, log_t = log_probabilities(student, teacher, mask=mask)
    return silent(mask, kl(log_s, _skewed(log_s, log_t, alpha)))


def total_variation(
    *, student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """Total variation distance of the softened predictions: the largest difference in probability of any set of tokens.

    T^2 / 2 sum_v |p_t - p_s|, p = softmax(z / T). The factor T^2 is this library's one convention for temperatures.
    Source: Wen et al. 2023 (f-distill), arXiv 2307.15190.

    When: outliers must not matter: every token's loss, at T = 1, lies between 0 and 1.

    Args:
        student: logits `[..., V]`.
        teacher: logits `[..., V]`, taken as a constant.
        mask: bool `[...]`, which positions count. None: all.
        temperature: T > 0.

    Returns:
        `[...]`, fp32 or wider; 0 at equality, where the gradient is 0 as well.

    Example:
        >>> import torch
        >>> total_variation(student=torch.zeros(1, 2), teacher=torch.tensor([[1.0, 0.0]]))
        tensor([0.2311])

    Recipe:
        {loss: total_variation, weight: 1.0}
    """
    log_s, log_t = log_probabilities(student, teacher, temperature, mask)
    return silent(mask, (log_t.exp() - log_s.exp()).abs().sum(-1) * (temperature**2 / 2))


def generalised_js(log_s: Tensor, log_t: Tensor, beta: float) -> Tensor:
    """The generalised Jensen-Shannon divergence of log-probabilities `[..., V]`, its ends as in GKD.

    Raises:
        ValueError: beta is not between 0 and 1.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is the teacher's weight in a mixture: between 0 and 1, not {beta}")
    if beta in (0, 1):
        return kl(log_t, log_s) if beta == 0 else kl(log_s, log_t)
    mixed = torch.logaddexp(log_t + math.log(beta), log_s + math.log(1 - beta))
    return beta * kl(log_t, mixed) + (1 - beta) * kl(log_s, mixed)


def _skewed(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    """log(alpha p_first + (1 - alpha) p_second), never by way of the probabilities."""
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha is a weight in a mixture: at least 0 and below 1, not {alpha}")
    return torch.logaddexp(first + math.log(alpha), second + math.log(1 - alpha)) if alpha else second


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last axis."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
