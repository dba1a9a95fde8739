"""Sensitivity to quantisation: how far a model's predictions move when one layer alone holds weights of few bits."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from limbeck.batch import Batch
from limbeck.losses import forward_kl, squared_error
from limbeck.models.changes import derived
from limbeck.models.changes.layers import matrices
from limbeck.models.changes.quantise import Quantise, fake_quantise
from limbeck.models.compressed import Grid
from limbeck.models.taps import Tapped
from limbeck.system.progress import Done

TIMES = 10  # the median of what a byte costs, above which a layer is better left alone
ROWS = 256  # tokens whose logits exist at a time


@dataclass(frozen=True)
class Sensitivity:
    """What one weight alone does when it is quantised.

    Attributes:
        names: the layers that use it; several where they are tied.
        change: KL(before || after) in nats a token, or a row of a task; of scores the mean square of what they moved.
        bytes: that are saved.
    """

    names: tuple[str, ...]
    change: float
    bytes: int

    @property
    def cost(self) -> float:
        """The change for each byte saved."""
        return self.change / self.bytes


@torch.no_grad()
def of_layers(tapped: Tapped, batches: Sequence[Batch], change: Quantise, done: Done) -> list[Sensitivity]:
    """Every weight that a quantisation touches, the one that moves predictions most first.

    One weight after another is rounded, W -> `fake_quantise(W, bits, group)`, the model answers the same rows, and the weight is put
    back. Measured is the mean over their selected tokens of KL(p || p'), in fp64, with p before and p' after; of a model that
    predicts scores the mean of (y - y')^2. Saved are the bytes of the weight less those of its numbers and of one fp32 scale for each row
    or group.

    Args:
        tapped: the model, in evaluation mode; it is left as it was.
        batches: rows, where the model is.
        change: whose layers, bits and groups; activations stay as they are.
        done: is told how many weights are measured, of how many.

    Raises:
        UserError: groups do not divide the inputs of a layer.
    """
    weights: dict[Tensor, list[str]] = {}
    grids = change.chosen(tapped.model)
    layers = matrices(tapped.model)
    for name in grids:
        weights.setdefault(layers[name].get_parameter("weight"), []).append(name)
    before = Tapped(copy.deepcopy(tapped.model), columns=tapped.columns)
    states = [_features(before, batch) for batch in batches]
    found = []
    for number, (weight, names) in enumerate(weights.items()):
        done(number, len(weights))
        kept, grid, turned = weight.clone(), grids[names[0]], isinstance(layers[names[0]], derived.Conv1D)
        outputs_first = kept.mT if turned else kept
        rounded = fake_quantise(outputs_first, grid.bits, grid.group)
        weight.copy_(rounded.mT if turned else rounded)
        try:
            moved = torch.cat(
                [it for pair in zip(states, batches, strict=True) for it in _moved(before, tapped, *pair)]
            )
        finally:
            weight.copy_(kept)
        found.append(Sensitivity(tuple(names), moved.mean().item(), _saved(outputs_first, grid)))
    return sorted(found, key=lambda it: -it.change)


def left_alone(found: Sequence[Sensitivity]) -> list[Sensitivity]:
    """Those whose change for each byte saved is more than `TIMES` the median: few bytes are lost when they stay as they are."""
    usual = median(it.cost for it in found)
    return [it for it in found if it.cost > TIMES * usual]


def _features(tapped: Tapped, batch: Batch) -> Tensor:
    """What the head takes of the selected tokens, or rows: `[n, H]`."""
    return tapped(batch).features[batch["select"]]


def _moved(before: Tapped, after: Tapped, states: Tensor, batch: Batch) -> Iterator[Tensor]:
    """How far the predictions of a batch moved, some tokens at a time: `[n]`."""
    for mine, theirs in zip(states.split(ROWS), _features(after, batch).split(ROWS), strict=True):
        old, new = before.head(mine).double(), after.head(theirs).double()
        yield (
            squared_error(student=new, labels=old[:, 0]) if old.shape[-1] == 1 else forward_kl(student=new, teacher=old)
        )


def _saved(weight: Tensor, grid: Grid) -> int:
    scales = weight.numel() // (grid.group or weight.shape[1])
    return weight.nbytes - (weight.numel() * grid.bits + 7) // 8 - 4 * scales
