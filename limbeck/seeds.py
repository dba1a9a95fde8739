"""Random streams by name: every random number of a run is a function of its seed and of what it is for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *words: int | str) -> int:
    """A 63-bit seed for one purpose, such as `derive(0, "dropout", step, micro_batch, rank)`."""
    return int.from_bytes(_digest(seed, *words)[:8], "little") >> 1


def stream(seed: int, *words: int | str) -> np.random.Generator:
    """A generator of its own for one purpose (Philox, a counter-based generator)."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(seed, *words)[:16], "little")))


def _digest(seed: int, *words: int | str) -> bytes:
    return hashlib.sha256(repr((seed, *words)).encode()).digest()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's generators start from `seed` inside, and are outside as if nothing had happened."""
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=_accelerator(device)):
        torch.manual_seed(seed)
        yield


def _accelerator(device: torch.device) -> str:
    return "cuda" if device.type == "cpu" else device.type
