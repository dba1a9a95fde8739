"""Lessons: who learns from whom, by which weighted terms. Plain values."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from limbeck.losses import Loss
from limbeck.reduce import Batch, Counts, share_of_mean
from limbeck.schedules import Schedule
from limbeck.taps import Readout


@dataclass(frozen=True)
class Pair:
    """The two taps that a term compares, and the bridge between their widths."""

    student: str
    teacher: str
    bridge: str | None = None


@dataclass(frozen=True)
class Term:
    """A loss, the taps that it compares, a weight that follows a schedule."""

    name: str
    loss: Loss
    pairs: tuple[Pair, ...]
    weight: Schedule
    needs: tuple[str, ...] = ("teacher",)  # "teacher", "labels"

    @property
    def on_logits(self) -> bool:
        """Whether the term is evaluated chunk by chunk of selected tokens."""
        return self.pairs[0].student == "logits"

    def of_logits(self, student: Tensor, teacher: Tensor | None, labels: Tensor, counts: Counts) -> Tensor:
        """What a chunk of selected tokens adds to the term's mean: logits `[n, V]`, labels `[n]` -> `[]`."""
        given: dict[str, Tensor | None] = {"student": student}
        if "teacher" in self.needs:
            given["teacher"] = teacher
        if "labels" not in self.needs:
            return share_of_mean(self.loss(**given), None, counts.selected)
        return share_of_mean(self.loss(**given, labels=labels), labels != -100, counts.labels)

    def of_readouts(
        self, student: Readout, teacher: Readout, bridges: nn.ModuleDict, batch: Batch, counts: Counts
    ) -> Tensor:
        """What a micro-batch adds to the term: the sum over its pairs of the mean over attended tokens."""
        kept = batch["attention_mask"].bool()
        values = [share_of_mean(self._of(pair, student, teacher, bridges), kept, counts.tokens) for pair in self.pairs]
        return sum(values[1:], start=values[0])

    def _of(self, pair: Pair, student: Readout, teacher: Readout, bridges: nn.ModuleDict) -> Tensor:
        mine, theirs = student[pair.student], teacher[pair.teacher]
        if pair.student.startswith("scores"):
            seen = _both(student.visible(pair.student), teacher.visible(pair.teacher))
            return self.loss(student=mine, teacher=theirs, mask=seen)
        return self.loss(student=bridges[pair.bridge](mine) if pair.bridge else mine, teacher=theirs)


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The pairs of positions that are visible on both sides; None where all are."""
    if a is None or b is None:
        return b if a is None else a
    return a & b


@dataclass(frozen=True)
class Lesson:
    """A directed edge of the cast: `student` learns from `teacher` (or from labels alone) by `terms`."""

    student: str
    teacher: str | None
    terms: tuple[Term, ...]

    @property
    def logit_terms(self) -> list[Term]:
        """The terms that are evaluated chunk by chunk."""
        return [term for term in self.terms if term.on_logits]

    @property
    def other_terms(self) -> list[Term]:
        """The terms that compare readouts."""
        return [term for term in self.terms if not term.on_logits]
