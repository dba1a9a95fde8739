"""Single weights that become 0 while a student trains: by magnitude, two of every four, or by movement.

Pruned are the matrices of the linear layers inside the transformer layers; embeddings, norms, biases and heads stay whole. A mask
is a map of the weight (derived.py): products use what it leaves, gradients reach that alone, and it lies in the model as a buffer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from limbeck.models.changes import derived
from limbeck.models.changes.change import Change, OwnRate
from limbeck.models.changes.cubic import Cuts
from limbeck.models.changes.layers import layers_of, outputs_first
from limbeck.models.compressed import Compressed

AT_ONCE = Cuts()
WHOLE = 12  # decimals of a share: 1 - 0.8 is 0.2


def movement_mask(scores: Tensor, keep: float) -> Tensor:
    """Which weights of a matrix are used: those with the largest scores.

    M is 1 on the int(keep n) largest of the n scores, on one at least; of equal scores the first ones, row by row. In training the
    product uses W' = M * W, and the gradients go straight through the choice: dL/dS = dL/dW' * W for every score, so that a weight
    that is cut may return, and dL/dW = dL/dW' * M. A score grows while its weight moves away from 0, whatever its size. The scores
    begin at 0.

    Source: Sanh et al. 2020, arXiv 2005.07683, the variant of the top scores of each matrix.

    Args:
        scores: S, of any shape, `[outputs, inputs]` of a matrix.
        keep: the share that is used, 0 to 1.

    Returns:
        M, bool of the shape of the scores.

    Example:
        >>> import torch
        >>> movement_mask(torch.tensor([[0.0, 3.0], [0.0, -1.0]]), keep=0.5)
        tensor([[ True,  True],
                [False, False]])
    """
    count = max(1, int(round(keep, WHOLE) * scores.numel()))
    order = scores.flatten().sort(descending=True, stable=True).indices
    return torch.zeros_like(order, dtype=torch.bool).index_fill_(0, order[:count], True).view_as(scores)


def two_of_four(weight: Tensor) -> Tensor:
    """Which weights stay where of four consecutive inputs two go: the two largest |w|, of equals the first ones.

    The pattern that sparse tensor cores multiply (Mishra et al. 2021, arXiv 2104.08378).

    Args:
        weight: `[outputs, inputs]`; four divides the inputs.

    Returns:
        bool `[outputs, inputs]`.

    Raises:
        ValueError: four does not divide the inputs.

    Example:
        >>> import torch
        >>> two_of_four(torch.tensor([[1.0, -3.0, 2.0, 0.0]]))
        tensor([[False,  True,  True, False]])
    """
    if weight.shape[-1] % 4:
        raise ValueError(f"four does not divide {weight.shape[-1]} inputs")
    order = weight.unflatten(-1, (-1, 4)).abs().sort(dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order[..., :2], True).flatten(-2)


class Kept(nn.Module):
    """The map of a weight of which some are cut for good."""

    mask: Tensor  # bool [outputs, inputs]: what is left

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        """`[outputs, inputs] -> [outputs, inputs]`."""
        return weight.masked_fill(~self.mask, 0)


class _Straight(torch.autograd.Function):
    """M * W, of which the scores get dL/dW' * W and the weights dL/dW' * M."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(weight, mask)
        return weight.masked_fill(~mask, 0)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, None]:
        (slope,), (weight, mask) = slopes, ctx.saved_tensors
        return slope.masked_fill(~mask, 0), slope * weight, None


class Moved(nn.Module):
    """The map of a weight whose scores choose what is used; the choice of the last update lies in a buffer."""

    mask: Tensor  # bool [outputs, inputs]: what is used

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros_like(weight))
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        """`[outputs, inputs] -> [outputs, inputs]`."""
        return _Straight.apply(weight, self.scores, self.mask)  # pyright: ignore[reportReturnType]


def map_of(layer: nn.Module, kind: type[nn.Module]) -> Any:
    """The map of this kind that a layer has; None where it has none."""
    maps: Iterable[nn.Module] = getattr(layer, "weight_maps", ())
    return next((it for it in maps if isinstance(it, kind)), None)


@dataclass(frozen=True)
class _Cut(Change):
    """What changes share that cut weights for good: a mask that only grows, and zeros behind it."""

    cuts: Cuts = AT_ONCE

    def chosen(self, model: PreTrainedModel) -> dict[str, nn.Module]:
        """The layers of which weights are cut."""
        return layers_of(model)

    def apply(self, model: PreTrainedModel) -> None:
        """Puts the masks into the layers, where they have none; cuts what is cut at once."""
        for layer in self.chosen(model).values():
            if map_of(layer, Kept) is None:
                derived.derive(layer, Kept(outputs_first(layer)))
        self._reach(model, 0)

    def follow(self, model: PreTrainedModel, step: int) -> None:
        """Cuts what is due, and has what is cut be 0."""
        self._reach(model, step + 1)

    def ready(self, step: int) -> bool:
        """Whether all is cut."""
        return step >= self.cuts.end

    def left(self, model: PreTrainedModel) -> Mapping[nn.Parameter, Tensor]:
        """The masks."""
        found = {}
        for layer in self.chosen(model).values():
            mask = map_of(layer, Kept).mask
            found[layer.weight] = mask.mT if isinstance(layer, derived.Conv1D) else mask
        return found

    def outline(self, model: PreTrainedModel, small: Compressed) -> None:
        """The layers that have zeros."""
        small.pruned.extend(name for name in self.chosen(model) if name not in small.pruned)

    def fold(self, model: PreTrainedModel, small: Compressed) -> PreTrainedModel:
        """Layers become plain ones that hold the zeros."""
        self.outline(model, small)
        derived.settle(model)
        return model

    @torch.no_grad()
    def _reach(self, model: PreTrainedModel, done: int) -> None:
        layers = list(self.chosen(model).values())
        masks = [map_of(layer, Kept).mask for layer in layers]
        if done >= self.cuts.begin and masks:
            counts = torch.stack([mask.sum() for mask in masks]).tolist()  # one look at the device
            for layer, mask, count in zip(layers, masks, counts, strict=True):
                more = self._due(outputs_first(layer), mask, count, done)
                mask.logical_and_(more) if more is not None else None
        for layer, mask in zip(layers, masks, strict=True):
            outputs_first(layer).masked_fill_(~mask, 0)

    @abstractmethod
    def _due(self, weight: Tensor, mask: Tensor, count: int, done: int) -> Tensor | None:
        """What is left after so many updates, of a weight of which `count` are left now; None: as it is."""


