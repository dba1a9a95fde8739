"""The naive losses of logits, and of the largest few of them."""

from __future__ import annotations

from itertools import zip_longest
from math import exp, fsum, inf, log, sqrt

from torch import Tensor

from parity.naive_tools import (
    Row,
    centred,
    dot,
    kept_rows,
    kl,
    log_softmax,
    logsumexp,
    mean,
    pairs,
    per_token,
    softmax,
    tensor,
    transposed,
)

Given = Tensor | None
Sparse = tuple[Tensor, Tensor]


def mixture(a: Row, b: Row, weight: float) -> Row:
    """Logarithms of weight e^a + (1 - weight) e^b, where both sides have the column."""
    return [logsumexp([log(weight) + x, log(1 - weight) + y]) if min(x, y) > -inf else -inf for x, y in pairs(a, b)]


def jensen(s: Row, t: Row, beta: float) -> float:
    if beta in (0, 1):
        return kl(s, t) if beta else kl(t, s)
    middle = mixture(t, s, beta)
    return beta * kl(t, middle) + (1 - beta) * kl(s, middle)


def skewed(a: Row, b: Row, alpha: float) -> float:
    return kl(a, a if alpha == 1 else b if alpha == 0 else mixture(a, b, alpha))


def softened(loss, student: Tensor, teacher: Tensor, mask: Given, temperature: float = 1.0) -> Tensor:
    """T^2 times a loss of the two rows of log-probabilities at the temperature."""

    def at(s: Row, t: Row) -> float:
        return temperature**2 * loss(log_softmax(s, temperature), log_softmax(t, temperature))

    return per_token(at, mask, student, teacher)


def cross_entropy(*, student: Tensor, labels: Tensor, mask: Given = None) -> Tensor:
    def loss(s: Row, y: list[float]) -> float:
        return 0.0 if y[0] == -100 else -log_softmax(s)[int(y[0])]

    return per_token(loss, mask, student, labels.unsqueeze(-1))


def squared_error(*, student: Tensor, labels: Tensor, mask: Given = None) -> Tensor:
    def loss(s: Row, y: list[float]) -> float:
        (score,) = s
        return 0.0 if y[0] == -100 else (score - y[0]) ** 2

    return per_token(loss, mask, student, labels.unsqueeze(-1))


def soft_cross_entropy(*, student: Tensor, teacher: Tensor, mask: Given = None, temperature: float = 1.0) -> Tensor:
    def loss(s: Row, t: Row) -> float:
        return -fsum(exp(y) * x for x, y in pairs(s, t) if min(x, y) > -inf)

    return softened(loss, student, teacher, mask, temperature)


def forward_kl(*, student: Tensor, teacher: Tensor, mask: Given = None, temperature: float = 1.0) -> Tensor:
    return softened(lambda s, t: kl(t, s), student, teacher, mask, temperature)


def reverse_kl(*, student: Tensor, teacher: Tensor, mask: Given = None, temperature: float = 1.0) -> Tensor:
    return softened(lambda s, t: kl(s, t), student, teacher, mask, temperature)


def symmetric_kl(*, student: Tensor, teacher: Tensor, mask: Given = None, temperature: float = 1.0) -> Tensor:
    return softened(lambda s, t: (kl(s, t) + kl(t, s)) / 2, student, teacher, mask, temperature)


def jensen_shannon(
    *, student: Tensor, teacher: Tensor, mask: Given = None, beta: float = 0.5, temperature: float = 1.0
) -> Tensor:
    return softened(lambda s, t: jensen(s, t, beta), student, teacher, mask, temperature)


def skew_forward_kl(*, student: Tensor, teacher: Tensor, mask: Given = None, alpha: float = 0.1) -> Tensor:
    return softened(lambda s, t: skewed(t, s, alpha), student, teacher, mask)


def skew_reverse_kl(*, student: Tensor, teacher: Tensor, mask: Given = None, alpha: float = 0.1) -> Tensor:
    return softened(lambda s, t: skewed(s, t, alpha), student, teacher, mask)


def total_variation(*, student: Tensor, teacher: Tensor, mask: Given = None, temperature: float = 1.0) -> Tensor:
    def loss(s: Row, t: Row) -> float:
        return fsum(abs(exp(y) - exp(x)) for x, y in pairs(s, t) if min(x, y) > -inf) / 2

    return softened(loss, student, teacher, mask, temperature)


def logit_mse(*, student: Tensor, teacher: Tensor, mask: Given = None) -> Tensor:
    def loss(s: Row, t: Row) -> float:
        return mean((x - y) ** 2 for x, y in pairs(s, t) if min(x, y) > -inf)

    return per_token(loss, mask, student, teacher)


