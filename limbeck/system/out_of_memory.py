"""Shortage of memory: what says so, and batches in smaller parts."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from limbeck.errors import UserError
from limbeck.system.processes import World

T = TypeVar("T")

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


def say(line: str) -> None:
    """Where lines for people go, unless someone else takes them."""
    print(line, file=sys.stderr, flush=True)


@dataclass
class Parts:
    """Into how many parts fixed batches are cut: more wherever memory is short, and so from then on.

    Args:
        what: is computed from them.
        rows: of the largest batch.
        tell: takes a line whenever there are more parts.
    """

    what: str
    rows: int
    tell: Callable[[str], None] = say
    count: int = 1

    def fitting(self, compute: Callable[[], T]) -> T:
        """What `compute`, which cuts its batches into `count` parts and changes nothing else, gives when memory holds it.

        Raises:
            UserError: one row at a time is too much.

        Example:
            >>> from limbeck.batch import cut
            >>> parts = Parts("sum", rows=4, tell=print)
            >>> def total() -> int:
            ...     found = [len(part["x"]) for part in cut({"x": torch.arange(4)}, parts.count)]
            ...     if max(found) > 2:
            ...         raise MemoryError
            ...     return sum(found)
            >>> parts.fitting(total)
            sum: out of memory; from now on at most 2 rows at a time, in the same sums
            4
        """
        while True:
            try:
                return compute()
            except (RuntimeError, MemoryError) as error:
                if not is_short(error):
                    raise
            release()  # here, where the frames of the failed try are gone
            if self.count >= self.rows:
                raise UserError(f"{self.what}: out of memory with one row at a time; {HELP}")
            self.count = min(2 * self.count, self.rows)
            size = -(-self.rows // self.count)
            self.tell(f"{self.what}: out of memory; from now on at most {size} rows at a time, in the same sums")


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
