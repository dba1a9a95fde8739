"""The memory bank of contrastive distillation (CRD, Tian et al. 2019, arXiv 1910.10699), and its two embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.distil.projections import Make, Making
from limbeck.losses.tensors import unit, wide
from limbeck.system.processes import World
from limbeck.system.seeds import derive_seed

Side = tuple[Tensor, Tensor]


class ContrastiveMemory(nn.Module):
    """Two linear embeddings of one width, and for each side the last embedding of every block of the training text.

    `forward` embeds both sides and draws for every row its own place in the other side's memory and K others; a draw is a
    function of (seed, updates so far, block). The memory changes once an update, in `commit`, so that all micro-batches and
    processes of an update see the same: m <- unit(momentum m + (1 - momentum) v).

    Args:
        student_width: H_s of the student's pooled states.
        teacher_width: H_t of the teacher's.
        making: the learner's seed, and the number of blocks.
        width: D of the embeddings.
        negatives: K, drawn with repetition.
        momentum: how much of the old memory stays.
    """

    student_bank: Tensor  # [blocks, D], unit vectors
    teacher_bank: Tensor
    updates: Tensor

    def __init__(
        self, student_width: int, teacher_width: int, making: Making, *, width: int, negatives: int, momentum: float
    ) -> None:
        super().__init__()
        self.seed, self.negatives, self.momentum = making.seed, negatives, momentum
        self.student, self.teacher = nn.Linear(student_width, width), nn.Linear(teacher_width, width)
        for side in ("student", "teacher"):
            self.register_buffer(f"{side}_bank", unit(torch.randn(max(2, making.blocks), width)))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []  # of each micro-batch: blocks, embeddings of both sides

    def forward(self, student: Tensor, teacher: Tensor, blocks: Tensor) -> tuple[Side, Side]:
        """Pooled states `[B, H_s]`, `[B, H_t]` and block numbers `[B]` -> each side's `v [B, D]` and `[B, 1 + K, D]`."""
        own = unit(wide(self.student(student))), unit(wide(self.teacher(teacher)))
        drawn = torch.tensor([self._draw(int(block)) for block in blocks], device=blocks.device)
        self._seen.append((blocks, own[0].detach(), own[1].detach()))
        return (own[0], self.teacher_bank[drawn]), (own[1], self.student_bank[drawn])

    @torch.no_grad()
    def commit(self, world: World) -> None:
        """Takes the embeddings of this update into the memory, of all micro-batches and processes in the order of their rows.

        Of a block that stands twice, the later row counts.
        """
        if self._seen:
            blocks, *vectors = (_rows(world, parts) for parts in zip(*self._seen, strict=True))
            last = list({block: row for row, block in enumerate(blocks.tolist())}.values())
            for bank, vector in zip((self.student_bank, self.teacher_bank), vectors, strict=True):
                old, new = bank[blocks[last]], vector[last].to(bank.dtype)
                bank[blocks[last]] = unit(self.momentum * old + (1 - self.momentum) * new)
        self.updates += 1
        self.forget()

    def forget(self) -> None:
        """Drops what was seen since the last commit: a probe reads batches that it does not learn from."""
        self._seen.clear()

    def _draw(self, block: int) -> list[int]:
        """The block itself, then others."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "negatives", int(self.updates), block))
        others = torch.randint(len(self.student_bank) - 1, (self.negatives,), generator=generator)
        return [block, *(others + (others >= block)).tolist()]


def _rows(world: World, parts: tuple[Tensor, ...]) -> Tensor:
    """Micro-batches `[B, ...]` of every process, as rows of the whole batch: micro-batch by micro-batch."""
    return torch.cat([world.gather(part) for part in parts])


def contrastive_memory(
    student_width: int, teacher_width: int, *, width: int = 128, negatives: int = 1024, momentum: float = 0.5
) -> Make:
    """What makes a `ContrastiveMemory`."""
    return lambda making: ContrastiveMemory(
        student_width, teacher_width, making, width=width, negatives=negatives, momentum=momentum
    )
