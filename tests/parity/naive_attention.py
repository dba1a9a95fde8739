"""The naive losses of attention scores and probabilities."""

from __future__ import annotations

from collections.abc import Callable
from math import log, sqrt

from torch import Tensor

from parity.naive_tools import (
    Row,
    dot,
    kept_tokens,
    kl,
    log_softmax,
    logsumexp,
    mean,
    mean_square,
    numbers,
    pairs,
    tensor,
    transposed,
)

Given = Tensor | None


def visible(mask: Given, b: int, i: int, queries: int, keys: int) -> list[int]:
    """The keys that a query sees; none for a query that is padding itself."""
    if mask is None:
        return list(range(keys))
    if mask.dim() == 4:
        return [j for j, sees in enumerate(mask[b, 0, i].tolist()) if sees]
    if queries == keys and not mask[b, i]:
        return []
    return [j for j, keep in enumerate(mask[b].tolist()) if keep]


def grouped(heads: list[Row], count: int, average: Callable[[Row], float]) -> list[Row]:
    """Contiguous groups of heads, each the average of its members."""
    size = len(heads) // count
    groups = [heads[g * size : (g + 1) * size] for g in range(count)]
    return [[average(column) for column in transposed(group)] for group in groups]


def attention(loss, average, student: Tensor, teacher: Tensor, mask: Given, convert=list) -> Tensor:
    """The mean over heads of a loss of one query's visible keys."""
    count = min(student.shape[1], teacher.shape[1])
    batch, _, queries, keys = student.shape
    sides = numbers(student), numbers(teacher)

    def value(b: int, i: int) -> float:
        seen = visible(mask, b, i, queries, keys)
        if not seen:
            return 0.0
        s, t = ([convert([head[i][j] for j in seen]) for head in side[b]] for side in sides)
        return mean(loss(x, y) for x, y in pairs(grouped(s, count, average), grouped(t, count, average)))

    return tensor([[value(b, i) for i in range(queries)] for b in range(batch)], batch, queries)


def attention_scores_mse(*, student: Tensor, teacher: Tensor, mask: Given = None) -> Tensor:
    return attention(mean_square, mean, student, teacher, mask)


attention_mse = attention_scores_mse


def attention_kl(*, student: Tensor, teacher: Tensor, mask: Given = None) -> Tensor:
    def average(logs: Row) -> float:
        return logsumexp(logs) - log(len(logs))

    return attention(lambda s, t: kl(t, s), average, student, teacher, mask, log_softmax)


def relations(x: Tensor, heads: int, b: int, tokens: list[int]) -> list[list[Row]]:
    """Per relation head and query, log-probabilities over the kept keys."""
    row = numbers(x[b])
    vectors = [row[i] if x.dim() == 3 else [a for head in row for a in head[i]] for i in tokens]
    size = len(vectors[0]) // heads
    parts = [[vector[g * size : (g + 1) * size] for vector in vectors] for g in range(heads)]
    return [[log_softmax([dot(q, k) / sqrt(size) for k in part]) for q in part] for part in parts]


def relation_kl(*, student, teacher, mask: Given = None, relation_heads: int | None = None) -> Tensor:
    if isinstance(student, tuple):
        each = [
            relation_kl(student=s, teacher=t, mask=mask, relation_heads=relation_heads)
            for s, t in pairs(student, teacher)
        ]
        return tensor([sum(column) for column in transposed([x.reshape(-1).tolist() for x in each])], *each[0].shape)
    heads = relation_heads or (teacher.shape[1] if teacher.dim() == 4 else 1)
    batch, length = student.shape[0], student.shape[-2]
    values = [[0.0] * length for _ in range(batch)]
    for b, tokens in enumerate(kept_tokens(tensor([0.0] * batch * length, batch, length), mask)):
        if tokens:
            s, t = relations(student, heads, b, tokens), relations(teacher, heads, b, tokens)
            for n, i in enumerate(tokens):
                values[b][i] = mean(kl(y[n], x[n]) for x, y in pairs(s, t))
    return tensor(values, batch, length)
