"""FLOPs: those of the plain mathematics of one step, and those that the machine reaches in matrix products alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertForMaskedLM

from benchmarks.shapes import Shape, config
from benchmarks.sides import Turns, four_losses, linears
from limbeck.system.precision import DTYPES

PRODUCT_FLOPS = {"cpu": 2e11, "cuda": 2e13}  # of one turn of `product`, at most


@dataclass(frozen=True)
class Flops:
    """Of one step."""

    teacher: int  # forward
    student: int  # forward and backward, with the projections

    @property
    def step(self) -> int:
        """Of the whole step."""
        return self.teacher + self.student


def flops(shape: Shape) -> Flops:
    """The FLOPs of the plain mathematics of one step, by torch's counter, on the meta device: nothing is computed."""
    with torch.device("meta"):
        teacher, student = (
            BertForMaskedLM._from_config(config(size, shape), attn_implementation="eager")
            for size in (shape.teacher, shape.student)
        )
        ids = torch.zeros(shape.rows, shape.length, dtype=torch.long)
        projections = linears(shape)
        asked = {"input_ids": ids, "output_hidden_states": True, "output_attentions": True}
        with FlopCounterMode(display=False) as first, torch.no_grad():
            theirs = teacher(**asked)
        with FlopCounterMode(display=False) as second:
            four_losses(student(**asked), theirs, projections, shape).backward()
    return Flops(first.get_total_flops(), second.get_total_flops())


def product(turns: Turns, shape: Shape, size: int) -> None:
    """A side of a race: square matrix products of one size."""
    a, b = (torch.randn(size, size, device=shape.device).to(DTYPES[shape.precision]) for _ in range(2))
    out, count = torch.empty_like(a), products(shape, size)
    for _ in turns:
        for _ in range(count):
            torch.mm(a, b, out=out)


def products(shape: Shape, size: int) -> int:
    """How many products of a size make a turn: those of `PRODUCT_FLOPS`, or of an update where it has fewer."""
    return max(1, round(min(PRODUCT_FLOPS[shape.device], flops(shape).step) / (2 * size**3)))
