"""The batches on which reasons are looked for, fixed for the whole run, and what of them is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from limbeck.batch import IGNORED, Batch, cut

PLACES = 8  # bins of the places in a block


@dataclass(frozen=True)
class Fixed:
    """A batch, and what of it is looked at: places in the flattened batch."""

    batch: Batch
    where: Tensor  # the selected tokens, or rows, that belong to a document: as in an evaluation
    labels: Tensor  # theirs
    states: Tensor  # the tokens whose states are compared

    def cut(self, parts: int) -> Iterator[Fixed]:
        """The same in up to `parts` runs of rows."""
        selected, attended = (self.batch[name] for name in ("select", "attention_mask"))
        first, one, other = 0, selected[0].numel(), attended[0].numel()  # places of a row
        for batch in cut(self.batch, parts):
            last = first + len(batch["select"])
            chosen = (self.where >= first * one) & (self.where < last * one)
            states = self.states[(self.states >= first * other) & (self.states < last * other)]
            yield Fixed(batch, self.where[chosen] - first * one, self.labels[chosen], states - first * other)
            first = last


def measured(batch: Batch) -> Tensor:
    """The tokens, or rows, that are measured: those that are selected and belong to a document."""
    return batch["select"] & (batch["documents"] >= 0)


def of_documents(batch: Batch) -> Tensor:
    """Where attended tokens are that belong to a document: bool `[B, T]`; of a row of a task all attended ones."""
    mask, documents = batch["attention_mask"].bool(), batch["documents"]
    return mask & (documents >= 0) if documents.dim() == 2 else mask


def spread(masks: Sequence[Tensor], most: int) -> list[Tensor]:
    """For each mask the places of its part of at most `most` kept tokens, spread evenly over all masks."""
    places = [mask.flatten().nonzero().squeeze(1) for mask in masks]
    total = sum(map(len, places))
    count = min(most, total)
    chosen = torch.arange(count) * total // max(count, 1)
    begins = np.cumsum([0, *map(len, places)]).tolist()
    parts = [chosen[(chosen >= begin) & (chosen < end)] - begin for begin, end in pairwise(begins)]
    return [here[part.to(here.device)] for here, part in zip(places, parts, strict=True)]


def place(fixed: Fixed) -> np.ndarray:
    """The bin of the place in the block of each selected token."""
    length = fixed.batch["input_ids"].shape[1]
    return fixed.where.cpu().numpy() % length * PLACES // length


def predicted(fixed: Fixed) -> np.ndarray:
    """The token that is predicted: the label, or what stands there."""
    there = fixed.batch["input_ids"].flatten()[fixed.where]
    return torch.where(fixed.labels != IGNORED, fixed.labels, there).cpu().numpy()
