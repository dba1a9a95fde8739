"""Bridges: linear layers without activation from the student's width to the teacher's.

They are trained with the student, clipped apart from it, checkpointed, and left out of the exported student.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from limbeck.seeds import derive_seed, seeded


def build(names: Iterable[str], student_width: int, teacher_width: int, seed: int) -> nn.ModuleDict:
    """One linear layer (with bias, as TinyBERT's `fit_dense`) for every name; a function of name and seed alone."""
    made = nn.ModuleDict()
    for name in sorted(set(names)):
        with seeded(derive_seed(seed, "bridge", name), torch.device("cpu")):
            made[name] = nn.Linear(student_width, teacher_width)
    return made
