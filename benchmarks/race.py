"""A race: sides in processes of their own take turns, one step each, so that a slow minute of the machine hits all alike.

Each side has its own process because memory, and how the C library manages it, belong to a process: a peer runs as its users
run it, limbeck with what `limbeck run` sets.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from statistics import median
from time import perf_counter
from typing import Any

from limbeck.system.environment import wait_briefly

PEERS = {"textbrewer", "loop", "product"}  # sides that limbeck's command does not start

Step = Callable[[Iterator[None]], None]


class Over(Exception):
    """The race is over."""


@dataclass
class Lap:
    """What a race measured of one side."""

    seconds: list[float] = field(default_factory=list)  # of each round, warm-up left out
    peak: int = 0  # bytes: of the process, on a GPU of torch's allocations there
    imports: int = 0  # bytes of the process after its imports, before any model

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return median(self.seconds)

    def detail(self) -> dict[str, Any]:
        """For the JSON."""
        rounded = [round(value, 5) for value in self.seconds]
        return {"seconds": self.median, "rounds": rounded, "peak_mib": mib(self.peak), "imports_mib": mib(self.imports)}


def mib(count: int) -> float:
    """Bytes in MiB."""
    return round(count / 2**20, 1)


def ratio(slow: Lap, fast: Lap) -> float:
    """How many times as long a step of one side takes: the median over the rounds of the ratio within a round."""
    return median(a / b for a, b in zip(slow.seconds, fast.seconds, strict=True))


@contextmanager
def beside(count: int) -> Iterator[None]:
    """So many other processes, each of which keeps a core busy."""
    others = [multiprocessing.get_context("spawn").Process(target=_busy, daemon=True) for _ in range(count)]
    for process in others:
        process.start()
    try:
        yield
    finally:
        for process in others:
            process.kill()
            process.join()


def _busy() -> None:
    while True:
        sum(range(10**6))


@contextmanager
def _as_started(side: Step) -> Iterator[None]:
    """The environment in which a side's process starts: limbeck's is that of its command, a peer's is the user's own."""
    before = dict(os.environ)
    if not (isinstance(side, partial) and side.func.__name__ in PEERS):
        wait_briefly()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def race(sides: Mapping[str, Step], device: str, rounds: int, warm: int = 2, fresh: bool = False) -> dict[str, Lap]:
    """Lets all sides take turns.

    Args:
        sides: name -> side; picklable.
        device: `cpu` or `cuda`.
        rounds: steps of each side that count.
        warm: steps before them.
        fresh: whether every process imports for itself what it needs; else all share the pages of the imports.

    Returns:
        name -> what was measured.

    Raises:
        RuntimeError: a side failed; its traceback is on standard error.
    """
    context: Any = multiprocessing.get_context("spawn" if fresh else "forkserver")
    if not fresh:
        context.set_forkserver_preload(["benchmarks.sides"])
    runners, laps = {}, {name: Lap() for name in sides}
    try:
        for name, side in sides.items():
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, side, device), name=name, daemon=True)
            with _as_started(side):
                process.start()
            there.close()
            runners[name] = (process, here)
        for name, (_, here) in runners.items():
            laps[name].imports = _ask(name, here, None)
        for turn in range(warm + rounds):
            took = {name: _ask(name, here, "go") for name, (_, here) in runners.items()}
            said = "  ".join(f"{name} {seconds:.3f} s" for name, seconds in took.items())
            print(f"{'warm-up' if turn < warm else 'round'}: {said}", file=sys.stderr, flush=True)
            if turn >= warm:
                for name, seconds in took.items():
                    laps[name].seconds.append(seconds)
        for name, (_, here) in runners.items():
            laps[name].peak = _ask(name, here, "end")
    finally:
        for process, here in runners.values():
            here.close()
            process.join(30)
            process.kill()
    return laps


def _ask(name: str, here: Connection, word: str | None) -> Any:
    """Says a word to a side, if there is one to say, and waits for its answer."""
    try:
        if word:
            here.send(word)
        return here.recv()
    except (EOFError, OSError):
        raise RuntimeError(f"{name} failed; its own words stand above") from None


def _serve(there: Connection, side: Step, device: str) -> None:
    """A side's process."""
    os.environ["TQDM_DISABLE"] = "1"
    _load(side)
    there.send(_peak("cpu"))
    try:
        side(_turns(there, device))
    except Over:
        there.send(_peak(device))
    except EOFError:
        return  # another side failed


def _load(side: Step) -> None:
    """Imports what only one side needs, so that it counts among the imports."""
    if isinstance(side, partial) and side.func.__name__ == "textbrewer":
        __import__("textbrewer")


def _turns(there: Connection, device: str) -> Iterator[None]:
    """One item for each turn; the time from item to item is the time of the step between them."""
    while there.recv() == "go":
        start = perf_counter()
        yield
        if device == "cuda":
            import torch

            torch.cuda.synchronize()
        there.send(perf_counter() - start)
    raise Over


def _peak(device: str) -> int:
    """Bytes of the largest memory so far.

    Of a process it is what `getrusage` calls the largest resident set, read where Linux keeps it for this program alone:
    `getrusage` would include what the parent had when it started it.
    """
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
