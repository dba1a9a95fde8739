"""An ensemble: several fixed teachers that speak with one voice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from limbeck.batch import Batch
from limbeck.distil.learner import Cached, Frozen
from limbeck.distil.noisy import Noisy
from limbeck.losses.tensors import wide

Average = Literal["logits", "probabilities", "log_probabilities"]


class Voices(Mapping[str, Tensor]):
    """The readout of an ensemble: the inputs of all heads side by side, and nothing else."""

    def __init__(self, features: Tensor) -> None:
        self.features = features

    def inputs(self, tap: str) -> Tensor:
        """What its voice, behind `logits`, is made of."""
        return self.features

    def __getitem__(self, tap: str) -> Tensor:
        raise KeyError(f"an ensemble has no {tap} of its own; its members have")

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class Ensemble:
    """Teachers whose predictions are averaged (Bucila et al. 2006; Hinton et al. 2015, arXiv 1503.02531).

    With weights w that add up to 1, its logits are

    - `logits`: sum_i w_i z_i;
    - `probabilities`: log sum_i w_i softmax(z_i), the arithmetic mean: as unsure as its members disagree;
    - `log_probabilities`: sum_i w_i log softmax(z_i), the geometric mean: the same predictions as `logits`.

    A temperature of a loss acts on these.

    Args:
        name: what lessons call it.
        members: models over one vocabulary.
        average: what is averaged.
        weights: one for each member, in any scale; equal when left out.
    """

    def __init__(
        self,
        name: str,
        members: Sequence[Frozen | Cached | Noisy],
        average: Average,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.name, self.members = name, list(members)
        self.average: Average = average
        given = list(weights or [1.0] * len(self.members))
        self.weights = [weight / sum(given) for weight in given]

    def read(self, batch: Batch, *moment: int, whole: bool = True) -> Voices:
        """Answers a batch: every member reads it, whole; those with dropout, at a moment."""
        read = [it.read(batch, *moment) if isinstance(it, Noisy) else it.read(batch) for it in self.members]
        return Voices(torch.cat([readout.features for readout in read], dim=-1))

    @torch.no_grad()
    def speak(self, features: Tensor) -> Tensor:
        """Features of some tokens `[n, sum of H]` -> averaged logits `[n, V]`, fp32 or wider."""
        parts = features.split([member.width for member in self.members], dim=-1)
        logits = [wide(member.speak(part)) for member, part in zip(self.members, parts, strict=True)]
        if self.average != "logits":
            logits = [z.log_softmax(-1) for z in logits]
        if self.average == "probabilities":
            shifted = [z + math.log(weight) for z, weight in zip(logits, self.weights, strict=True)]
            return torch.logsumexp(torch.stack(shifted), dim=0)
        return torch.stack([weight * z for z, weight in zip(logits, self.weights, strict=True)]).sum(0)

    def advance(self) -> None:
        """After an update of the cast: nothing."""
