"""Divergences from the teacher's k largest log-probabilities: what a cache keeps of a prediction. `[..., V] -> [...]`.

With the tail, both sides become k + 1 buckets: the k tokens, and all the rest as one. Without it, the loss is that on
teacher logits which are -inf outside of the k tokens: the teacher is renormalised over them, the student is not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.losses.divergences import NEVER, generalised_js, kl, log_softmax
from limbeck.losses.tensors import allowed, blank, fits, same, silent, wide

K = 50  # tokens of dense logits
ROUNDING = 64  # size of logits, of whose rounding a list of log-probabilities may suffer


class TopK(NamedTuple):
    """The k most probable tokens of a prediction.

    In half precision keep `rest` beside the list: one less a sum of rounded probabilities is off by up to 1 %, and a
    temperature above 1 makes much of it.
    """

    indices: Tensor  # int64 [..., k]
    logprobs: Tensor  # [..., k], log-probabilities under the whole vocabulary at T = 1; -inf pads a shorter list
    rest: Tensor | None = (
        None  # [...], log-probability of all other tokens together; None: 1 less the sum, as far as it tells
    )
    columns: int = 0  # V, where it is known

    @staticmethod
    def of(logits: Tensor, k: int) -> TopK:
        """The k most probable tokens of logits `[..., V]`, all of them where V is less than k."""
        log_p = log_softmax(wide(logits), 1)
        logprobs, indices = log_p.topk(min(k, logits.shape[-1]), dim=-1)
        return TopK(indices, logprobs, log_p.scatter(-1, indices, float("-inf")).logsumexp(-1), logits.shape[-1])

    def detach(self) -> TopK:
        """The same as a constant."""
        rest = None if self.rest is None else self.rest.detach()
        return TopK(self.indices, self.logprobs.detach(), rest, self.columns)

    def rows(self, some: slice) -> TopK:
        """The predictions of some tokens."""
        rest = None if self.rest is None else self.rest[some]
        return TopK(self.indices[some], self.logprobs[some], rest, self.columns)

    def first(self, k: int) -> TopK:
        """The k most probable of the tokens; what is left out goes to the rest, where that is known."""
        if k >= self.indices.shape[-1]:
            return self
        logprobs, order = self.logprobs.topk(k, dim=-1)
        left = self.logprobs.scatter(-1, order, float("-inf")).logsumexp(-1)
        rest = None if self.rest is None else torch.logaddexp(self.rest, left)
        return TopK(self.indices.gather(-1, order), logprobs, rest, self.columns)

    def dense(self) -> Tensor:
        """Logits `[..., V]`: the other tokens share what is left, each as much.

        They are log-probabilities: right up to a constant of each token, which no loss on probabilities sees.
        """
        assert self.rest is not None and self.columns
        others = max(1, self.columns - self.indices.shape[-1])
        floor = torch.finfo(self.logprobs.dtype).min  # finite: 0 times it is 0
        spread = (self.rest - math.log(others)).clamp(min=floor).unsqueeze(-1)
        return spread.repeat(*(1,) * self.rest.dim(), self.columns).scatter_(-1, self.indices, self.logprobs)


def dense(said: Tensor | TopK) -> Tensor:
    """A prediction as logits `[..., V]`."""
    return said.dense() if isinstance(said, TopK) else said


Teacher = TopK | tuple[Tensor, Tensor] | Tensor


def topk_kl(
    *,
    student: Tensor,
    teacher: Teacher,
    mask: Tensor | None = None,
    k: int | None = None,
    tail: bool = True,
    temperature: float = 1.0,
) -> Tensor:
    """Forward KL from the teacher's k largest log-probabilities, in nats.

    T^2 KL(q_t || q_s) over k + 1 buckets, q = softmax(log p / T) of the k probabilities and of the rest. At T = 1 it is
    a lower bound of forward KL (nothing is known of how the rest is divided). Without the tail it is not 0 at equality.
    Source: Hinton et al. 2015, arXiv 1503.02531; the buckets as in DistillKit; what a plain cut-off loses:
    Anshumann et al. 2025, arXiv 2503.16870.

    When: the teacher's predictions come from a cache, or its vocabulary is too large to be compared whole.

    Args:
        student: logits `[..., V]`.
        teacher: `(indices, logprobs)`, each `[..., k]`, or a `TopK`; or logits `[..., V]` of which the k largest are taken.
        mask: bool `[...]`, which positions count. None: all.
        k: how many of the teacher's tokens are looked at; None: all of a list, `K` of logits.
        tail: whether the rest counts as one bucket more.
        temperature: T > 0; softens the buckets.

    Returns:
        `[...]`, fp32 or wider; 0 at equality with the tail, at every temperature.

    Example:
        >>> import torch
        >>> z = torch.tensor([[3.0, 1.0, 0.0, -1.0]])
        >>> topk_kl(student=z - z, teacher=z, k=2)
        tensor([0.7849])

    Recipe:
        {loss: topk_kl, k: 50, tail: true, weight: 1.0}
    """
    log_s, log_t = _buckets(student, teacher, mask, k, tail, temperature)
    return silent(mask, kl(log_t, log_s) * temperature**2)


def topk_reverse_kl(
    *,
    student: Tensor,
    teacher: Teacher,
    mask: Tensor | None = None,
    k: int | None = None,
    tail: bool = True,
    temperature: float = 1.0,
) -> Tensor:
    """Reverse KL to the teacher's k largest log-probabilities, in nats.

    T^2 KL(q_s || q_t) over the buckets of `topk_kl`. Without the tail the student's probability outside of the k tokens
    is dropped, so that the sum can be negative. Source: Gu et al. 2023 (MiniLLM), arXiv 2306.08543, on the buckets of
    DistillKit.

    When: as `reverse_kl`, with a cached teacher; keep the tail.

    Args:
        student: logits `[..., V]`.
        teacher: `(indices, logprobs)`, each `[..., k]`, or a `TopK`; or logits `[..., V]` of which the k largest are taken.
        mask: bool `[...]`, which positions count. None: all.
        k: how many of the teacher's tokens are looked at; None: all of a list, `K` of logits.
        tail: whether the rest counts as one bucket more.
        temperature: T > 0; softens the buckets.

    Returns:
        `[...]`, fp32 or wider; 0 at equality with the tail, at every temperature.

    Example:
        >>> import torch
        >>> z = torch.tensor([[3.0, 1.0, 0.0, -1.0]])
        >>> topk_reverse_kl(student=z - z, teacher=z, k=2)
        tensor([0.9888])

    Recipe:
        {loss: topk_reverse_kl, k: 50, weight: 1.0}
    """
    log_s, log_t = _buckets(student, teacher, mask, k, tail, temperature)
    return silent(mask, kl(log_s, log_t) * temperature**2)


def topk_jensen_shannon(
    *,
    student: Tensor,
    teacher: Teacher,
    mask: Tensor | None = None,
    k: int | None = None,
    tail: bool = True,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Tensor:
    """Generalised Jensen-Shannon divergence from the teacher's k largest log-probabilities, in nats.

    `jensen_shannon` over the buckets of `topk_kl`, with the same meaning of beta at 0 and 1.
    Source: Agarwal et al. 2023 (GKD), arXiv 2306.13649, on the buckets of DistillKit.

    When: as `jensen_shannon`, with a cached teacher.

    Args:
        student: logits `[..., V]`.
        teacher: `(indices, logprobs)`, each `[..., k]`, or a `TopK`; or logits `[..., V]` of which the k largest are taken.
        mask: bool `[...]`, which positions count. None: all.
        k: how many of the teacher's tokens are looked at; None: all of a list, `K` of logits.
        tail: whether the rest counts as one bucket more.
        beta: the teacher's weight in the mixture, 0 to 1.
        temperature: T > 0; softens the buckets.

    Returns:
        `[...]`, fp32 or wider; 0 at equality with the tail, at every temperature.

    Raises:
        ValueError: beta is not between 0 and 1.

    Example:
        >>> import torch
        >>> z = torch.tensor([[3.0, 1.0, 0.0, -1.0]])
        >>> topk_jensen_shannon(student=z - z, teacher=z, k=2)
        tensor([0.1971])

    Recipe:
        {loss: topk_jensen_shannon, k: 50, beta: 0.5, weight: 1.0}
    """
    log_s, log_t = _buckets(student, teacher, mask, k, tail, temperature)
    return silent(mask, generalised_js(log_s, log_t, beta) * temperature**2)


def _buckets(
    student: Tensor, teacher: Teacher, mask: Tensor | None, k: int | None, tail: bool, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities `[..., k + 1]`, or `[..., k]` without the tail, of student and teacher."""
    allowed("positive", temperature=temperature)
    if k is not None:
        allowed("count", k=k)
    fits(mask, student.shape[:-1])
    indices, logprobs, rest, _ = _topk(teacher, k, student)
    student = blank(mask, student)
    entry = ~logprobs.isneginf() if mask is None else mask[..., None] & ~logprobs.isneginf()
    indices, log_t = torch.where(entry, indices, 0), torch.where(entry, wide(logprobs.detach()), NEVER)
    log_s = log_softmax(student, 1 if tail else temperature)
    listed = log_s.gather(-1, indices).masked_fill(~entry, NEVER)
    if not tail:
        return _both(listed, log_softmax(log_t, temperature), entry)
    inside = torch.zeros_like(log_s).scatter_add(-1, indices, entry.to(log_s.dtype)) > 0
    outside = ~inside & ~log_s.detach().isneginf()
    rest_s = torch.where(outside, log_s, NEVER).logsumexp(-1, keepdim=True)
    rest_t = _rest(log_t, rest_s.detach()) if rest is None else blank(mask, rest.detach()).unsqueeze(-1)
    rest_t = rest_t.masked_fill(inside.all(-1, keepdim=True), NEVER)  # a rounding error, where there is no rest
    there = torch.cat([entry, outside.any(-1, keepdim=True) & ~rest_t.isneginf()], -1)
    log_s, log_t = torch.cat([listed, rest_s], -1), torch.cat([log_t, rest_t], -1)
    if temperature != 1:
        log_s, log_t = (log_softmax(x.clamp(min=NEVER), temperature) for x in (log_s, log_t))
    return _both(log_s, log_t, there)


