"""The probe: value and gradient of every term for itself, over a whole optimizer step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from limbeck.batch import Views
from limbeck.distil.actors import Student
from limbeck.distil.balance import Probed
from limbeck.distil.learner import gradients
from limbeck.distil.lessons import Lesson
from limbeck.distil.reduce import Counts
from limbeck.distil.result import StepResult
from limbeck.distil.schedules import constant
from limbeck.distil.still import Micro, Still
from limbeck.system.out_of_memory import tried

PIECE = 1 << 20  # numbers of a parameter that are in fp64 at a time


def probe(
    still: Still, learner: Student, batches: Sequence[Views], counts: Mapping[str, Counts], step: int
) -> dict[str, Probed]:
    """Value and gradient norm of each term of a learner, unweighted: one forward, one backward for each term.

    The gradient is that of all the student's parameters (projections left out), over all micro-batches and processes. The
    learner is left as it was, without gradients.

    Raises:
        Short: memory was short in some process.
    """
    mine = [replace(lesson, noted=()) for lesson in still.lessons if lesson.student == learner.name]
    parts: dict[str, list[Lesson]] = {}
    for lesson in mine:
        for term in lesson.terms:
            parts.setdefault(term.name, []).append(replace(lesson, terms=(replace(term, weight=constant(1.0)),)))
    alone = {name: still.only(*lessons) for name, lessons in parts.items()}
    reader, tally, sums = still.only(*mine), StepResult(), {}

    def local() -> list[float]:
        for number, views in enumerate(batches):
            micro = Micro(views, number, step, counts, {learner.name: tally})
            readouts = reader.forward(micro)
            for name, one in alone.items():
                one.backward(micro, readouts, one.logit_losses(micro, readouts), keep=True)
                sums[name] = _add(sums.get(name), _taken(learner))
        return [float(tally.terms.get(name, 0.0)) for name in sums]

    try:
        values = tried(local, len(parts), still.world)
    finally:
        learner.drop()
    whole = {name: _whole(still, learner, summed) for name, summed in sums.items()}
    angles = cosines(whole)
    found = zip(whole.items(), values, strict=True)
    return {name: Probed(value, still.world.norm(gradient).item(), angles[name]) for (name, gradient), value in found}


def _taken(learner: Student) -> list[Tensor]:
    """The gradients of the model's parameters, which have none afterwards."""
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in learner.model.parameters()]
    _clear(learner)
    return found


def _clear(learner: Student) -> None:
    for parameter in learner.parameters:
        parameter.grad = None


def _add(held: list[Tensor] | None, more: list[Tensor]) -> list[Tensor]:
    if held is None:
        return more
    torch._foreach_add_(held, more)
    return held


def _whole(still: Still, learner: Student, summed: list[Tensor]) -> list[Tensor]:
    """Gradients added up over the processes."""
    parameters = list(learner.model.parameters())
    for parameter, gradient in zip(parameters, summed, strict=True):
        parameter.grad = gradient
    still.world.sum_gradients(parameters)
    total = gradients(parameters)
    _clear(learner)
    return total


Cosines = dict[str, dict[str, float | None]]


@torch.no_grad()
def cosines(sums: Mapping[str, Sequence[Tensor]]) -> Cosines:
    """The cosine of the angle between the gradients of every two terms: do they pull together, apart, or across?

    cos(g_i, g_j) = g_i.g_j / (|g_i| |g_j|), each g over all parameters together, products and sums in fp64. 1: the same
    direction; 0: unrelated; below 0: what helps one hurts the other. A term's own scale and weight drop out.
    Source: Yu et al. 2020 (gradient surgery), arXiv 2001.06782, section 2.

    Args:
        sums: term -> its gradients, one tensor for each parameter, in the same order for all terms.

    Returns:
        term -> term -> cosine, both ways round and with itself; None where a gradient is 0 or not finite.

    Example:
        >>> found = cosines({"a": [torch.tensor([1.0, 0.0])], "b": [torch.tensor([3.0, 3.0])], "c": [torch.zeros(2)]})
        >>> round(found["a"]["b"], 4), found["b"]["b"], found["a"]["c"]
        (0.7071, 1.0, None)
    """
    gram = torch.zeros(len(sums), len(sums), dtype=torch.float64)
    for parameter in zip(*sums.values(), strict=True):
        for pieces in zip(*(gradient.flatten().split(PIECE) for gradient in parameter), strict=True):
            stacked = torch.stack(pieces).double()
            gram += (stacked @ stacked.T).cpu()
    lengths, products = gram.diagonal().sqrt().tolist(), gram.tolist()
    return {
        one: {other: _cosine(products[i][j], lengths[i], lengths[j]) for j, other in enumerate(sums)}
        for i, one in enumerate(sums)
    }


def _cosine(product: float, length: float, other: float) -> float | None:
    if not 0 < length < math.inf or not 0 < other < math.inf:
        return None
    return min(1.0, max(-1.0, product / length / other))
