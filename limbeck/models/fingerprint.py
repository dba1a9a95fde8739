"""The hash of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over names, dtypes, shapes and bits of named tensors."""
    total = hashlib.sha256()
    for name, tensor in ((name + part, it) for name, whole in tensors for part, it in parts(whole)):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()


def parts(tensor: Tensor) -> list[tuple[str, Tensor]]:
    """The plain tensors that a quantised one is made of, by their names; of a plain tensor itself."""
    flatten: Any = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return [("", tensor)]
    names: list[str] = flatten()[0]
    return [(f".{name}{more}", it) for name in names for more, it in parts(getattr(tensor, name))]
