"""Evaluations and reasons of two processes are those of one: threads stand for the processes, and meet where these add up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from kernel import LOGIT, MULTI, batch, frozen, gradients_of, learner
from torch import Tensor, nn

from limbeck.measure.evaluation import Evaluation
from limbeck.measure.reasons import Reasons
from limbeck.system.processes import World


class Meeting:
    """Where two threads give and take."""

    def __init__(self) -> None:
        self.barrier, self.given = threading.Barrier(2, timeout=60), dict[int, Any]()

    def __call__(self, rank: int, value: Any) -> list[Any]:
        self.given[rank] = value
        self.barrier.wait()
        both = [self.given[0], self.given[1]]
        self.barrier.wait()
        return both


@dataclass(frozen=True)
class Half(World):
    meet: Meeting = field(default_factory=Meeting)

    def add(self, tensor: Tensor) -> Tensor:
        one, other = self.meet(self.rank, tensor)
        return one + other

    def total(self, numbers: Sequence[float]) -> list[float]:
        return [a + b for a, b in zip(*self.meet(self.rank, list(numbers)), strict=True)]

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        mine = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        for parameter, a, b in zip(parameters, *self.meet(self.rank, mine), strict=True):
            parameter.grad = a + b


def together(ask: Callable[[World], Any]) -> list[Any]:
    """What two processes are told."""
    meeting = Meeting()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ask, Half(rank, 2, meet=meeting)) for rank in range(2)]
        return [each.result() for each in waiting]


def same(mine: Any, theirs: Any) -> None:
    """To 1e-12."""
    if isinstance(theirs, dict):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            same(mine[key], value)
    elif isinstance(theirs, list | tuple):
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            same(one, other)
    elif isinstance(theirs, float | np.ndarray):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12)
    else:
        assert mine == theirs


def ended(one: Any, step: int = 3) -> Any:
    """A student away from its beginning."""
    with torch.no_grad():
        draw = torch.Generator().manual_seed(step)
        for parameter in one.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))
    return one


def cast() -> list[Any]:
    """A teacher and two students; made by one thread, since they are drawn."""
    return [frozen(), ended(learner("a", (LOGIT,))), ended(learner("b", MULTI), 4)]


@pytest.mark.parametrize("rows", [3, 1])
@pytest.mark.parametrize("task", [None, "classification"])
def test_an_evaluation(rows: int, task: str | None) -> None:
    """Means, documents, metrics and gradient norms; with one row the second process has none."""

    def ask(world: World) -> Any:
        teacher, *learners = casts.pop()
        batches = {
            split: [batch(seed, rows=rows) for seed in seeds]
            for split, seeds in {"train": (0, 1), "test": (2,)}.items()
        }
        found = Evaluation(dict.fromkeys("ab", teacher), batches, chunk=5, world=world, task=task)(learners)
        assert all(gradient is None for one in learners for gradient in gradients_of(one).values())
        return {key: {**row, "documents": dict(row["documents"])} for key, row in found.items()}

    casts = [cast() for _ in range(3)]
    alone = ask(World())
    for told in together(ask):
        same(told, alone)


@pytest.mark.parametrize("rows", [3, 1])
def test_reasons(rows: int) -> None:
    def ask(world: World) -> Any:
        teacher, *learners = casts.pop()
        batches = [batch(seed, rows=rows) for seed in range(3)]
        reasons = Reasons(dict.fromkeys("ab", teacher), batches, chunk=5, counts=np.arange(60), world=world)
        found = reasons(learners)
        return found.learners, found.pairs, reasons.label_loss(learners[0])

    casts = [cast() for _ in range(3)]
    alone = ask(World())
    for told in together(ask):
        same(told, alone)
