"""A model of which units are absent: norms that see only those that are left, layers that pass their input on.

Both swap a module's class in place, as derived layers do: parameters, names and hooks stay. What is left lies in a buffer `left`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from limbeck.families import family
from limbeck.models import inherit


class _PartialLayerNorm:
    """Mean and variance over the units that are left; the others are 0, and so are their gains and shifts."""

    eps: float
    weight: Tensor
    bias: Tensor | None
    left: Tensor  # bool [H]

    def forward(self, input: Tensor) -> Tensor:
        """`[..., H] -> [..., H]`."""
        states = input.to(torch.promote_types(input.dtype, self.weight.dtype))
        count = self.left.sum()
        centred = (states - (states * self.left).sum(-1, keepdim=True) / count) * self.left
        scaled = centred * torch.rsqrt(centred.square().sum(-1, keepdim=True) / count + self.eps) * self.weight
        return scaled if self.bias is None else scaled + self.bias


class _PartialRMSNorm:
    """The root of the mean square over the units that are left."""

    variance_epsilon: float
    weight: Tensor
    left: Tensor  # bool [H]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[..., H] -> [..., H]`."""
        wide = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32)) * self.left
        mean = wide.square().sum(-1, keepdim=True) / self.left.sum()
        return self.weight * (wide * torch.rsqrt(mean + self.variance_epsilon)).to(hidden_states.dtype)


class _Passing:
    """A layer that passes its input on where it is not left. It is still asked: whoever reads its attention gets an answer."""

    left: Tensor  # bool []

    def forward(self, *args: Any, **named: Any) -> Tensor:
        """`[B, T, H] -> [B, T, H]`."""
        given = args[0] if args else named["hidden_states"]
        return torch.where(self.left, super().forward(*args, **named), given)  # pyright: ignore[reportAttributeAccessIssue]


@cache
def _with(kind: type, plain: type) -> type:
    return type(f"{kind.__name__.strip('_')}{plain.__name__}", (kind, plain), {})


def _swap(module: nn.Module, kind: type, left: Tensor) -> None:
    if not isinstance(module, kind):
        module.register_buffer("left", left)
        object.__setattr__(module, "__class__", _with(kind, type(module)))


def norms(model: PreTrainedModel, axes: set[str]) -> list[nn.Module]:
    """The norms over one of these axes."""
    found: dict[nn.Module, None] = {}
    for part in inherit.parts(model):
        module = model.get_submodule(part.name.rpartition(".")[0])
        if part.axes and set(part.axes) <= axes and _kind_of(module) is not None:
            found.setdefault(module)
    return list(found)


def _kind_of(module: nn.Module) -> type | None:
    if isinstance(module, nn.LayerNorm):
        return _PartialLayerNorm
    return _PartialRMSNorm if hasattr(module, "variance_epsilon") else None


def partial_norms(model: PreTrainedModel, axes: set[str]) -> None:
    """Has the norms over these axes see the units that are left alone: all of them, at first."""
    for module in norms(model, axes):
        kind, weight = _kind_of(module), module.weight
        assert kind is not None and isinstance(weight, Tensor)
        _swap(module, kind, torch.ones_like(weight, dtype=torch.bool))


def passing_layers(model: PreTrainedModel) -> None:
    """Has layers that are cut pass their input on; none is, at first."""
    device = next(model.parameters()).device
    for layer in stack(model):
        _swap(layer, _Passing, torch.ones((), dtype=torch.bool, device=device))


def stack(model: PreTrainedModel) -> list[nn.Module]:
    """The transformer layers."""
    row = family(model.config.model_type)
    return list(model.get_submodule(f"{row.base}.{row.layers}").children())
