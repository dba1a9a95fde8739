"""What a compressed student says of its weights, in two files beside them: which lie on a grid, are a product of two, or were pruned.

`model.safetensors` always holds whole, folded weights, so that any program reads the folder; these files say how to store them in
fewer bytes without changing them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbeck.errors import UserError
from limbeck.system import files

COMPRESSION = "compression.json"
FACTORS = "factors.safetensors"
NEARLY = 1e-3  # of a step: how far a rounded weight may be from its grid; 128 steps in fp32 are told apart to 2e-5


@dataclass(frozen=True)
class Grid:
    """The whole numbers of which the weights of a module are multiples.

    Attributes:
        bits: of a number, from -2^(bits-1) to 2^(bits-1) - 1.
        group: input columns that share a scale; None: all of an output row.
        activation_bits: of the module's inputs; None: they stay as they are.
    """

    bits: int = 8
    group: int | None = None
    activation_bits: int | None = None

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and the greatest number."""
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1


@dataclass(frozen=True)
class Compressed:
    """What was done to the weights of a student.

    Attributes:
        quantised: module -> its grid; the parts of a factorised module are `MODULE.down` and `MODULE.up`.
        factors: module -> (down, up): `[r, in]` and `[out, r]` of a linear layer, `[V, r]` and `[H, r]` of an embedding.
        pruned: modules of which single weights were cut; those that are 0 stay 0 where the student is trained on.
    """

    quantised: dict[str, Grid] = field(default_factory=dict)
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    pruned: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.quantised or self.factors or self.pruned)


def read(folder: Path) -> Compressed:
    """What a folder says; of one that says nothing, nothing.

    Raises:
        UserError: its files are damaged, or do not fit each other.
    """
    path = folder / COMPRESSION
    if not path.is_file():
        return Compressed()
    try:
        said = files.read_json(path)
        quantised = {name: Grid(**grid) for name, grid in said.get("quantised", {}).items()}
        names = said.get("factorised", [])
        tensors = load_file(folder / FACTORS) if names else {}
        factors = {name: (tensors[f"{name}.down"].float(), tensors[f"{name}.up"].float()) for name in names}
        pruned = [str(name) for name in list(said.get("pruned", []))]
    except (ValueError, TypeError, LookupError, AttributeError, OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); export the student of its run anew") from None
    if odd := [name for name, grid in quantised.items() if grid.bits not in range(2, 9)]:
        raise UserError(f"{path}: {odd[0]} has {quantised[odd[0]].bits} bits, and 2 to 8 are known; mend it")
    return Compressed(quantised, factors, pruned)


def write(folder: Path, compressed: Compressed) -> None:
    """Writes both files; `factors.safetensors` only where something is factorised."""
    said: dict[str, Any] = {
        "quantised": {name: asdict(grid) for name, grid in compressed.quantised.items()},
        "factorised": list(compressed.factors),
        "pruned": compressed.pruned,
    }
    if compressed.factors:
        pairs = {name: dict(zip(("down", "up"), pair, strict=True)) for name, pair in compressed.factors.items()}
        tensors = {f"{name}.{part}": it.contiguous() for name, pair in pairs.items() for part, it in pair.items()}
        save_file(tensors, folder / FACTORS)
    files.write_json(folder / COMPRESSION, said)


def on_grid(weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Weights as whole numbers and scales: `w ~ q s`, the nearest q, half to even.

    Of weights that were rounded, the scale is found again: the largest of them stands at an end of the range, so that s is max|w| / qmax
    or max|w| / -qmin, by which all are whole. Of others it is the smallest with which nothing is cut off,
    `s = max(max(w) / qmax, min(w) / qmin)`.

    Args:
        weight: `[out, in]`.
        grid: `group` divides in.

    Returns:
        q, int8 `[out, in]`, and s, `[out, in / group]` (without groups `[out, 1]`); of a row of zeros s is 1.

    Raises:
        UserError: the groups do not divide the columns.

    >>> on_grid(torch.tensor([[1.0, -2.0, 0.5]]), Grid(bits=2))
    (tensor([[ 1, -2,  0]], dtype=torch.int8), tensor([[1.]]))
    """
    least, greatest = grid.bounds
    size = grid.group or weight.shape[1]
    if weight.shape[1] % size:
        raise UserError(f"groups of {size} do not divide {weight.shape[1]} columns; take another group")
    groups = weight.detach().float().unflatten(1, (-1, size))
    scale = torch.maximum(groups.amax(-1) / greatest, groups.amin(-1) / least)
    most = groups.abs().amax(-1)
    for other in (most / -least, most / greatest):
        scale = torch.where(_whole(groups, other), other, scale)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    whole = (groups / scale.unsqueeze(-1)).round().clamp(least, greatest)
    return whole.to(torch.int8).flatten(1), scale


def _whole(groups: Tensor, scale: Tensor) -> Tensor:
    """Which groups are multiples of their scales, as far as fp32 tells."""
    steps = groups / scale.unsqueeze(-1)
    return ((steps - steps.round()).abs() < NEARLY).all(-1)


def from_grid(whole: Tensor, scale: Tensor) -> Tensor:
    """The weights of whole numbers `[out, in]` and scales `[out, groups]`."""
    return (whole.float().unflatten(1, (scale.shape[1], -1)) * scale.unsqueeze(-1)).flatten(1)
