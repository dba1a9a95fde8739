"""Learners whose models are changed, and their updates by a loss of their own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.distil.learner import Learner, Optimisation
from limbeck.distil.schedules import constant
from limbeck.models.changes import Change
from limbeck.system.processes import World

IDS = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0))


def changed(model: Any, changes: Sequence[Change], rate: float = 1e-2, clip: float | None = 1.0) -> Learner:
    """A learner of a copy of a model, changed; without dropout."""
    model = copy.deepcopy(model)
    for change in changes:
        change.apply(model)
    how = Optimisation(constant(rate), weight_decay=0.1, betas=(0.9, 0.999), eps=1e-8, clip=clip)
    one = Learner("one", model, [], seed=0, modules=nn.ModuleDict(), optimisation=how, changes=changes)
    one.model.eval()
    return one


def target(step: int, like: Tensor) -> Tensor:
    """Logits to learn, others at each update."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def update(one: Learner, step: int) -> None:
    """One update towards them."""
    logits = one.model(IDS).logits
    (logits - target(step, logits)).square().mean().backward()
    one.update(step, World())
