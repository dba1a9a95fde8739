"""The naive losses of hidden states."""

from __future__ import annotations

from math import fsum, sqrt

from torch import Tensor

from parity.naive_tools import (
    Row,
    centred,
    dot,
    kept,
    kept_rows,
    kept_tokens,
    mean,
    mean_square,
    numbers,
    pairs,
    per_token,
    rows,
    tensor,
    transposed,
    unit,
)

Given = Tensor | None


def chosen(x: Tensor, mask: Given) -> list[list[Row]]:
    """The vectors of the kept tokens, of every row."""
    return [[x_row[i] for i in tokens] for x_row, tokens in pairs(numbers(x), kept_tokens(x, mask))]


def per_row(loss, student: Tensor, teacher: Tensor, mask: Given) -> Tensor:
    values = [loss(s, t) if s else 0.0 for s, t in pairs(chosen(student, mask), chosen(teacher, mask))]
    return tensor(values, student.shape[0])


def mse(*, student: Tensor, teacher: Tensor, mask: Given = None) -> Tensor:
    return per_token(mean_square, mask, student, teacher)


def cosine(*, student: Tensor, teacher: Tensor, mask: Given = None) -> Tensor:
    return per_token(lambda s, t: 1 - dot(unit(s), unit(t)), mask, student, teacher)


def patient(*, student: Tensor, teacher: Tensor, mask: Given = None, position: str = "first") -> Tensor:
    def loss(s: list[Row], t: list[Row]) -> float:
        i = {"first": 0, "last": -1}[position]
        return mean_square(unit(s[i]), unit(t[i]))

    if student.dim() == 2:
        return per_token(lambda s, t: loss([s], [t]), mask, student, teacher)
    return per_row(loss, student, teacher, mask)


def attention_transfer(*, student: Tensor, teacher: Tensor, mask: Given = None) -> Tensor:
    values = [[0.0] * student.shape[1] for _ in range(student.shape[0])]
    for b, tokens in enumerate(kept_tokens(student, mask)):
        s, t = (unit([mean(a * a for a in x[i]) for i in tokens]) for x in (numbers(student)[b], numbers(teacher)[b]))
        for i, x, y in pairs(tokens, s, t):
            values[b][i] = (x - y) ** 2
    return tensor(values, *student.shape[:2])


def neuron_selectivity(*, student: Tensor, teacher: Tensor, mask: Given = None) -> Tensor:
    def alike(x: list[Row], y: list[Row]) -> float:
        return mean(dot(a, b) ** 2 for a in x for b in y)

    def loss(s: list[Row], t: list[Row]) -> float:
        s, t = ([unit(channel) for channel in transposed(x)] for x in (s, t))
        return alike(t, t) + alike(s, s) - 2 * alike(s, t)

    return per_row(loss, student, teacher, mask)


def activation_boundary(*, student: Tensor, teacher: Tensor, mask: Given = None, margin: float = 1.0) -> Tensor:
    def loss(s: Row, t: Row) -> float:
        return mean(max(margin - x if y > 0 else x + margin, 0.0) ** 2 for x, y in pairs(s, t))

    return per_token(loss, mask, student, teacher)


def factor_transfer(*, student: Tensor, teacher: Tensor, mask: Given = None) -> Tensor:
    def loss(s: list[Row], t: list[Row]) -> float:
        s, t = (unit([a for token in x for a in token]) for x in (s, t))
        return mean(abs(a - b) for a, b in pairs(s, t))

    return per_row(loss, student, teacher, mask)


def cka(*, student: Tensor, teacher: Tensor, mask: Given = None) -> Tensor:
    if sum(kept(mask, len(rows(student)))) < 2:
        return tensor(0.0)
    s, t = ([centred(column) for column in transposed(kept_rows(x, mask))] for x in (student, teacher))

    def shared(x: list[Row], y: list[Row]) -> float:
        return fsum(dot(a, b) ** 2 for a in x for b in y)

    spread = sqrt(shared(s, s)) * sqrt(shared(t, t))
    return tensor(1 - shared(s, t) / spread if spread else 1.0)