def _topk(teacher: Teacher, k: int | None, student: Tensor) -> TopK:
    """The teacher as a list, of the student's positions."""
    if isinstance(teacher, Tensor):
        same("student and teacher", student.shape, teacher.shape)
        return TopK.of(teacher.detach(), k or K)
    listed = teacher if isinstance(teacher, TopK) else TopK(*teacher)
    same("the teacher's indices and log-probabilities", listed.indices.shape, listed.logprobs.shape)
    of_each = (listed.indices.shape[:-1], *([] if listed.rest is None else [listed.rest.shape]))
    for shape in of_each:
        same("the student's and the teacher's tokens", student.shape[:-1], shape)
    return listed.first(k) if k else listed


def _both(log_s: Tensor, log_t: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Each side, softened for itself, where both have something."""
    dropped = ~there | (log_s.detach() < NEVER / 2**20)
    return log_s.masked_fill(dropped, NEVER), log_t.masked_fill(dropped, NEVER)


def _rest(log_t: Tensor, like: Tensor) -> Tensor:
    """log(1 - sum), `[..., 1]`, as far as log-probabilities tell.

    A log-probability is a difference of logits: its rounding error is that of numbers of their size, up to ROUNDING eps. A rest
    below that is unknown, and taken to be what the student has (`like`), or as near to it as can be.
    """
    left, slack = 1 - log_t.exp().sum(-1, keepdim=True), ROUNDING * torch.finfo(log_t.dtype).eps
    return torch.where(left > slack, left.clamp(min=slack).log(), like.clamp(max=math.log(slack)))
