"""Pure measures of states and predictions: alignment of layers, effective rank, calibration, means by bins.

n tokens, H width, L layers. None stands wherever a number is not defined or not finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.losses.tensors import wide

CONFIDENCES = 15  # bins of a reliability table

Numbers = list[float | None]


@dataclass(frozen=True)
class Layer:
    """The states of one layer at some tokens, and what all comparisons need of them."""

    states: Tensor  # [n, H]
    mean: Tensor  # [H], fp64
    size: float  # |X'X|_F of the centred states, 0 where nothing but rounding varies
    rank: float  # effective rank, 0 there

    @staticmethod
    def of(states: Tensor) -> Layer:
        """The layer of states `[n, H]`, all of one model and layer; sums and products in fp64."""
        x = states.double()
        mean = x.mean(0)
        centred, noise = x - mean, 8 * torch.finfo(wide(states[:0]).dtype).eps
        squares, whole = float(centred.square().sum()), float(x.square().sum())
        if not math.isfinite(whole):
            return Layer(states, mean, math.nan, math.nan)
        if squares <= noise**2 * whole:
            return Layer(states, mean, 0.0, 0.0)
        squared = torch.linalg.eigvalsh(centred.T @ centred if x.shape[1] <= len(x) else centred @ centred.T)
        squared = squared[squared > len(squared) * torch.finfo(squared.dtype).eps * squared[-1]]
        share = squared.sqrt() / squared.sqrt().sum()
        return Layer(states, mean, float(squared.norm()), math.exp(-float((share * share.log()).sum())))

    def unit(self) -> Tensor:
        """The centred states in fp64 with |X'X|_F = 1; zeros where nothing varies."""
        if self.size == 0:
            return torch.zeros_like(self.states, dtype=torch.float64)
        return (self.states.double() - self.mean) / math.sqrt(self.size)


def effective_rank(states: Tensor) -> float:
    """How many directions a representation uses, as a number that need not be whole.

    exp(-sum_i p_i log p_i), p_i = s_i / sum_j s_j, s the singular values of the centred states. H at most (n - 1 with few
    tokens); 1 where all lie on a line; 0 where nothing varies. Source: Roy and Vetterli 2007 (EUSIPCO).

    Args:
        states: `[n, H]`; tokens that do not count are left out by the caller.

    Returns:
        The rank; nan where a state is not finite.

    Example:
        >>> round(effective_rank(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])), 6)
        2.0
    """
    return Layer.of(states).rank


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment: do two representations of the same tokens carry the same information?

    |X'Y|_F^2 / (|X'X|_F |Y'Y|_F), columns centred; all in fp64. Blind to rotation and scale of either side. With fewer
    tokens than dimensions it is too high, for unrelated states as well. Source: Kornblith et al. 2019, arXiv 1905.00414.

    Args:
        x: `[n, H_x]`; tokens that do not count are left out by the caller.
        y: `[n, H_y]`, of the same tokens.

    Returns:
        0 to 1; 0 where a side does not vary, nan where a state is not finite.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -2.0]])
        >>> round(linear_cka(x, 3 * x.flip(1)), 6)
        1.0
    """
    return cka_grid([Layer.of(x)], [Layer.of(y)])[0][0]


def cka_grid(mine: Sequence[Layer], theirs: Sequence[Layer]) -> list[list[float]]:
    """`linear_cka` of every layer of one model (rows) with every layer of another (columns).

    By |X'Y|_F^2, which costs n A B for widths that add up to A and B; or, where that is cheaper (few tokens, many wide
    layers), by the equal sum(XX' * YY'), which costs n^2 (A + B). One layer of the other model is in fp64 at a time.
    """
    xs = [layer.unit() for layer in mine]
    widths, others = [x.shape[1] for x in xs], sum(layer.states.shape[1] for layer in theirs)
    few = len(xs[0]) * (sum(widths) + others) < sum(widths) * others
    x = torch.stack([x @ x.T for x in xs]) if few else torch.cat(xs, dim=1)
    columns = []
    for y in (layer.unit() for layer in theirs):
        if few:
            columns.append((x * (y @ y.T)).sum(dim=(1, 2)))
        else:
            columns.append(torch.stack([part.sum() for part in (x.T @ y).square().sum(1).split(widths)]))
    return torch.stack(columns, dim=1).clamp(max=1).tolist()


def calibration(confidence: np.ndarray, right: np.ndarray) -> dict[str, Any] | None:
    """Whether a model is right as often as it says: expected calibration error and reliability table.

    The tokens are sorted into 15 bins of equal width ((m - 1) / 15, m / 15] by their confidence, the probability of the
    likeliest class. ECE = sum_m n_m / n |accuracy_m - confidence_m|. Source: Guo et al. 2017, arXiv 1706.04599.

    Args:
        confidence: `[n]`, of tokens or rows that have a label.
        right: `[n]`, 1 where the likeliest class is the label.

    Returns:
        `ece`, and of each bin `count`, mean `confidence`, `accuracy` (None where it is empty). None without tokens, or
        where a confidence is not finite (a score has none).

    Example:
        >>> found = calibration(np.array([0.9, 0.9, 0.1]), np.array([1, 0, 0]))
        >>> round(found["ece"], 4), found["count"][13], found["accuracy"][13]
        (0.3, 2, 0.5)
    """
    if not len(confidence) or not np.isfinite(confidence).all():
        return None
    bins = np.clip(np.ceil(confidence * CONFIDENCES).astype(np.int64) - 1, 0, CONFIDENCES - 1)
    table = binned(bins, CONFIDENCES, confidence=confidence, accuracy=right)
    gaps = [abs(a - c) for a, c in zip(table["accuracy"], table["confidence"], strict=True) if a is not None]
    counts = [count for count in table["count"] if count]
    return {"ece": sum(n * gap for n, gap in zip(counts, gaps, strict=True)) / len(confidence), **table}


def binned(bins: np.ndarray, number: int, **columns: np.ndarray) -> dict[str, list[Any]]:
    """Of each bin how many there are, and the mean of every column: `bins [n]`, columns `[n]`; None where it is empty."""
    count = np.bincount(bins, minlength=number)
    sums = {name: np.bincount(bins, weights=column, minlength=number) for name, column in columns.items()}
    means = {name: [plain(s / n) if n else None for s, n in zip(sums[name], count, strict=True)] for name in sums}
    return {"count": count.tolist(), **means}


def frequency_edges(counts: np.ndarray) -> np.ndarray:
    """Where the bins of frequency begin: 0, 1, 10, 100, ... times in the training text; bins by size, not by rank, so that
    rare means the same for every vocabulary.
    """
    decades = len(str(int(counts.max(initial=0))))
    return np.array([0, *(10**power for power in range(decades))], np.int64)


def plain(value: float) -> float | None:
    """The number, or None where it is not finite."""
    return float(value) if math.isfinite(value) else None
