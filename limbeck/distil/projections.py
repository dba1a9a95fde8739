"""Projections: linear layers without activation from the student's width to the teacher's.

Like all modules of a term, which stand between its taps, they are trained with the student, clipped apart from it,
checkpointed, and left out of the exported student.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from limbeck.models.exits import Exit
from limbeck.models.taps import Tapped
from limbeck.system.seeds import derive_seed, seeded


@dataclass(frozen=True)
class Making:
    """What a module of a term may depend on beside its own shape."""

    seed: int  # of its learner
    blocks: int = 0  # blocks of the training text
    tapped: Tapped | None = None  # the learner's model


Make = Callable[[Making], nn.Module]


def linear(student_width: int, teacher_width: int) -> Make:
    """A linear layer with bias, as TinyBERT's `fit_dense`."""
    return lambda making: nn.Linear(student_width, teacher_width)


def build(modules: Mapping[str, Make], making: Making) -> nn.ModuleDict:
    """Every module by its name; its parameters are a function of name and seed alone.

    Names hold a colon (`hidden:2`, `:shared`), which keeps them apart from each other and from the dict's attributes.
    """
    made = nn.ModuleDict()
    for name in sorted(modules):
        with seeded(derive_seed(making.seed, "bridge", name.strip(":").replace(":", "-")), torch.device("cpu")):
            made[name] = modules[name](making)
    return made


def head(making: Making) -> Exit:
    """The head of an exit as a module of a term."""
    assert making.tapped is not None
    return Exit(making.tapped)
