"""The memory bank of contrastive distillation (CRD, Tian et al. 2019, arXiv 1910.10699), and its two embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.bridges import Make, Making
from limbeck.losses.tensors import unit, wide
from limbeck.seeds import derive_seed
from limbeck.world import World

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
        self._seen: dict[int, Side] = {}

    def forward(self, student: Tensor, teacher: Tensor, blocks: Tensor) -> tuple[Side, Side]:
        """Pooled states `[B, H_s]`, `[B, H_t]` and block numbers `[B]` -> each side's `v [B, D]` and `[B, 1 + K, D]`."""
        own = unit(wide(self.student(student))), unit(wide(self.teacher(teacher)))
        drawn = torch.tensor([self._draw(int(block)) for block in blocks], device=blocks.device)
        for block, v_s, v_t in zip(blocks.tolist(), own[0].detach(), own[1].detach(), strict=True):
            self._seen[block] = (v_s, v_t)
        return (own[0], self.teacher_bank[drawn]), (own[1], self.student_bank[drawn])

    @torch.no_grad()
    def commit(self, world: World) -> None:
        """Takes the embeddings of this update, of all processes, into the memory."""
        blocks = world.gather(torch.tensor(list(self._seen), device=self.updates.device))
        for bank, side in ((self.student_bank, 0), (self.teacher_bank, 1)):
            vectors = world.gather(torch.stack([seen[side] for seen in self._seen.values()])).to(bank.dtype)
            bank[blocks] = unit(self.momentum * bank[blocks] + (1 - self.momentum) * vectors)
        self.updates += 1
        self._seen.clear()

    def _draw(self, block: int) -> list[int]:
        """The block itself, then others."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "negatives", int(self.updates), block))
        others = torch.randint(len(self.student_bank) - 1, (self.negatives,), generator=generator)
        return [block, *(others + (others >= block)).tolist()]


def contrastive_memory(
    student_width: int, teacher_width: int, *, width: int = 128, negatives: int = 1024, momentum: float = 0.5
) -> Make:
    """What makes a `ContrastiveMemory`."""
    return lambda making: ContrastiveMemory(
        student_width, teacher_width, making, width=width, negatives=negatives, momentum=momentum
    )
