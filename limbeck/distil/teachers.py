"""Who teaches: fixed models, with or without dropout, ensembles of them, and averages of a student."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from limbeck.batch import Batch
from limbeck.distil.actors import START, Actor, Moment
from limbeck.distil.learner import Learner, take, weights
from limbeck.losses.sparse import dense
from limbeck.losses.tensors import wide
from limbeck.models.changes import Change, facts_of
from limbeck.models.fingerprint import digest
from limbeck.models.taps import Readout, Recording, Tapped
from limbeck.system import seeds

Average = Literal["logits", "probabilities", "log_probabilities"]


class Frozen(Actor):
    """A model that only answers: in evaluation mode, without gradients, never changed."""

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        taps: list[str],
        columns: int | None = None,
        changes: Sequence[Change] = (),
    ) -> None:
        self.name, self.model, self.changes = name, model.eval().requires_grad_(False), changes
        self.tapped, self.width = Tapped(self.model, taps, columns), model.config.hidden_size

    @torch.no_grad()
    def forward(self, batch: Batch, moment: Moment = START, whole: bool = True) -> Readout:
        """Answers a batch; not `whole`, without logits."""
        return self.tapped(batch, whole)

    @torch.no_grad()
    def logits(self, features: Tensor, tap: str = "logits") -> Tensor:
        """Features of some tokens `[n, H]` -> logits `[n, V]`."""
        return self.tapped.head(features)

    def everywhere(self) -> Tapped:
        """Its model, tapped at every hidden state."""
        return self.tapped.everywhere()

    def teaching(self, seed: int) -> Actor:
        """Itself, or in training mode where a change, such as dropout, asks for it."""
        return Noisy(self, seed) if any(change.training for change in self.changes) else self

    def facts(self) -> dict[str, Any]:
        """Which weights these are, as the run holds them, and what was changed."""
        return {
            "revision": getattr(self.model.config, "_commit_hash", None),
            "sha256": digest(self.model.named_parameters()),
            "parameters": self.model.num_parameters(),
            **facts_of(self.changes),
        }


class Noisy(Actor):
    """A fixed teacher whose dropout is on while it teaches, as TinyBERT's code has it, which never calls `eval` on its teacher.

    Its weights never change. What it says is a function of the text and of (seed, step, micro-batch, process), so that a run that is
    gone on with, or trained alone, hears the same. Whoever measures asks the teacher itself, which has no dropout.

    Args:
        teacher: who answers in evaluation mode.
        seed: of the learners that it teaches.
    """

    def __init__(self, teacher: Frozen, seed: int) -> None:
        self.name, self.model, self.width = teacher.name, teacher.model, teacher.width
        self.seed, self._teacher = seed, teacher

    def forward(self, batch: Batch, moment: Moment = START, whole: bool = True) -> Readout:
        """Answers a batch, not `whole`, without logits; dropout is drawn from the stream of (seed, name, *moment)."""
        seed = seeds.derive_seed(self.seed, "teacher dropout", self.name, *moment)
        self.model.train()
        try:
            with seeds.seeded(seed, batch["input_ids"].device):
                return self._teacher.forward(batch, whole=whole)
        finally:
            self.model.eval()

    def logits(self, features: Tensor, tap: str = "logits") -> Tensor:
        """Features of some tokens `[n, H]` -> logits `[n, V]`."""
        return self._teacher.logits(features)

    def facts(self) -> dict[str, Any]:
        """Those of the teacher."""
        return self._teacher.facts()


class _SideBySide(Readout):
    """The readout of an ensemble: the inputs of all heads side by side, and nothing else."""

    def __getitem__(self, tap: str) -> Tensor:
        raise KeyError(f"an ensemble has no {tap} of its own; its members have")


class Ensemble(Actor):
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
        members: Sequence[Actor],
        average: Average,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.name, self._members = name, list(members)
        self.width = sum(member.width for member in members)
        self.average: Average = average
        given = list(weights or [1.0] * len(self._members))
        self.weights = [weight / sum(given) for weight in given]

    def forward(self, batch: Batch, moment: Moment = START, whole: bool = True) -> Readout:
        """Answers a batch: every member reads it, whole."""
        readouts = [member.forward(batch, moment) for member in self._members]
        features = torch.cat([readout.features for readout in readouts], dim=-1)
        return _SideBySide((), 0, features, batch["attention_mask"], self.logits, Recording({}))

    @torch.no_grad()
    def logits(self, features: Tensor, tap: str = "logits") -> Tensor:
        """Features of some tokens `[n, sum of H]` -> averaged logits `[n, V]`, fp32 or wider."""
        parts = features.split([member.width for member in self._members], dim=-1)
        logits = [wide(dense(member.logits(part))) for member, part in zip(self._members, parts, strict=True)]
        if self.average != "logits":
            logits = [z.log_softmax(-1) for z in logits]
        if self.average == "probabilities":
            shifted = [z + math.log(weight) for z, weight in zip(logits, self.weights, strict=True)]
            return torch.logsumexp(torch.stack(shifted), dim=0)
        return torch.stack([weight * z for z, weight in zip(logits, self.weights, strict=True)]).sum(0)

    def members(self) -> Sequence[Actor]:
        """Those whose predictions it averages."""
        return self._members

    def over(self, make: Callable[[Any], Actor]) -> Actor:
        """An ensemble of what `make` makes of its members; itself where that is they themselves."""
        made = [make(member) for member in self._members]
        same = all(one is other for one, other in zip(made, self._members, strict=True))
        return self if same else Ensemble(self.name, made, self.average, self.weights)

    def teaching(self, seed: int) -> Actor:
        """The same of its members as they teach."""
        return self.over(lambda member: member.teaching(seed))


class Ema(Actor):
    """The exponential moving average of a learner's weights: a teacher that follows its pupil.

    After each update a <- decay a + (1 - decay) w, from a = w at the beginning; buffers are copied. It answers in evaluation
    mode, without gradients.

    Args:
        name: what lessons call it.
        learner: whose weights are averaged.
        taps: what it is asked for.
        decay: 0 to below 1.
    """

    def __init__(self, name: str, learner: Learner, taps: list[str], decay: float) -> None:
        self.name, self.learner, self.decay = name, learner, decay
        self._answers = Frozen(name, copy.deepcopy(learner.model), taps, learner.tapped.columns)
        self.model, self.width = self._answers.model, self._answers.width

    def forward(self, batch: Batch, moment: Moment = START, whole: bool = True) -> Readout:
        """Answers a batch; not `whole`, without logits."""
        return self._answers.forward(batch, whole=whole)

    def logits(self, features: Tensor, tap: str = "logits") -> Tensor:
        """Features of some tokens `[n, H]` -> logits `[n, V]`."""
        return self._answers.logits(features)

    @torch.no_grad()
    def advance(self, updated: Collection[str]) -> None:
        """After an update of the cast: follows its learner, if that moved."""
        if self.learner.name not in updated:
            return
        for mine, theirs in zip(self.model.parameters(), self.learner.model.parameters(), strict=True):
            mine.lerp_(theirs, 1 - self.decay)
        for mine, theirs in zip(self.model.buffers(), self.learner.model.buffers(), strict=True):
            mine.copy_(theirs)

    def state(self) -> dict[str, Tensor]:
        """Its weights."""
        return weights(self.model)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes its weights back, in place."""
        take(self.state(), tensors)
