"""The naive losses of published codes."""

from __future__ import annotations

from math import exp, fsum

from torch import Tensor

from parity.naive_attention import grouped
from parity.naive_tools import Row, log_softmax, mean, mean_square, numbers, pairs, per_token, tensor

Given = Tensor | None


def tinybert_scores_mse(*, student: Tensor, teacher: Tensor, mask: Given = None) -> Tensor:
    """What the code adds to a masked key, -10000, and then the zeroing; heads of unequal number in groups."""
    batch, _, queries, keys = student.shape
    count = min(student.shape[1], teacher.shape[1])

    def sees(b: int, i: int, j: int) -> bool:
        if mask is None:
            return True
        return bool(mask[b, 0, i, j] if mask.dim() == 4 else mask[b, j])

    def heads(x: Tensor, b: int, i: int) -> list[Row]:
        found = []
        for head in numbers(x[b]):
            found.append([score if sees(b, i, j) and not score <= -100 else 0.0 for j, score in enumerate(head[i])])
        return grouped(found, count, mean)

    def row(b: int) -> float:
        return mean(
            (s - t) ** 2
            for i in range(queries)
            for mine, theirs in pairs(heads(student, b, i), heads(teacher, b, i))
            for s, t in pairs(mine, theirs)
        )

    assert keys == teacher.shape[-1]
    return tensor([row(b) for b in range(batch)], batch)


def tinybert_hidden_mse(*, student: Tensor, teacher: Tensor, mask: Given = None) -> Tensor:
    """The mask is not looked at."""
    flat = [numbers(x.flatten(1)) for x in (student, teacher)]
    return tensor([mean_square(s, t) for s, t in pairs(*flat)], len(student))


def tinybert_soft_cross_entropy(
    *, student: Tensor, teacher: Tensor, mask: Given = None, temperature: float = 1.0
) -> Tensor:
    """A mean over all classes; a column that either side lacks adds nothing to it."""

    def loss(s: Row, t: Row) -> float:
        sides = pairs(log_softmax(s, temperature), log_softmax(t, temperature))
        return -fsum(exp(y) * x for x, y in sides if min(x, y) > -float("inf")) / len(s)

    return per_token(loss, mask, student, teacher)
