"""A fixed teacher whose answers lie on the disk."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from limbeck.batch import Batch
from limbeck.distil.actors import START, Actor, Moment
from limbeck.distil.teachers import Frozen
from limbeck.losses.sparse import TopK, dense
from limbeck.models.readouts import Recall
from limbeck.models.taps import Readout


class Answers(NamedTuple):
    """What is known of a teacher's answers to a batch without asking it."""

    features: Tensor  # of selected tokens or rows, zeros elsewhere: `[B, T, F]`, of a task `[B, F]`
    states: dict[str, Tensor]  # as `recall.kept` names them, `[B, T, D]`


class AnswerSource(Protocol):
    """Where answers are kept."""

    @property
    def width(self) -> int:
        """F of the features."""
        ...

    def answers(self, batch: Batch) -> Answers:
        """What was said to the rows of a batch."""
        ...

    def predictions(self, features: Tensor) -> Tensor | TopK:
        """Features `[n, F]` -> logits `[n, V]`, or the k most probable tokens."""
        ...


class Cached(Actor):
    """A fixed teacher whose answers are read from where they are kept; it does not run.

    Args:
        teacher: whose answers they are, asked once which positions see each other.
        kept: its answers.
        length: the most tokens of a row.
    """

    def __init__(self, teacher: Frozen, kept: AnswerSource, length: int) -> None:
        self.name, self.model, self.width = teacher.name, teacher.model, kept.width
        self._teacher, self._kept = teacher, kept
        self._recall = Recall(teacher.tapped, length)

    def forward(self, batch: Batch, moment: Moment = START, whole: bool = True) -> Readout:
        """Recalls the answers to a batch; raises UserError for text that the teacher has not read."""
        found = self._kept.answers(batch)
        return self._recall.readout(found.states, batch["attention_mask"], found.features, self._logits)

    def _logits(self, features: Tensor) -> Tensor:
        return dense(self.logits(features))

    def logits(self, features: Tensor, tap: str = "logits") -> Tensor | TopK:
        """Features of some tokens `[n, F]` -> logits `[n, V]`."""
        return self._kept.predictions(features)

    def facts(self) -> dict[str, Any]:
        """Those of the teacher whose answers they are."""
        return self._teacher.facts()
