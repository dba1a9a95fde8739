"""Random streams by name: every random number of a run is a function of its seed and of what it is for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *words: int | str) -> int:
    """A seed of 63 bits for one purpose, such as `derive_seed(seed, "dropout", step, micro_batch, rank)`.

    >>> derive_seed(0, "order", 1) == derive_seed(0, "order", "1")
    False
    """
    plain = [word if isinstance(word, str) else int(word) for word in (seed, *words)]
    return int.from_bytes(hashlib.sha256(json.dumps(plain).encode()).digest()[:8], "big") >> 1


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's generators start from `seed` inside, and are outside as if nothing had happened."""
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=_accelerator(device)):
        if device.type == "cpu":
            torch.default_generator.manual_seed(
                seed
            )  # `torch.manual_seed` writes the stack down for a GPU that may come
        else:
            torch.manual_seed(seed)
        yield


def _accelerator(device: torch.device) -> str:
    return "cuda" if device.type == "cpu" else device.type
