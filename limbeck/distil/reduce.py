"""The only masking and averaging: from one value per token to the number that a step adds up.

Denominators are counts over the *whole* optimizer step, all micro-batches and all processes, known before the forward
pass. What a micro-batch adds is `sum of its kept values / count`, so the sum over micro-batches is the exact mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from limbeck.batch import IGNORED, TEXT, Batch, Views


@dataclass(frozen=True)
class Counts:
    """How many there are in one optimizer step."""

    tokens: int  # attended tokens
    selected: int  # tokens whose logits a logit loss looks at
    labels: int  # tokens that carry a label
    rows: int = 0  # rows with an attended token
    batches: int = 0  # micro-batches, of all processes, with an attended token
    selecting: int = 0  # those with a selected token
    padded: int = 0  # tokens, padding included
    pairs: int = 0  # positions that attention compares: of a row of T tokens, padding included, T T

    @staticmethod
    def of(batches: Iterable[Batch]) -> Counts:
        """The counts of some micro-batches."""
        tokens = selected = labels = rows = micro = selecting = padded = pairs = 0
        for batch in batches:
            lengths = batch["attention_mask"].sum(1)
            padded += batch["attention_mask"].numel()
            pairs += batch["attention_mask"].numel() * batch["attention_mask"].shape[1]
            tokens += int(lengths.sum())
            selected += int(batch["select"].sum())
            labels += int((batch["labels"] != IGNORED).sum())
            rows += int((lengths > 0).sum())
            micro += int((lengths > 0).any())
            selecting += int(batch["select"].any())
        return Counts(tokens, selected, labels, rows, micro, selecting, padded, pairs)


def counts_of(batches: Sequence[Views]) -> dict[str, Counts]:
    """The counts of each view of some micro-batches."""
    return {view: Counts.of(views[view] for views in batches) for view in (batches[0] if batches else ())}


T = TypeVar("T")


@dataclass
class Share:
    """A process's micro-batches of a step, and the counts of all processes."""

    batches: Sequence[Views]
    counts: Mapping[str, Counts]

    @staticmethod
    def of(batches: Sequence[Batch], view: str = TEXT) -> Share:
        """Micro-batches of one view, in one process."""
        views = [{view: batch} for batch in batches]
        return Share(views, counts_of(views))

    def fit(self, work: Callable[[Sequence[Views], Mapping[str, Counts]], T]) -> T:
        """What `work` makes of it. A loop's share tries again in smaller parts where memory is short."""
        return work(self.batches, self.counts)


def share_of_mean(values: Tensor, mask: Tensor | None, count: int) -> Tensor:
    """What these values add to a mean over `count` kept ones: sum(values[mask]) / count, exactly 0 for an empty mask.

    >>> share_of_mean(torch.tensor([1.0, 5.0, float("nan")]), torch.tensor([True, True, False]), 4)
    tensor(1.5000)
    """
    values = values if values.dtype == torch.float64 else values.float()
    kept = values if mask is None else torch.where(mask, values, 0)
    return kept.sum() / max(count, 1)
