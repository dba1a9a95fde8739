"""Layers whose weight is derived: what a product uses is not the parameter but what a chain of maps makes of it.

A linear layer, a Conv1D or an embedding is derived in place: it keeps its parameters, their names, its hooks and its ties. Settled,
it is the layer that it was before, whose weight is what the maps made of it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Derived(nn.Module):
    """What the kinds share: the maps of the weight, outputs first, and those of the input."""

    weight: Any
    weight_maps: nn.ModuleList  # each `[outputs, inputs] -> [outputs, inputs]`
    input_maps: nn.ModuleList  # each `[..., inputs] -> [..., inputs]`

    def derived(self) -> Tensor:
        """The weight that is used, as the parameter lies."""
        return _through(self.weight_maps, self.weight)


class DerivedLinear(Derived, nn.Linear):
    """A linear layer: y = map(x) map(W)' + b."""

    def forward(self, input: Tensor) -> Tensor:
        """`[..., inputs] -> [..., outputs]`."""
        return F.linear(_through(self.input_maps, input), self.derived(), self.bias)


class DerivedConv1D(Derived, Conv1D):
    """GPT-2's linear layer, whose weight lies inputs first."""

    def derived(self) -> Tensor:
        """The weight that is used, inputs first."""
        return _through(self.weight_maps, self.weight.mT).mT

    def forward(self, x: Tensor) -> Tensor:
        """`[..., inputs] -> [..., outputs]`."""
        return F.linear(_through(self.input_maps, x), self.derived().mT, self.bias)


class DerivedEmbedding(Derived, nn.Embedding):
    """A table of rows; maps that take each row for itself are given only the rows that are looked up."""

    def forward(self, input: Tensor) -> Tensor:
        """`[...] -> [..., width]`."""
        rows = F.embedding(input, self.weight, self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq)
        return _through(self.weight_maps, rows.flatten(0, -2)).view_as(rows)


KINDS: dict[type[nn.Module], type[Derived]] = {
    nn.Linear: DerivedLinear,
    Conv1D: DerivedConv1D,
    nn.Embedding: DerivedEmbedding,
}


def derive(layer: nn.Module, weight: nn.Module | None = None, input: nn.Module | None = None) -> None:
    """Adds a map behind those that a layer has; makes it a derived one, in place, where it is none yet."""
    if type(layer) in KINDS:
        layer.__class__ = KINDS[type(layer)]
        layer.weight_maps, layer.input_maps = nn.ModuleList(), nn.ModuleList()
    assert isinstance(layer, Derived)
    layer.weight_maps.extend([weight] if weight else [])
    layer.input_maps.extend([input] if input else [])


@torch.no_grad()
def settle(model: nn.Module) -> None:
    """Makes plain layers of all derived ones, in place: their weights are those that were used; maps of inputs are dropped."""
    found = [layer for layer in model.modules() if isinstance(layer, Derived)]
    used = {layer.weight: layer.derived() for layer in found}  # tied weights once
    for weight, value in used.items():
        weight.copy_(value)
    for layer in found:
        del layer.weight_maps, layer.input_maps
        object.__setattr__(layer, "__class__", next(plain for plain, kind in KINDS.items() if type(layer) is kind))


def used(layer: Any) -> Tensor:
    """The weight that a layer uses, derived or not, as its parameter lies."""
    return layer.derived() if isinstance(layer, Derived) else layer.weight


def _through(maps: nn.ModuleList, value: Tensor) -> Tensor:
    for each in maps:
        value = each(value)
    return value
