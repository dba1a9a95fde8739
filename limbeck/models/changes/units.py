"""Whole units that go while a student trains: neurons, heads, hidden units, layers. In training what is cut is 0, in the export it is gone.

One module of the model, `left`, says in buffers what is left along each axis of its weights; the axes are those by which a model
inherits a part of a larger one (inherit.py), and the cut at the end is such an inheritance by a choice that is made already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from limbeck.models import inherit, kept_units, students
from limbeck.models.changes import absent, derived, importance, sizes
from limbeck.models.changes.change import Change
from limbeck.models.changes.cubic import Cuts
from limbeck.models.changes.cut_files import cut_small
from limbeck.models.changes.factored import merge
from limbeck.models.changes.importance import Importance, Text
from limbeck.models.changes.sizes import Shares
from limbeck.models.compressed import Compressed
from limbeck.models.kept_units import Sizes

NAME = "left"  # of the module in the model
_OF_HEADS = ("query", "key", "value", "context")


class Left(nn.Module):
    """Which units of a model are left, along each axis that is cut: bool `[H]`, `[layers, n]`, and of the layers `[layers]`.

    Buffers `sum_...` of the same shapes are what Taylor's importance adds up to since the last cut.
    """

    def __init__(self, whole: Sizes) -> None:
        super().__init__()
        self.whole = whole

    def add(self, axes: set[str], summed: bool, device: torch.device) -> None:
        """Has these axes stand here, nothing of them cut yet."""
        depth, lengths = self.whole.layers, self.whole.axes
        shapes = {axis: (lengths[axis],) if axis == "hidden" else (depth, lengths[axis]) for axis in axes - {"layers"}}
        shapes |= {"layers": (depth,)} if "layers" in axes else {}
        for axis, shape in shapes.items():
            if not hasattr(self, axis):
                self.register_buffer(axis, torch.ones(shape, dtype=torch.bool, device=device))
            if summed:
                self.register_buffer(f"sum_{axis}", torch.zeros(shape, dtype=torch.float64, device=device))

    def __getitem__(self, axis: str) -> Tensor:
        """What is left along an axis."""
        return self.get_buffer(axis)

    def __contains__(self, axis: str) -> bool:
        return axis in self._buffers

    def of(self, layer: int) -> dict[str, Tensor]:
        """Axis -> what is left of it in a layer (from 1), or outside (0)."""
        found = {"hidden": self["hidden"]} if "hidden" in self else {}
        found |= {"embedding": self["hidden"]} if found and not self.whole.factorised else {}
        inside = [axis for axis in ("neuron", *_OF_HEADS) if layer and axis in self]
        return found | {axis: self[axis][layer - 1] for axis in inside}

    def sizes(self) -> Sizes:
        """How many are left: one look at the device."""
        read = {axis: self[axis] for axis in ("layers", "hidden") if axis in self}
        read |= {axis: self[axis][0] for axis in ("neuron", "key", "query") if axis in self}
        if "query" in self:
            width = self.whole.head_width
            read["heads"] = self["query"][0].view(-1, width).any(-1)
            read["kv_heads"] = self["key"][0].view(-1, width).any(-1)
        counts = torch.stack([each.sum() for each in read.values()]).tolist() if read else []
        found = dict(zip(read, counts, strict=True))
        whole = {name: found.get(name, size) for name, size in asdict(self.whole).items()}
        whole |= {"neurons": found.get("neuron", whole["neurons"])}
        whole |= {"head_width": found["query"] // found["heads"]} if "query" in found else {}
        whole |= {} if self.whole.factorised else {"embedding": whole["hidden"]}
        return Sizes(**whole)


def left_in(model: PreTrainedModel) -> Left | None:
    """What is left of a model; None of one of which no units are cut."""
    found = model._modules.get(NAME)
    return found if isinstance(found, Left) else None


@dataclass(frozen=True)
class Units(Change):
    """Shares of the neurons, heads, hidden units and layers go, the least important ones, for good.

    Args:
        shares: which shares.
        cuts: when.
        by: the importance: `magnitude`, `activations` or `taylor`.
        text: what activations are looked at on.
    """

    shares: Shares
    cuts: Cuts = Cuts()  # noqa: RUF009
    by: str = "magnitude"
    text: Text = tuple

    def axes(self, config: PretrainedConfig) -> set[str]:
        """The axes along which it cuts."""
        mine, whole, said = sizes.left_of(config, self.shares), kept_units.sizes(config), self.shares
        found = {
            axis
            for axis, share in (("neuron", said.neurons), ("hidden", said.hidden), ("layers", said.layers))
            if share
        }
        heads = (mine.heads, mine.head_width) != (whole.heads, whole.head_width)
        return found | (set(_OF_HEADS) if heads else set())

    def apply(self, model: PreTrainedModel) -> None:
        """Says in the model that all is left, and has its norms and layers heed that; cuts what is cut at once."""
        axes, left = self.axes(model.config), left_in(model) or Left(kept_units.sizes(model.config))
        left.add(axes, self.by == "taylor", next(model.parameters()).device)
        model.add_module(NAME, left)
        if "hidden" in axes:
            absent.partial_norms(model, {"hidden"} if left.whole.factorised else {"hidden", "embedding"})
        if "layers" in axes:
            absent.passing_layers(model)
        self._reach(model, 0)

    def watch(self, model: PreTrainedModel, step: int) -> None:
        """Adds up Taylor's importance."""
        if self.by != "taylor" or step >= self.cuts.end:
            return
        left, seen = _left(model), importance.taylor(model)
        if "sum_layers" in left:
            left["sum_layers"].add_(seen.layers)
        for layer, found in seen.units.items():
            for axis in found.keys() & left.of(layer).keys():
                name = "sum_hidden" if axis == "embedding" else f"sum_{axis}"
                if name in left:
                    (left[name] if name == "sum_hidden" else left[name][layer - 1]).add_(found[axis])

    def follow(self, model: PreTrainedModel, step: int) -> None:
        """Cuts what is due, and has what is cut be 0."""
        self._reach(model, step + 1)

    def ready(self, step: int) -> bool:
        """Whether all is cut."""
        return step >= self.cuts.end

    def left(self, model: PreTrainedModel) -> Mapping[nn.Parameter, Tensor]:
        """What is left of each parameter."""
        return {part.tensor: mask.expand_as(part.tensor) for part, mask in _masks(model)}  # pyright: ignore[reportReturnType]

    def shrunk(self, config: PretrainedConfig) -> PretrainedConfig:
        """The config of what is left."""
        return sizes.resized(config, sizes.left_of(config, self.shares))

    def fold(self, model: PreTrainedModel, small: Compressed) -> PreTrainedModel:
        """A model of what is left; of whatever changes cut units, all at once."""
        small.factors.update(merge(model))
        return cut_out(model, small)

    def facts(self) -> dict[str, Any]:
        """Which shares, and when, in updates."""
        said = {name: share for name, share in asdict(self.shares).items() if share is not None}
        return {"prune": {**said, "by": self.by, **asdict(self.cuts)}}

    @torch.no_grad()
    def _reach(self, model: PreTrainedModel, done: int) -> None:
        left = _left(model)
        if done >= self.cuts.begin:
            wanted = sizes.left_of(model.config, self.shares, self.cuts.progress(done))
            now = left.sizes()
            mine = sizes.between(model.config, min, now, wanted)
            if mine != now:
                self._cut(model, left, now, mine)
        for part, mask in _masks(model):
            part.tensor.masked_fill_(~mask, 0)

    def _cut(self, model: PreTrainedModel, left: Left, now: Sizes, mine: Sizes) -> None:
        """Cuts the least important units that are left, until a model of this size is."""
        found = self._importance(model, left)
        if mine.layers < now.layers:
            scores = found.layers.masked_fill(~left["layers"], -1)
            scores[_odd(model)] = torch.inf
            kept = kept_units.largest(scores, mine.layers)
            left["layers"].copy_(_chosen(left["layers"], kept))
        stay = {layer: {axis: it.nonzero().flatten() for axis, it in left.of(layer).items()} for layer in found.units}
        scores = {layer: _restricted(units, stay[layer], left) for layer, units in found.units.items()}
        for layer, choice in inherit.choices(scores, now, mine).items():
            for axis, places in choice.items():
                if axis in stay[layer] and (layer or axis == "hidden"):
                    mask = left.of(layer)[axis]
                    mask.copy_(_chosen(mask, stay[layer][axis][places]))
        if "layers" in left:
            for module, stays in zip(absent.stack(model), left["layers"], strict=True):
                module.get_buffer("left").copy_(stays)
        for norm in absent.norms(model, {"hidden", "embedding"}) if "hidden" in left else ():
            if "left" in norm._buffers:
                norm.get_buffer("left").copy_(left["hidden"])

    def _importance(self, model: PreTrainedModel, left: Left) -> Importance:
        if self.by == "activations":
            return importance.activations(model, self.text)
        found = importance.magnitude(model)
        if self.by == "magnitude":
            return found
        depth = left.whole.layers
        units: inherit.Scores = {layer: dict(found.units[layer]) for layer in range(depth + 1)}
        for axis in ("neuron", *_OF_HEADS):
            if f"sum_{axis}" in left:
                for layer in range(1, depth + 1):
                    units[layer][axis] = left[f"sum_{axis}"][layer - 1].clone()
        if "sum_hidden" in left:
            units = {
                layer: {a: v for a, v in mine.items() if a not in ("hidden", "embedding")}
                for layer, mine in units.items()
            }
            units[inherit.OUTSIDE]["hidden"] = left["sum_hidden"].clone()
        layers = left["sum_layers"].clone() if "sum_layers" in left else found.layers
        for name, buffer in left.named_buffers():
            if name.startswith("sum_"):
                buffer.zero_()
        return Importance(units, layers)


