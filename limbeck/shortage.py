"""Shortage of memory: what says so, and batches in smaller parts."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from limbeck.errors import UserError
from limbeck.reduce import Batch
from limbeck.world import World

SAID = ("not enough memory", "allocate memory", "out of memory", "bad_alloc", "alloc_failed")  # by torch, on any device
HELP = (
    "set train.chunk or data.max_length lower, train fewer settings together (together: 1), or train.precision to bf16"
)


class Short(Exception):
    """Memory was short in at least one process, while gradients were computed: nothing has been changed."""


def is_short(error: BaseException) -> bool:
    """Whether an error says that memory is short: Python's own, torch's of a GPU, or a line of its CPU allocator.

    >>> is_short(RuntimeError("DefaultCPUAllocator: can't allocate memory")), is_short(RuntimeError("shapes differ"))
    (True, False)
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(line in str(error).lower() for line in SAID)


def tried(compute: Callable[[], Sequence[float]], size: int, world: World) -> list[float]:
    """The `size` numbers that `compute` gives, added up over all processes.

    Raises:
        Short: memory was short in any process; raised in all of them.
    """
    numbers, short = [0.0] * size, False
    try:
        numbers = list(compute())
    except (RuntimeError, MemoryError) as error:
        if not is_short(error):
            raise
        short = True
    *totals, missed = world.total([*numbers, float(short)])
    if missed:
        raise Short
    return totals


def release() -> None:
    """Gives the memory of a failed try back: cycles of its frames, and what torch keeps of a GPU."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def cut(batch: Batch, parts: int) -> list[Batch]:
    """A batch in up to `parts` runs of rows, of equal length but for the last.

    >>> [part["x"].tolist() for part in cut({"x": torch.arange(5)}, 2)]
    [[0, 1, 2], [3, 4]]
    """
    rows = len(next(iter(batch.values())))
    size = -(-rows // parts)
    return [{name: tensor[start : start + size] for name, tensor in batch.items()} for start in range(0, rows, size)]


@contextmanager
def explained(step: int) -> Iterator[None]:
    """Raises UserError where memory is short and smaller micro-batches do not help: in the optimizer, for example."""
    short = False
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_short(error):
            raise
        short = True
    if short:
        raise UserError(f"step {step}: out of memory beside the batch, with the optimizer's state; {HELP}")
