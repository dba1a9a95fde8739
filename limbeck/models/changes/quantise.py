"""Quantisation in training: products use weights and activations of few bits, gradients go straight through (QAT).

In fp32 and bf16 torchao's own fake quantisers do it, so that what is trained is what torchao converts. They refuse fp64;
there `fake_quantise` does the same.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from limbeck.errors import UserError
from limbeck.models.changes import derived
from limbeck.models.changes.change import Change
from limbeck.models.changes.layers import matrices, part_of, shape_of
from limbeck.models.compressed import Compressed, Grid

EPS = torch.finfo(torch.float32).eps  # the smallest scale, as torchao has it


def fake_quantise(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """Weights rounded to signed integers of some bits times a scale, one for each row or each group of a row.

    s = max|w| / ((q_max - q_min) / 2), at least 2^-23; q = clamp(round(w / s), q_min, q_max), halves to even; the value is q s, with
    q_min = -2^(bits - 1) and q_max = 2^(bits - 1) - 1. The largest weight of a row meets an end of the range, +max|w| is clipped by
    half a step. The gradient goes straight through where round(w / s) is inside the range, and is 0 outside; s is a constant
    (Bengio et al. 2013, arXiv 1308.3432; the convention of torchao's `IntxFakeQuantizer`).

    Args:
        weight: `[outputs, inputs]`, of any floating dtype.
        bits: 2 to 8.
        group: inputs that share a scale; it divides the inputs. None: a whole row.

    Returns:
        `[outputs, inputs]`, of the same dtype.

    Raises:
        ValueError: the group does not divide the inputs.

    Example:
        >>> import torch
        >>> fake_quantise(torch.tensor([[-3.0, 0.4, 1.0, 3.0]]), bits=3)
        tensor([[-3.4286,  0.0000,  0.8571,  2.5714]])
    """
    size = group or weight.shape[-1]
    if weight.shape[-1] % size:
        raise ValueError(f"groups of {size} do not divide {weight.shape[-1]} inputs")
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    rows = weight.reshape(-1, size)
    with torch.no_grad():
        half = (high - low) / 2
        most = rows.abs().amax(-1, keepdim=True).clamp(min=EPS * half)
        scale = most / half
        rounded = (
            rows / most * half
        ).round()  # so the largest is a half to the last bit, and no rounding error decides
        inside = (rounded >= low) & (rounded <= high)
        value = rounded.clamp(low, high) * scale
    return (value + (rows - rows.detach()) * inside).view_as(weight)


def fake_quantise_tokens(states: Tensor) -> Tensor:
    """Activations rounded to int8, each token with a scale and a zero of its own, as torchao does in int8 products.

    s = (max - min) / 255 with 0 between min and max, z = clamp(-128 - round(min / s), -128, 127), q = clamp(round(x / s) + z, -128, 127);
    the value is (q - z) s. The gradient goes straight through inside the range.

    Args:
        states: `[..., width]`.

    Returns:
        The same shape and dtype.
    """
    with torch.no_grad():
        least, most = states.amin(-1, keepdim=True).clamp(max=0), states.amax(-1, keepdim=True).clamp(min=0)
        scale = ((most - least) / 255).clamp(min=EPS)
        zero = (-128 - (least / scale).round()).clamp(-128, 127)
        rounded = (states / scale).round() + zero
        inside = (rounded >= -128) & (rounded <= 127)
        value = (rounded.clamp(-128, 127) - zero) * scale
    return value + (states - states.detach()) * inside


class WeightQuantiser(nn.Module):
    """The map of a weight: torchao's fake quantiser, `fake_quantise` in fp64."""

    def __init__(self, bits: int, group: int | None) -> None:
        super().__init__()
        self.bits, self.group = bits, group
        kind: dict[str, Any] = {"group_size": group} if group else {"granularity": "per_channel"}
        self.inner = _torchao(getattr(torch, f"int{bits}"), **kind)

    def forward(self, weight: Tensor) -> Tensor:
        """`[outputs, inputs] -> [outputs, inputs]`."""
        if weight.dtype == torch.float64:
            return fake_quantise(weight, self.bits, self.group)
        return self.inner(weight)


class TokenQuantiser(nn.Module):
    """The map of an input: int8 for each token, by torchao; by `fake_quantise_tokens` in fp64."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _torchao(torch.int8, granularity="per_token", is_symmetric=False)

    def forward(self, states: Tensor) -> Tensor:
        """`[..., width] -> [..., width]`."""
        return fake_quantise_tokens(states) if states.dtype == torch.float64 else self.inner(states)


def _torchao(dtype: Any, **kind: Any) -> nn.Module:
    qat = importlib.import_module("torchao.quantization.qat")  # an extra
    return qat.IntxFakeQuantizer(qat.IntxFakeQuantizeConfig(dtype, **kind))


def require() -> None:
    """Raises UserError where torchao is not installed."""
    if importlib.util.find_spec("torchao") is None:
        raise UserError("changes: quantise needs torchao; pip install 'limbeck[int8]', or leave it out")


@dataclass(frozen=True)
class Quantise(Change):
    """Quantisation of a student in training.

    Every linear layer and the token embedding hold weights of so many bits; where the head is tied to the embedding, it is as the
    embedding is. Biases, norms, positions and token types stay as they are.

    Args:
        bits: of the weights of linear layers; 2 to 8, None: they stay as they are.
        embedding: of the token embedding.
        head: of the layers behind the last state.
        group: inputs that share a scale; None: each output has one.
        activations: whether the inputs of quantised linear layers are int8, each token for itself.
        skip: names of layers that stay as they are; a part of a name is enough.
    """

    bits: int | None = 8
    embedding: int | None = 8
    head: int | None = 8
    group: int | None = None
    activations: bool = False
    skip: tuple[str, ...] = ()

    def apply(self, model: PreTrainedModel) -> None:
        """Puts fake quantisers into the layers."""
        for name, grid in self.chosen(model).items():
            weight = WeightQuantiser(grid.bits, grid.group)
            derived.derive(model.get_submodule(name), weight, TokenQuantiser() if grid.activation_bits else None)

    def chosen(self, model: PreTrainedModel) -> dict[str, Grid]:
        """The layers that are quantised, and how.

        Raises:
            UserError: groups do not divide the inputs of a layer.
        """
        found, layers = {}, matrices(model)
        for name, layer in layers.items():
            bits = {"embedding": self.embedding, "head": self.head, "layer": self.bits, "": None}[part_of(model, name)]
            if bits is None or any(part in name for part in self.skip):
                continue
            width = shape_of(layer)[1]
            if self.group and width % self.group:
                raise UserError(
                    f"changes: quantise: groups of {self.group} do not divide the {width} inputs of {name}; "
                    "choose a group that does, or leave the layer out by skip"
                )
            activations = 8 if self.activations and not isinstance(layer, nn.Embedding) else None
            found[name] = Grid(bits, self.group, activations)
        return found

    def outline(self, model: PreTrainedModel, small: Compressed) -> None:
        """Which layers lie on which grid."""
        small.quantised.update(self.chosen(model))

    def fold(self, model: PreTrainedModel, small: Compressed) -> PreTrainedModel:
        """Weights become what they were rounded to."""
        self.outline(model, small)
        derived.settle(model)
        return model

    def facts(self) -> dict[str, Any]:
        """How many bits of what."""
        return {"quantise": asdict(self)}