def cut_out(model: PreTrainedModel, small: Compressed) -> PreTrainedModel:
    """A plain model of the units of a model that are left: its answers are the same, to rounding.

    Where heads become narrower queries are scaled, so that scores are what they were. What `small` says is cut too.
    """
    left = left_in(model)
    if left is None:
        return model
    derived.settle(model)
    weight = next(model.parameters())
    student = students.build(sizes.resized(model.config, left.sizes()), seed=0)
    nn.Module.to(student, weight.device, weight.dtype)
    layers = left["layers"].nonzero().flatten().tolist() if "layers" in left else range(left.whole.layers)
    pairs = {here: there + 1 for here, there in enumerate(layers, 1)}
    keep = {
        layer: {axis: it.nonzero().flatten() for axis, it in left.of(layer).items()}
        for layer in (inherit.OUTSIDE, *pairs.values())
    }
    written = inherit.transfer(student, model, pairs, keep)
    assert written == {id(parameter) for parameter in student.parameters()}
    cut_small(small, student, model, pairs, keep)
    return student


def _left(model: PreTrainedModel) -> Left:
    left = left_in(model)
    assert left is not None
    return left


def _masks(model: PreTrainedModel) -> Iterator[tuple[inherit.WeightPart, Tensor]]:
    """Every parameter of which units can be cut, once, and what is left of it: bool that broadcasts to its shape."""
    left, lengths, seen = _left(model), _left(model).whole.axes, set[int]()
    for part in inherit.parts(model):
        mask, stays = None, left.of(part.layer)
        for axis, roles in enumerate(part.axes or ()):
            names = roles.split("+")
            if not stays.keys() & set(names):
                continue
            ones = [stays.get(name, part.tensor.new_ones(lengths[name], dtype=torch.bool)) for name in names]
            shape = [-1 if each == axis else 1 for each in range(part.tensor.ndim)]
            mine = torch.cat(ones).view(shape)
            mask = mine if mask is None else mask & mine
        if part.layer and "layers" in left:
            whole = left["layers"][part.layer - 1]
            mask = whole if mask is None else mask & whole
        if mask is not None and id(part.tensor) not in seen:
            seen.add(id(part.tensor))
            yield part, mask


def _restricted(units: Mapping[str, Tensor], stay: Mapping[str, Tensor], left: Left) -> dict[str, Tensor]:
    """The scores of what is left."""
    found = {axis: scores[stay[axis]] if axis in stay else scores for axis, scores in units.items()}
    if "head" in units and "query" in stay:
        width = left.whole.head_width
        found["head"] = units["head"][(stay["query"] // width).unique()]
    return found


def _chosen(mask: Tensor, places: Tensor) -> Tensor:
    return torch.zeros_like(mask).index_fill_(0, places, True)


def _odd(model: PreTrainedModel) -> list[int]:
    """The layers whose parameters differ from those of the last one: their place is their own."""
    names = [[name for name, _ in layer.named_parameters()] for layer in absent.stack(model)]
    return [number for number, mine in enumerate(names) if mine != names[-1]]
