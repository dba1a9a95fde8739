"""Measuring in shares: every process reads its rows of each batch, and what they found is put together in the order of the rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.batch import Batch, cut
from limbeck.system.processes import World


def own(batch: Batch, world: World) -> Batch | None:
    """This process's run of the rows of a batch; None where there are fewer rows than processes, and none is left."""
    runs = cut(batch, world.size)
    return runs[world.rank] if world.rank < len(runs) else None


def joined(world: World, counts: Sequence[Sequence[int]], mine: Tensor) -> Tensor:
    """The numbers of all processes, batch by batch and in a batch process by process.

    Args:
        world: the processes.
        counts: batch -> process -> how many of the numbers are its; the same in all processes.
        mine: this process's numbers, `[sum of its counts, ...]`, batch by batch.

    Example:
        >>> joined(World(), [[2], [1]], torch.tensor([5, 6, 7])).tolist()
        [5, 6, 7]
    """
    if world.size == 1:
        return mine
    whole = torch.zeros((sum(map(sum, counts)), *mine.shape[1:]), dtype=mine.dtype, device=mine.device)
    place = taken = 0
    for each in counts:
        for rank, count in enumerate(each):
            if rank == world.rank:
                whole[place : place + count] = mine[taken : taken + count]
                taken += count
            place += count
    return world.add(whole)
