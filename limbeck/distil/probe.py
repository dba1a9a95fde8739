"""The probe: value and gradient of every term for itself, over a whole optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from limbeck.distil.balance import Probed
from limbeck.distil.learner import Learner, gradients, norm
from limbeck.distil.lessons import Lesson
from limbeck.distil.reduce import Batch, Counts
from limbeck.distil.result import Tally
from limbeck.distil.schedules import constant
from limbeck.distil.still import Micro, Still
from limbeck.measure.barrier import cosines
from limbeck.system.out_of_memory import tried


def probe(still: Still, learner: Learner, batches: Sequence[Batch], counts: Counts, step: int) -> dict[str, Probed]:
    """Value and gradient norm of each term of a learner, unweighted: one forward, one backward for each term.

    The gradient is that of all the student's parameters (bridges left out), over all micro-batches and processes. The
    learner is left as it was, without gradients.

    Raises:
        Short: memory was short in some process.
    """
    mine = [replace(lesson, measured=False) for lesson in still.lessons if lesson.student == learner.name]
    parts: dict[str, list[Lesson]] = {}
    for lesson in mine:
        for term in lesson.terms:
            parts.setdefault(term.name, []).append(replace(lesson, terms=(replace(term, weight=constant(1.0)),)))
    alone = {name: still.only(*lessons) for name, lessons in parts.items()}
    reader, tally, sums = still.only(*mine), Tally(), {}

    def local() -> list[float]:
        for number, batch in enumerate(batches):
            micro = Micro(batch, number, step, counts, {learner.name: tally})
            readouts = reader.read(micro)
            for name, one in alone.items():
                one.pull(micro, readouts, one.speak(micro, readouts), keep=True)
                sums[name] = _add(sums.get(name), _taken(learner))
        return [float(tally.terms.get(name, 0.0)) for name in sums]

    try:
        values = tried(local, len(parts), still.world)
    finally:
        learner.drop()
    whole = {name: _whole(still, learner, summed) for name, summed in sums.items()}
    angles = cosines(whole)
    found = zip(whole.items(), values, strict=True)
    return {name: Probed(value, norm(gradient).item(), angles[name]) for (name, gradient), value in found}


def _taken(learner: Learner) -> list[Tensor]:
    """The gradients of the model's parameters, which have none afterwards."""
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in learner.model.parameters()]
    learner.optimizer.zero_grad(set_to_none=True)
    return found


def _add(held: list[Tensor] | None, more: list[Tensor]) -> list[Tensor]:
    if held is None:
        return more
    torch._foreach_add_(held, more)
    return held


def _whole(still: Still, learner: Learner, summed: list[Tensor]) -> list[Tensor]:
    """Gradients added up over the processes."""
    parameters = list(learner.model.parameters())
    for parameter, gradient in zip(parameters, summed, strict=True):
        parameter.grad = gradient
    still.world.sum_gradients(parameters)
    total = gradients(parameters)
    learner.optimizer.zero_grad(set_to_none=True)
    return total
