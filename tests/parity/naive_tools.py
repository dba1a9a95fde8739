"""What the naive losses share: plain Python floats in lists, sums by `math.fsum`, loops."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from math import exp, fsum, inf, isfinite, log, sqrt
from typing import Any

import torch
from torch import Tensor

Row = list[float]
pairs = partial(zip, strict=True)


def numbers(x: Tensor) -> Any:
    return x.detach().to(torch.float64).tolist()


def rows(x: Tensor) -> list[Row]:
    """The vectors of the last axis, over all leading axes."""
    return numbers(x.reshape(-1, x.shape[-1]))


def kept(mask: Tensor | None, count: int) -> list[bool]:
    return [True] * count if mask is None else mask.reshape(-1).tolist()


def kept_rows(x: Tensor, mask: Tensor | None) -> list[Row]:
    return [row for row, keep in pairs(rows(x), kept(mask, x.shape[:-1].numel())) if keep]


def kept_tokens(x: Tensor, mask: Tensor | None) -> list[list[int]]:
    """The positions that count, of every row of `[B, T, ...]`."""
    keep = [[True] * x.shape[1]] * x.shape[0] if mask is None else mask.tolist()
    return [[i for i, k in enumerate(row) if k] for row in keep]


def tensor(values: Any, *shape: int) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def per_token(loss: Callable[..., float], mask: Tensor | None, *tensors: Tensor) -> Tensor:
    """A loss of one vector of every tensor, at every kept leading position."""
    shape = tensors[0].shape[:-1]
    columns = pairs(kept(mask, shape.numel()), *(rows(x) for x in tensors))
    return tensor([loss(*vectors) if keep else 0.0 for keep, *vectors in columns], *shape)


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return fsum(values) / len(values) if values else 0.0


def dot(x: Row, y: Row) -> float:
    return fsum(a * b for a, b in pairs(x, y))


def norm(x: Row) -> float:
    return sqrt(dot(x, x))


def unit(x: Row) -> Row:
    """A vector of length one; the zero vector stays what it is."""
    length = norm(x)
    return [a / length for a in x] if length else x


def mean_square(x: Row, y: Row) -> float:
    return mean((a - b) ** 2 for a, b in pairs(x, y))


def transposed(x: list[Row]) -> list[Row]:
    return [list(column) for column in pairs(*x)]


def centred(x: Row) -> Row:
    return [0.0 for _ in x] if len(set(x)) == 1 else [a - mean(x) for a in x]


def smooth_l1(x: float, y: float) -> float:
    gap = abs(x - y)
    return gap**2 / 2 if gap < 1 else gap - 0.5


def logsumexp(row: Iterable[float]) -> float:
    row = [z for z in row if z > -inf]
    return max(row) + log(fsum(exp(z - max(row)) for z in row)) if row else -inf


def log_softmax(row: Row, temperature: float = 1.0) -> Row:
    """Over the finite entries; the others stay at -inf."""
    scaled = [z / temperature for z in row]
    total = logsumexp(scaled)
    return [z - total if isfinite(z) else -inf for z in scaled]


def softmax(row: Row, temperature: float = 1.0) -> Row:
    return [exp(z) for z in log_softmax(row, temperature)]


def kl(a: Row, b: Row) -> float:
    """KL(a||b) of log-probabilities, without the entries that either side lacks."""
    return fsum(exp(x) * (x - y) for x, y in pairs(a, b) if x > -inf and y > -inf)