@dataclass(frozen=True)
class Magnitude(_Cut):
    """Of each matrix the share of weights that are smallest by |w| becomes 0, for good.

    Of n weights int((1 - share) n) are left, one at least. Weights that are 0 already are the first to go.

    Args:
        cuts: when.
        weights: the share that goes.
    """

    weights: float = 0.5

    def _due(self, weight: Tensor, mask: Tensor, count: int, done: int) -> Tensor | None:
        keep = 1 - self.cuts.share(done, self.weights)
        if count <= max(1, int(round(keep, WHOLE) * mask.numel())):
            return None
        return movement_mask(weight.abs().masked_fill(~mask, -1), keep)

    def facts(self) -> dict[str, Any]:
        """Which share, and when, in updates."""
        return {"prune": {"weights": self.weights, "by": "magnitude", **asdict(self.cuts)}}


@dataclass(frozen=True)
class Pairs(_Cut):
    """Of four consecutive inputs of each output the two smallest |w| become 0, for good: 2:4, all at `cuts.begin`."""

    def _due(self, weight: Tensor, mask: Tensor, count: int, done: int) -> Tensor | None:
        if 2 * count <= mask.numel():
            return None
        return two_of_four(weight.abs().masked_fill(~mask, -1))

    def facts(self) -> dict[str, Any]:
        """When, in updates."""
        return {"prune": {"weights": "2:4", "by": "magnitude", **asdict(self.cuts)}}


@dataclass(frozen=True)
class Zeros(_Cut):
    """What was pruned before the training began stays so: weights of some layers that are 0 then.

    Args:
        cuts: at once.
        names: of the layers.
    """

    names: tuple[str, ...] = field(default=())

    def chosen(self, model: PreTrainedModel) -> dict[str, nn.Module]:
        """The layers of these names."""
        return {name: layer for name, layer in layers_of(model).items() if name in self.names}

    def apply(self, model: PreTrainedModel) -> None:
        """Puts masks into the layers that hold what is not 0."""
        super().apply(model)
        for layer in self.chosen(model).values():
            map_of(layer, Kept).mask.logical_and_(outputs_first(layer) != 0)

    def _due(self, weight: Tensor, mask: Tensor, count: int, done: int) -> Tensor | None:
        return None

    def facts(self) -> dict[str, Any]:
        """How many layers."""
        return {"pruned_before": {"layers": len(self.names)}}

    def said(self) -> str:
        """That zeros stay."""
        return f"was pruned before: the weights of {len(self.names)} layers that are 0 stay 0"


@dataclass(frozen=True)
class Movement(Change):
    """Of each matrix the weights are used whose learned scores are largest; the share of the others grows by the schedule.

    A weight that is not used may return as long as the student trains; in the export what is not used is 0, and scores are gone.

    Args:
        weights: the share that is not used in the end.
        cuts: when.
        rate: constant learning rate of the scores, which have no weight decay and are not clipped.
    """

    weights: float
    cuts: Cuts
    rate: float = 1e-2

    def apply(self, model: PreTrainedModel) -> None:
        """Puts scores and masks into the layers."""
        for layer in layers_of(model).values():
            derived.derive(layer, Moved(outputs_first(layer)))

    def rates(self, model: PreTrainedModel) -> list[OwnRate]:
        """The scores."""
        scores = [map_of(layer, Moved).scores for layer in layers_of(model).values()]
        return [OwnRate(scores, _constant(self.rate))]

    def follow(self, model: PreTrainedModel, step: int) -> None:
        """The scores choose anew."""
        keep = 1 - self.cuts.share(step + 1, self.weights)
        for layer in layers_of(model).values():
            moved = map_of(layer, Moved)
            moved.mask.copy_(movement_mask(moved.scores, keep))

    def ready(self, step: int) -> bool:
        """Whether the whole share is cut."""
        return step >= self.cuts.end

    def outline(self, model: PreTrainedModel, small: Compressed) -> None:
        """The layers that have zeros."""
        small.pruned.extend(name for name in layers_of(model) if name not in small.pruned)

    def fold(self, model: PreTrainedModel, small: Compressed) -> PreTrainedModel:
        """Layers become plain ones; what is not used is 0."""
        self.outline(model, small)
        derived.settle(model)
        return model

    def facts(self) -> dict[str, Any]:
        """Which share, and when, in updates."""
        return {"prune": {"weights": self.weights, "by": "movement", "rate": self.rate, **asdict(self.cuts)}}


def _constant(value: float) -> Callable[[int], float]:
    return lambda step: value
