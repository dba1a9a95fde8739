"""Layers that are a product of two: `down` and `up`, plain layers under plain names, in the place of one weight.

A linear layer, a Conv1D or an embedding is factored in place: it keeps its place and its hooks. A head that is tied to a factored
embedding uses both factors transposed, and has none of its own. Merged, all are the layers that they were before.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from limbeck.models.changes.derived import used


class Factored(nn.Module):
    """What the kinds share: two layers, the weights of which are the factors."""

    down: Any
    up: Any

    def forward(self, input: Tensor) -> Tensor:
        """`[..., inputs] -> [..., outputs]`; of an embedding `[...] -> [..., width]`."""
        return self.up(self.down(input))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Copies of the weights of `down` and `up`, as those are used."""
        return used(self.down).detach().clone(), used(self.up).detach().clone()

    def product(self) -> Tensor:
        """up down in fp64, outputs first: `[outputs, inputs]`."""
        down, up = self.factors()
        return up.double() @ down.double()


class FactoredLinear(Factored):
    """A linear layer: y = up down x + b."""


class FactoredConv1D(Factored):
    """GPT-2's linear layer; the factors lie outputs first all the same."""


class FactoredEmbedding(Factored):
    """A table of rows: row = down[token] up', with `down` `[V, r]` and `up` `[width, r]`."""

    def product(self) -> Tensor:
        """down up' in fp64: `[V, width]`."""
        down, up = self.factors()
        return down.double() @ up.double().mT


class TiedHead(nn.Module):
    """A head whose weight is that of a factored embedding: logits = (h up) down' + b."""

    bias: Any
    table: Any

    def forward(self, input: Tensor) -> Tensor:
        """`[..., width] -> [..., V]`."""
        return F.linear(F.linear(input, used(self.table.up).mT), used(self.table.down), self.bias)


KINDS: dict[type[nn.Module], type[Factored]] = {
    nn.Linear: FactoredLinear,
    Conv1D: FactoredConv1D,
    nn.Embedding: FactoredEmbedding,
}


@torch.no_grad()
def factor(layer: Any, up: Tensor, down: Tensor) -> None:
    """Puts two factors in the place of a plain layer's weight, in place; they take its dtype and its device.

    Args:
        layer: of a kind in `KINDS`.
        up: `[outputs, r]`; of an embedding `[V, r]`, what becomes `down`: that is looked up first.
        down: `[r, inputs]`; of an embedding `[r, width]`.
    """
    weight, table = layer.weight, isinstance(layer, nn.Embedding)
    first, second = (up, down.mT) if table else (down, up)

    def held(value: Tensor) -> nn.Parameter:
        value = value.to(weight.device, weight.dtype, memory_format=torch.contiguous_format, copy=True)
        return nn.Parameter(value, requires_grad=weight.requires_grad)

    rank = first.shape[1] if table else first.shape[0]
    low = (
        nn.Embedding(len(first), rank, layer.padding_idx, device="meta")
        if table
        else nn.Linear(first.shape[1], rank, bias=False, device="meta")
    )
    high = nn.Linear(rank, len(second), bias=False, device="meta")
    low.weight, high.weight = held(first), held(second)
    if not table:
        high.bias = layer.bias
    layer._parameters.clear()
    object.__setattr__(layer, "__class__", KINDS[type(layer)])
    layer.down, layer.up = low.train(layer.training), high.train(layer.training)


def tie(head: Any, table: nn.Module) -> None:
    """A linear layer uses the factors of an embedding from now on, in place; its bias stays."""
    del head._parameters["weight"]
    head.__class__ = TiedHead
    head.table = table


@torch.no_grad()
def merge(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Makes plain layers of all factored ones, in place: their weights are the products, computed in fp64.

    Returns:
        name -> (down, up) of every layer that was factored; a tied head has none of its own.
    """
    found = {name: it for name, it in model.named_modules() if isinstance(it, Factored)}
    heads = [it for it in model.modules() if isinstance(it, TiedHead)]
    factors = {name: layer.factors() for name, layer in found.items()}
    for layer in found.values():
        _plain(layer)
    for head in heads:
        bias, table = head.bias, head.table
        del head.table, head.bias
        object.__setattr__(head, "__class__", nn.Linear)
        head.weight = table.weight
        head.register_parameter("bias", bias)
    return factors


def _plain(layer: Any) -> None:
    """One layer as it was before it was factored."""
    product, sample, bias = layer.product(), layer.up.weight, layer.up.bias
    if isinstance(layer, FactoredConv1D):
        product = product.mT
    plain = next(plain for plain, kind in KINDS.items() if type(layer) is kind)
    del layer.down, layer.up
    object.__setattr__(layer, "__class__", plain)
    layer.weight = nn.Parameter(product.to(sample.dtype).contiguous(), requires_grad=sample.requires_grad)
    if plain is not nn.Embedding:
        layer.register_parameter("bias", bias)