def decoupled_kl(
    *,
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    mask: Given = None,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 1.0,
) -> Tensor:
    def parts(z: Row, y: int, others: list[int]) -> tuple[Row, Row]:
        """Log-probabilities of the target against the rest, and within the rest."""
        z = log_softmax(z, temperature)
        rest = [z[v] for v in others]
        return [z[y], logsumexp(rest)], log_softmax(rest)

    def loss(s: Row, t: Row, label: list[float]) -> float:
        y = int(label[0])
        if y == -100:
            return 0.0
        others = [v for v in range(len(s)) if v != y and min(s[v], t[v]) > -inf]
        (pair_s, rest_s), (pair_t, rest_t) = parts(s, y, others), parts(t, y, others)
        return temperature**2 * (alpha * kl(pair_t, pair_s) + beta * kl(rest_t, rest_s))

    return per_token(loss, mask, student, teacher, labels.unsqueeze(-1))


def correlation(x: Row, y: Row) -> float:
    x, y = centred(x), centred(y)
    spread = sqrt(dot(x, x)) * sqrt(dot(y, y))
    return dot(x, y) / spread if spread else 0.0


def pearson(
    *,
    student: Tensor,
    teacher: Tensor,
    mask: Given = None,
    inter: float = 1.0,
    intra: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """The columns are those that every example has on both sides."""
    s, t = ([log_softmax(row, temperature) for row in kept_rows(x, mask)] for x in (student, teacher))
    if not s:
        return tensor(0.0)
    columns = [v for v in range(len(s[0])) if min(row[v] for row in s + t) > -inf]
    s, t = ([[exp(row[v]) for v in columns] for row in x] for x in (s, t))
    rows_apart = 1 - mean(correlation(x, y) for x, y in pairs(s, t))
    columns_apart = 1 - mean(correlation(x, y) for x, y in pairs(transposed(s), transposed(t)))
    return tensor(temperature**2 * (inter * rows_apart + intra * columns_apart))


def universal_logit(*, student: Tensor, teacher: Tensor, mask: Given = None) -> Tensor:
    def loss(s: Row, t: Row) -> float:
        s, t = (sorted(softmax(z), reverse=True) for z in (s, t))
        return fsum(abs(x - y) for x, y in zip_longest(s, t, fillvalue=0.0))

    return per_token(loss, mask, student, teacher)


def bucketed(s: Row, ids: list[int], t: Row, rest: float, tail: bool, temperature: float) -> tuple[Row, Row]:
    """Log-probabilities over a teacher's list, and over one bucket more: all that is outside of it."""
    ids, t = [v for v, z in pairs(ids, t) if z > -inf], [z for z in t if z > -inf]
    if not tail:
        s = log_softmax(s, temperature)
        return [s[v] for v in ids], log_softmax(t, temperature)
    s = log_softmax(s)
    outside = [s[v] for v in range(len(s)) if v not in ids]
    s, t = [s[v] for v in ids] + [logsumexp(outside)], [*t, rest if outside else -inf]
    return log_softmax(s, temperature), log_softmax(t, temperature)


def largest(row: Row, k: int) -> tuple[list[int], Row, float]:
    """The ids and log-probabilities of a row's k largest logits, and the log-probability of the others."""
    row = log_softmax(row)
    ids = sorted(range(len(row)), key=lambda v: -row[v])
    return ids[:k], [row[v] for v in ids[:k]], logsumexp(row[v] for v in ids[k:])


def listed(ids: list[float], logs: Row) -> tuple[list[int], Row, float]:
    rest = 1 - fsum(exp(z) for z in logs)
    return [int(v) for v in ids], logs, log(rest) if rest > 0 else -inf


def sparse(loss, student: Tensor, teacher: Tensor | Sparse, mask: Given, tail: bool, temperature: float, k: int):
    def at(s: Row, *t: Row) -> float:
        known = largest(t[0], k) if len(t) == 1 else listed(*t)
        return temperature**2 * loss(*bucketed(s, *known, tail, temperature))

    return per_token(at, mask, student, *(teacher if isinstance(teacher, tuple) else [teacher]))


def topk_kl(
    *,
    student: Tensor,
    teacher: Tensor | Sparse,
    mask: Given = None,
    tail: bool = True,
    temperature: float = 1.0,
    k: int = 50,
) -> Tensor:
    return sparse(lambda s, t: kl(t, s), student, teacher, mask, tail, temperature, k)


def topk_reverse_kl(
    *,
    student: Tensor,
    teacher: Tensor | Sparse,
    mask: Given = None,
    tail: bool = True,
    temperature: float = 1.0,
    k: int = 50,
) -> Tensor:
    return sparse(lambda s, t: kl(s, t), student, teacher, mask, tail, temperature, k)


def topk_jensen_shannon(
    *,
    student: Tensor,
    teacher: Tensor | Sparse,
    mask: Given = None,
    beta: float = 0.5,
    tail: bool = True,
    temperature: float = 1.0,
    k: int = 50,
) -> Tensor:
    return sparse(lambda s, t: jensen(s, t, beta), student, teacher, mask, tail, temperature, k)
