"""The naive losses of relations: between layers, examples, and the two models."""

from __future__ import annotations

from math import exp, fsum, log, log1p, sqrt

from torch import Tensor

from parity.naive_tools import (
    Row,
    dot,
    kept,
    kept_rows,
    kept_tokens,
    mean,
    mean_square,
    norm,
    numbers,
    pairs,
    rows,
    smooth_l1,
    tensor,
    transposed,
    unit,
)

Given = Tensor | None
Pair = tuple[Tensor, Tensor]


def flow(*, student: Pair, teacher: Pair, mask: Given = None) -> Tensor:
    def products(pair: Pair, b: int, tokens: list[int]) -> Row:
        a, c = (transposed([rows(x[b])[i] for i in tokens]) for x in pair)
        return [dot(x, y) / len(tokens) for x in a for y in c]

    values = [
        mean_square(products(student, b, tokens), products(teacher, b, tokens)) if tokens else 0.0
        for b, tokens in enumerate(kept_tokens(student[0], mask))
    ]
    return tensor(values, len(values))


def distances(x: list[Row]) -> Row:
    """All N^2 of them, over the mean of the positive ones."""
    apart = [
        0.0 if i == j else sqrt(max(fsum((a - b) ** 2 for a, b in pairs(u, v)), 1e-12))
        for i, u in enumerate(x)
        for j, v in enumerate(x)
    ]
    typical = mean(d for d in apart if d > 0)
    return [d / typical for d in apart]


def angles(x: list[Row]) -> Row:
    """The cosines of all N^3 triples, the vertex in the middle."""

    def direction(u: Row, v: Row) -> Row:
        gap = [a - b for a, b in pairs(u, v)]
        return [a / max(norm(gap), 1e-12) for a in gap]

    spokes = [[direction(u, vertex) for u in x] for vertex in x]
    return [dot(e, f) for spoke in spokes for e in spoke for f in spoke]


def relational(describe, student: Tensor, teacher: Tensor, mask: Given) -> Tensor:
    s, t = kept_rows(student, mask), kept_rows(teacher, mask)
    if len(s) < 2:
        return tensor(0.0)
    return tensor(mean(smooth_l1(x, y) for x, y in pairs(describe(s), describe(t))))


def rkd_distance(*, student: Tensor, teacher: Tensor, mask: Given = None) -> Tensor:
    return relational(distances, student, teacher, mask)


def rkd_angle(*, student: Tensor, teacher: Tensor, mask: Given = None) -> Tensor:
    return relational(angles, student, teacher, mask)


def similarity(*, student: Tensor, teacher: Tensor, mask: Given = None) -> Tensor:
    def flat(x: Tensor) -> list[Row]:
        """The kept rows, their masked tokens zeroed."""
        if mask is None or mask.dim() == 1:
            return kept_rows(x.reshape(x.shape[0], -1), mask)
        tokens = [
            [[a if keep else 0.0 for a in vector] for keep, vector in pairs(keeps, vectors)]
            for keeps, vectors in pairs(mask.tolist(), numbers(x.reshape(*x.shape[:2], -1)))
            if any(keeps)
        ]
        return [[a for vector in vectors for a in vector] for vectors in tokens]

    def gram(x: list[Row]) -> Row:
        return [a for u in x for a in unit([dot(u, v) for v in x])]

    return tensor(mean_square(gram(flat(student)), gram(flat(teacher))))


def softplus(x: float) -> float:
    return max(x, 0.0) + log1p(exp(-abs(x)))


def log_mean_partition(width: int, temperature: float) -> float:
    """The logarithm of 0F1(; width / 2; 1 / (4 temperature^2)), as its series."""
    terms, n = [1.0], 0
    while terms[-1] > 1e-20 * max(terms):
        n += 1
        terms.append(terms[-1] / (4 * temperature**2) / (n * (width / 2 + n - 1)))
    return log(fsum(terms))


def contrastive(
    *,
    student: Pair,
    teacher: Pair,
    mask: Given = None,
    temperature: float = 0.07,
    log_partition: float | None = None,
) -> Tensor:
    c = log_mean_partition(student[0].shape[-1], temperature) if log_partition is None else log_partition

    def side(v: Row, candidates: list[Row]) -> float:
        """-log e/(e + cK) is softplus(log cK - log e), and -log cK/(e + cK) the mirror of it."""
        first, *others = [dot(v, m) / temperature for m in candidates]
        bar = c + log(len(others))
        return softplus(bar - first) + fsum(softplus(e - bar) for e in others)

    sides = [[side(v, m) for v, m in pairs(rows(pair[0]), numbers(pair[1]))] for pair in (student, teacher)]
    values = [s + t if keep else 0.0 for s, t, keep in pairs(*sides, kept(mask, len(sides[0])))]
    return tensor(values, len(values))
