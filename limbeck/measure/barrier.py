"""Directions and lines among weights: where the terms of a student pull, and whether two students lie in one basin."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def barrier(
    model_a: nn.Module, model_b: nn.Module, evaluate: Callable[[nn.Module], float], points: int = 11
) -> dict[str, Any]:
    """The loss on the straight line between two students, and how far it rises above its ends.

    L(alpha) is the loss at (1 - alpha) w_a + alpha w_b, parameters and floating-point buffers (of others, the nearer
    model's). The barrier is max_alpha L(alpha) - ((1 - alpha) L(0) + alpha L(1)) over the points; it is at least 0, and
    about 0 where the two lie in one basin, connected by a line of no higher loss. Only students of one initialisation are
    expected to. Source: Frankle et al. 2020, arXiv 1912.05671.

    Args:
        model_a: holds the weights between the two during the call, and its own again afterwards, bit for bit.
        model_b: of the same architecture; it is only read.
        evaluate: the loss of `model_a` as it stands, such as `Reasons.label_loss`; called once for each point, without
            gradients.
        points: how many values of alpha, evenly spread over 0 to 1, both ends included; at least 2.

    Returns:
        `alphas`, `losses` (None where not finite) and `barrier` (None where a loss is not finite).

    Raises:
        ValueError: the models differ in names or shapes, or there are fewer than two points.

    Example:
        >>> a, b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(a.weight, -1.0), nn.init.constant_(b.weight, 1.0)
        >>> barrier(a, b, lambda model: 1 - model.weight.item() ** 2, points=3)
        {'alphas': [0.0, 0.5, 1.0], 'losses': [0.0, 1.0, 0.0], 'barrier': 1.0}
    """
    if points < 2:
        raise ValueError(f"a line has two ends: points is at least 2, not {points}")
    alphas = [number / (points - 1) for number in range(points)]
    losses = []
    with _borrowed(model_a) as saved:
        theirs = _tensors(model_b)
        _require_alike(saved, theirs)
        for alpha in alphas:
            _place(model_a, saved, theirs, alpha)
            with torch.no_grad():
                losses.append(float(evaluate(model_a)))
    finite = all(map(math.isfinite, losses))
    rises = [loss - ((1 - alpha) * losses[0] + alpha * losses[-1]) for alpha, loss in zip(alphas, losses, strict=True)]
    return {
        "alphas": alphas,
        "losses": [loss if math.isfinite(loss) else None for loss in losses],
        "barrier": max(rises) if finite else None,
    }


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; what is shared (tied embeddings) stands once."""
    return {
        name: tensor.detach() for named in (model.named_parameters(), model.named_buffers()) for name, tensor in named
    }


@contextmanager
def _borrowed(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Copies of a model's tensors, which are put back afterwards."""
    saved = {name: tensor.clone() for name, tensor in _tensors(model).items()}
    try:
        yield saved
    finally:
        with torch.no_grad():
            for name, tensor in _tensors(model).items():
                tensor.copy_(saved[name])


@torch.no_grad()
def _place(model: nn.Module, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], alpha: float) -> None:
    """Moves a model to (1 - alpha) ours + alpha theirs; at 0 and 1 to the bits of the one and of the other."""
    for name, tensor in _tensors(model).items():
        if tensor.is_floating_point() and 0 < alpha < 1:
            torch.lerp(ours[name], theirs[name].to(tensor), alpha, out=tensor)
        else:
            tensor.copy_((ours if alpha < 0.5 else theirs)[name])


def alike(model_a: nn.Module, model_b: nn.Module) -> bool:
    """Whether two models have the same parameters and buffers, by name and shape: only such ones lie on a line."""
    return not _differing(_tensors(model_a), _tensors(model_b))


def _require_alike(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    if differing := _differing(ours, theirs):
        raise ValueError(f"only students of one architecture lie on a line; they differ in {', '.join(differing[:3])}")


def _differing(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    shapes = [{name: tuple(tensor.shape) for name, tensor in side.items()} for side in (ours, theirs)]
    return sorted(name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name))
