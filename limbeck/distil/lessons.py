"""Lessons: who learns from whom, by which weighted terms. Plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limbeck.batch import IGNORED, TEXT, Batch
from limbeck.distil.projections import Make
from limbeck.distil.reduce import Counts, share_of_mean
from limbeck.distil.schedules import Schedule, constant
from limbeck.losses import Loss
from limbeck.losses.blockwise import blockwise
from limbeck.losses.facts import common_loss_of, facts_of
from limbeck.losses.sparse import TopK
from limbeck.models.taps import Readout

LARGE = 1 << 25  # numbers of an attention map beyond which it is made in blocks of queries: fp32, 128 MiB

Taps = str | tuple[str, ...]
Seen = Tensor | tuple["Seen", ...]


@dataclass(frozen=True)
class Pair:
    """The taps that a term compares at one place, and the modules in between, by their names among the term's modules."""

    student: Taps  # several where the loss takes tuples
    teacher: Taps
    projection: str | tuple[str, ...] | None = None  # what the student's tensor goes through; one for each tap
    teacher_module: str | None = None  # what the teacher's tensor goes through
    memory: str | None = None  # gives each side what it compares itself with


@dataclass(frozen=True)
class Term:
    """A loss, the taps that it compares, a weight that follows a schedule."""

    name: str
    loss: Loss
    pairs: tuple[Pair, ...]
    weight: Schedule
    needs: tuple[str, ...] = ("teacher", "mask")  # what the loss takes beside the student: teacher, labels, mask
    per: str = "token"  # what the loss gives one value for: token, row, batch
    modules: Mapping[str, Make] = field(default_factory=dict)  # the modules that its pairs name
    teacher: str = "teacher"  # the role of who teaches it
    padding: bool = False  # padding counts: the loss is told of attention maps alone which keys are seen

    @property
    def on_logits(self) -> bool:
        """Whether the term is evaluated on selected tokens, chunk by chunk unless it needs the batch as a whole."""
        return is_logits(self.pairs[0].student)

    def taps(self, side: str) -> set[str]:
        """The taps that the term reads of the `student` or of the `teacher`."""
        return {tap for pair in self.pairs for tap in each(getattr(pair, side))}

    def of_logits(self, student: Tensor, teacher: Tensor | TopK | None, labels: Tensor, counts: Counts) -> Tensor:
        """What some selected tokens add to the term's mean: logits `[n, V]`, labels `[n]` -> `[]`."""
        given = {"student": student, "teacher": teacher, "labels": labels, "mask": None}
        others = {name: given[name] for name in self.needs}
        if self.per != "token":
            return share_of_mean(self.loss(student=student, **others), None, counts.selecting)
        values = blockwise(self.loss, student, others)
        if "labels" in self.needs:
            return share_of_mean(values, labels != IGNORED, counts.labels)
        return share_of_mean(values, None, counts.selected)

    def of_readouts(
        self, student: Readout, teacher: Readout, modules: nn.ModuleDict, batch: Batch, counts: Counts
    ) -> Tensor:
        """What a micro-batch adds to the term: the sum over its pairs of the mean over tokens, rows or batches."""
        attended = batch["attention_mask"].bool()
        kept = None if bool(attended.all()) else attended
        values = [_share(self._of(pair, student, teacher, modules, batch, kept), kept, counts) for pair in self.pairs]
        return sum(values[1:], start=values[0])

    def _of(
        self, pair: Pair, student: Readout, teacher: Readout, modules: nn.ModuleDict, batch: Batch, kept: Tensor | None
    ) -> Tensor:
        if facts_of(self.loss).by_query:
            return self._of_maps(pair, student, teacher, _mask(pair, student, teacher, kept))
        mine = _look(student, pair.student, pair.projection, modules)
        theirs = _look(teacher, pair.teacher, pair.teacher_module, modules, constant=True)
        if pair.memory:
            mine, theirs = modules[pair.memory](mine, theirs, batch["blocks"])
        mask = _mask(pair, student, teacher, None if self.padding else kept)
        given = {"student": mine, "teacher": theirs, "labels": batch.get("labels"), "mask": mask}
        return self.loss(**{name: given[name] for name in ("student", *self.needs)})

    def _of_maps(self, pair: Pair, student: Readout, teacher: Readout, mask: Tensor | None) -> Tensor:
        """A loss on attention maps, `[B, T]`; large ones are made for some queries at a time, and again for the gradient."""
        tap, other = str(pair.student), str(pair.teacher)

        def of(some: slice) -> Tensor:
            seen = mask if mask is None or mask.shape[2] == 1 else mask[:, :, some]
            theirs = teacher.queries(other, some).detach()
            return self.loss(student=student.queries(tap, some), teacher=theirs, mask=seen)

        numbers, length = student.numbers(tap)
        step = max(1, LARGE * length // numbers)
        if step >= length:
            return of(slice(None))
        parts = [slice(start, start + step) for start in range(0, length, step)]
        return torch.cat([checkpoint(of, it, use_reentrant=False, preserve_rng_state=False) for it in parts], dim=1)


def each(taps: Taps) -> tuple[str, ...]:
    """One tap or several, as several."""
    return (taps,) if isinstance(taps, str) else taps


def is_logits(tap: Taps) -> bool:
    """Whether a tap holds logits, which a head gives: `logits`, or `exit.3` of an early exit."""
    return isinstance(tap, str) and tap.startswith(("logits", "exit."))


def _look(readout: Readout, taps: Taps, through: Taps | None, modules: nn.ModuleDict, constant: bool = False) -> Seen:
    """What stands at one tap, behind its module; a tuple for several. No gradient flows into a `constant`."""
    if isinstance(taps, str):
        assert through is None or isinstance(through, str)
        seen = readout[taps].detach() if constant else readout[taps]
        return modules[through](seen) if through else seen
    names = through if isinstance(through, tuple) else (through,) * len(taps)
    return tuple(_look(readout, tap, name, modules, constant) for tap, name in zip(taps, names, strict=True))


def _mask(pair: Pair, student: Readout, teacher: Readout, kept: Tensor | None) -> Tensor | None:
    """What counts: pairs of positions for attention maps, rows for pooled states, tokens otherwise; None for all."""
    mine, theirs = each(pair.student)[0], each(pair.teacher)[0]
    if mine.startswith(("scores", "probs")):
        queries = None if kept is None else kept[:, None, :, None]
        return _both(_both(student.visible(mine), teacher.visible(theirs)), queries)
    return kept.any(1) if kept is not None and mine == "pooled" else kept


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Where both are True; None where all are."""
    if a is None or b is None:
        return b if a is None else a
    return a & b


def _share(values: Tensor, kept: Tensor | None, counts: Counts) -> Tensor:
    """What unreduced values of a micro-batch add to their mean over the step."""
    if values.dim() == 2:
        return share_of_mean(values, kept, counts.tokens)
    if values.dim() == 1:
        return share_of_mean(values, None if kept is None else kept.any(1), counts.rows)
    return share_of_mean(values, None, counts.batches)


def common_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The logit loss that all settings share, of these logits."""
    return common_loss_of(student.shape[-1])(student=student, teacher=teacher)


COMMON = Term("logit", common_loss, (Pair("logits", "logits"),), constant(1.0), needs=("teacher",))


@dataclass(frozen=True)
class Lesson:
    """A directed edge of the cast: `student` learns from `teacher` (or from labels alone) by `terms`."""

    student: str
    teacher: str | None
    terms: tuple[Term, ...]
    noted: tuple[Term, ...] = (
        COMMON,
    )  # on logits: evaluated beside other logit terms where there is a teacher, not learnt
    views: tuple[str, str] = (TEXT, TEXT)  # what the student reads and what the teacher reads, row for row

    @property
    def logit_terms(self) -> list[Term]:
        """The terms that are evaluated on the logits of selected tokens."""
        return [term for term in self.terms if term.on_logits]

    @property
    def other_terms(self) -> list[Term]:
        """The terms that compare readouts."""
        return [term for term in self.terms if not term.on_logits]


class LogitSource(NamedTuple):
    """A head whose logits some terms compare."""

    actor: str
    view: str  # that its actor reads
    tap: str  # behind which it stands


def learning(lesson: Lesson) -> list[LogitSource]:
    """The heads of its student that a lesson on logits trains."""
    return [
        LogitSource(lesson.student, lesson.views[0], tap)
        for term in lesson.logit_terms
        for tap in sorted(term.taps("student"))
    ]


def logit_sources(lessons: Sequence[Lesson]) -> list[LogitSource]:
    """Every source of the logits that some lessons compare, once."""
    found: dict[LogitSource, None] = {}
    for lesson in lessons:
        found |= dict.fromkeys(learning(lesson))
        if lesson.teacher:
            taught = [term for term in lesson.logit_terms if "teacher" in term.needs]
            found |= dict.fromkeys(
                _logit_source(lesson, 1, tap) for term in taught for tap in sorted(term.taps("teacher"))
            )
            for term in lesson.noted:
                found |= dict.fromkeys(_logit_source(lesson, 0, tap) for tap in term.taps("student"))
                found |= dict.fromkeys(_logit_source(lesson, 1, tap) for tap in term.taps("teacher"))
    return list(found)


def _logit_source(lesson: Lesson, side: int, tap: str) -> LogitSource:
    return LogitSource((lesson.student, lesson.teacher or "")[side], lesson.views[side], tap)


def logits_of(
    lesson: Lesson, pair: Pair, logits: Mapping[LogitSource, Tensor | TopK]
) -> tuple[Tensor, Tensor | TopK | None]:
    """What student and teacher say at a pair of taps; the teacher is a constant, None where nobody teaches."""
    mine, theirs = (
        logits[_logit_source(lesson, 0, str(pair.student))],
        logits.get(_logit_source(lesson, 1, str(pair.teacher))),
    )
    assert isinstance(mine, Tensor), "a student gives logits"
    return mine, None if theirs is None else theirs.detach()


def portions(lessons: Sequence[Lesson]) -> list[tuple[list[Lesson], bool]]:
    """Lessons on logits that are evaluated together: of the same views, first by chunks, then what needs the batch whole."""
    found = []
    for views in dict.fromkeys(lesson.views for lesson in lessons):
        here = [lesson for lesson in lessons if lesson.views == views]
        found += [(some, whole) for whole in (False, True) if (some := _portion(here, whole))]
    return found


def _portion(lessons: Sequence[Lesson], whole: bool) -> list[Lesson]:
    """The logit terms that need all selected tokens of a micro-batch at once, or those that do not."""
    found = []
    for lesson in lessons:
        terms = {
            here: tuple(term for term in lesson.logit_terms if (term.per == "batch") == here) for here in (True, False)
        }
        if terms[whole]:
            noted = () if whole and terms[False] else lesson.noted  # once
            found.append(replace(lesson, terms=terms[whole], noted=noted))
    return found
