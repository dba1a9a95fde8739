"""What `train.precision: auto` becomes: bf16 where the device multiplies it faster than fp32, elsewhere fp32. Never fp16."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from time import perf_counter
from typing import Any

import torch

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}
AMPERE = (8, 0)  # the first CUDA capability with bf16 in its tensor cores
MULTIPLIES_BF16 = {"x86_64": {"amx_bf16", "avx512_bf16"}, "arm64": {"bf16", "sve_bf16"}}  # any of these instructions
SIZE = 512  # of the matrices whose products are timed: a processor that emulates bf16 takes a third of a second


def fastest(device: torch.device) -> str:
    """The precision in which a device multiplies fastest. On devices that nobody has tried (MPS, XPU, ...) the safe one."""
    if device.type == "cpu":
        return of_cpu(torch.cpu.get_capabilities(), torch.backends.mkldnn.is_available())
    if device.type != "cuda":
        return "fp32"
    if torch.version.hip:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return of_cuda(torch.cuda.get_device_capability(device))


def of_cpu(instructions: Mapping[str, Any], onednn: bool) -> str:
    """That of a processor, by its instructions as torch names them, and whether torch has the library that uses them.

    >>> of_cpu({"architecture": "x86_64", "avx2": True}, onednn=True)
    'fp32'
    """
    wanted = MULTIPLIES_BF16.get(str(instructions.get("architecture")), set())
    return "bf16" if onednn and any(instructions.get(name) for name in wanted) else "fp32"


def of_cuda(capability: tuple[int, int]) -> str:
    """That of an NVIDIA GPU, by its compute capability.

    >>> of_cuda((7, 5)), of_cuda((8, 0))
    ('fp32', 'bf16')
    """
    return "bf16" if capability >= AMPERE else "fp32"


def matrix_rate(precision: str, seconds: float = 0.3) -> float:
    """FLOP/s of a matrix product on this processor."""
    a = torch.randn(SIZE, SIZE).to(DTYPES[precision])
    torch.mm(a, a)
    start, count = perf_counter(), 0
    while perf_counter() - start < seconds:
        torch.mm(a, a)
        count += 1
    return count * 2 * SIZE**3 / (perf_counter() - start)


def because(became: str, device: torch.device) -> str:
    """Why `auto` became this precision.

    >>> because("fp32", torch.device("mps"))
    'fp32 (auto: the safe one, limbeck has not been tried on mps)'
    """
    if became != fastest(device):
        return f"{became} (auto: as this run began)"
    if device.type not in ("cpu", "cuda"):
        return f"{became} (auto: the safe one, limbeck has not been tried on {device.type})"
    return f"{became} (auto: the faster one here)"


def emulated(precision: str, device: torch.device) -> str | None:
    """What to say of bf16 on a processor that only emulates it, with how much slower that is, measured; else None."""
    if precision != "bf16" or device.type != "cpu" or fastest(device) == "bf16":
        return None
    return (
        f"this processor has no bf16 instructions: a product in bf16 takes {_slower():.0f} times as long as one in fp32; "
        "write train.precision: auto"
    )


@cache
def _slower() -> float:
    """How many times as long a product in bf16 takes as one in fp32."""
    return matrix_rate("fp32", 0.1) / matrix_rate("bf16", 0.1)
