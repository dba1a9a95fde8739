"""What a run depends on besides its recipe: versions, machine, memory manager."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    "limbeck",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "pydantic",
)
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # how threads of OpenMP wait for each other
SPINS = "1000"  # tries of a thread that waits before it sleeps; docs/log.md has what others cost


def versions() -> dict[str, str]:
    """The versions of python and of what limbeck builds on."""
    return {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}}


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def machine() -> dict[str, Any]:
    """Processor, cores, memory in GiB, accelerator, threads. Imports torch."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "accelerator": torch.cuda.get_device_name() if cuda else None,
        "threads": torch.get_num_threads(),
        "waiting": {name: os.environ[name] for name in WAITING if name in os.environ},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def wait_briefly() -> None:
    """Has threads that wait for each other sleep soon instead of keeping their cores busy; before torch is imported.

    At the end of every small operation the threads of OpenMP wait for the last of them. By default they spin for tens of
    milliseconds: beside another process the last one waits for a core that a spinning one holds. What the user has set stays.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = SPINS


def quiet_imports() -> None:
    """Has torchao say nothing about the libraries for GPUs that it does not load; before transformers is imported, which imports it."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory instead of handing it back to the kernel.

    Large temporaries (logits) are then reused without page faults, which otherwise cost as much as the mathematics.
    Does nothing under another C library.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(mmap_max, 0)
            mallopt(trim_threshold, 2**31 - 1)
