"""Evaluation: the same questions to every student, whatever it trained on, on blocks that no seed changes.

Logit loss (forward KL at temperature 1), top-1 agreement with the teacher, label loss and accuracy, each as a sum for
every document (special tokens, which belong to none, are left out); the gradient norm by layer of the common logit loss.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.batch import IGNORED, TEXT, Batch, cut
from limbeck.distil.actors import Actor
from limbeck.distil.learner import Learner, gradients
from limbeck.distil.lessons import COMMON, Lesson, common_loss
from limbeck.distil.reduce import Counts
from limbeck.distil.still import Still
from limbeck.losses import cross_entropy, squared_error
from limbeck.losses.sparse import dense
from limbeck.measure import metrics
from limbeck.measure.fixed import measured
from limbeck.measure.shares import joined, own
from limbeck.system.out_of_memory import Parts, say
from limbeck.system.processes import World
from limbeck.system.progress import Done, uncounted

Teacher = Actor | None
TEACHER = "teacher"  # beside the taps of a learner
SUMS = ("tokens", "logit_loss", "agreement", "labels", "label_loss", "label_accuracy")
OF_LABELS = ("label_loss", "label_accuracy")


Answered = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # of some rows: the student's logits, labels, the teacher's


@dataclass
class Sums:
    """Sums over the selected tokens of each document: document number -> one number for each of `SUMS`."""

    of: dict[int, np.ndarray] = field(default_factory=lambda: defaultdict(lambda: np.zeros(len(SUMS))))
    answers: list[Answered] = field(default_factory=list)

    def add(self, documents: np.ndarray, values: np.ndarray) -> None:
        """Adds the columns of `values [len(SUMS), n]` to the documents `[n]`."""
        for document in np.unique(documents):
            self.of[int(document)] += values[:, documents == document].sum(1)

    def mean(self, what: str) -> float | None:
        """The mean over tokens (or over labelled tokens), None where there are none."""
        total = sum(self.of.values(), np.zeros(len(SUMS)))
        count = total[SUMS.index("labels" if what.startswith("label_") else "tokens")]
        value = total[SUMS.index(what)]
        return float(value / count) if count and np.isfinite(value) else None

    def means(self, taught: bool) -> dict[str, float | None]:
        """The means that an evaluation tells; those of the teacher only where there is one."""
        of_teacher = {name: self.mean(name) if taught else None for name in ("logit_loss", "agreement")}
        return {**of_teacher, **{name: self.mean(name) for name in OF_LABELS}}

    def metrics(self, task: str) -> dict[str, Any]:
        """The metrics of a task, of the student and of its teacher."""
        mine, labels, theirs = zip(*self.answers, strict=True)
        found: dict[str, Any] = {"metrics": metrics.scores(task, np.concatenate(mine), np.concatenate(labels))}
        taught = theirs[0] is not None
        teachers = metrics.scores(task, np.concatenate(theirs), np.concatenate(labels)) if taught else None
        return found | {"teacher_metrics": teachers}

    @property
    def tokens(self) -> int:
        """The number of selected tokens."""
        return round(sum(row[0] for row in self.of.values()))


def document_rows(sums: dict[int, np.ndarray]) -> list[dict[str, float]]:
    """One row for each document, in the order of their numbers: `document`, `tokens`, `logit_loss_sum`, ..."""
    names = [SUMS[0], *(f"{name}_sum" for name in SUMS[1:])]
    return [{"document": number, **dict(zip(names, row.tolist(), strict=True))} for number, row in sorted(sums.items())]


class Evaluation:
    """What to ask, fixed for the whole run.

    Args:
        teachers: learner -> whose predictions are its measure, None where there is no teacher.
        batches: split (`train`, `test`) -> its batches.
        chunk: tokens whose logits exist at a time.
        autocast: dtype of matrix products.
        world: the processes, each of which reads a share of every batch; all are told the same.
        task: classification or regression, whose metrics are told too; None for running text.
        tell: takes a line where memory is short, and batches are read in smaller parts from then on.
    """

    def __init__(
        self,
        teachers: Mapping[str, Teacher],
        batches: dict[str, Sequence[Batch]],
        *,
        chunk: int,
        autocast: torch.dtype | None = None,
        world: World = World(),  # noqa: B008 (a frozen value)
        task: str | None = None,
        tell: Callable[[str], None] = say,
    ) -> None:
        self.task = task
        self.teachers, self.batches, self.chunk, self.autocast = teachers, batches, chunk, autocast
        self.world = world
        rows = max(len(batch["input_ids"]) for several in batches.values() for batch in several)
        self.parts = Parts("evaluation", rows, tell)

    def __call__(self, learners: Sequence[Learner], done: Done = uncounted) -> dict[tuple[str, str], dict[str, Any]]:
        """(learner, split) -> its means, its `documents` and its `logit_grad_norm_layers`.

        Every learner reads all blocks, or rows, and those of one batch of a split twice; `done` receives how many were read.
        """
        found, read = {}, self._counter(len(learners), done)
        with evaluating(learners):
            for split, batches in self.batches.items():
                sums = {}
                for teacher in dict.fromkeys(self.teachers[learner.name] for learner in learners):
                    group = [learner for learner in learners if self.teachers[learner.name] is teacher]
                    here = self.parts.fitting(partial(self._sums, teacher, group, batches, read))
                    sums |= self._together(here, batches)
                for learner in learners:
                    mine, taught = sums[learner.name, "logits"], self.teachers[learner.name] is not None
                    theirs = sums[learner.name, TEACHER]
                    found[learner.name, split] = {
                        **mine.means(taught),
                        **{f"teacher_{name}": theirs.mean(name) for name in OF_LABELS},
                        **(mine.metrics(self.task) if self.task else {}),
                        "exits": {tap: self._of_exit(sums[learner.name, tap], taught) for tap in learner.exits},
                        "tokens": mine.tokens,
                        "logit_grad_norm_layers": self.parts.fitting(
                            partial(self._gradient_norms, learner, batches[0])
                        ),
                        "documents": mine.of,
                    }
                    read(sum(len(part["select"]) for part in self._own(batches[:1])))
        return found

    def _of_exit(self, sums: Sums, taught: bool) -> dict[str, Any]:
        return {**sums.means(taught), **({"metrics": sums.metrics(self.task)["metrics"]} if self.task else {})}

    def _counter(self, learners: int, done: Done) -> Callable[[int], None]:
        """Tells `done` of so many rows more, of all that the learners read."""
        sizes = [[len(batch["select"]) for batch in self._own(batches)] for batches in self.batches.values()]
        count, of = 0, learners * sum(sum(rows) + (rows[0] if rows else 0) for rows in sizes)

        def read(rows: int) -> None:
            nonlocal count
            count = min(count + rows, of)  # more are read where memory was short
            done(count, of)

        read(0)
        return read

    @torch.no_grad()
    def _sums(
        self, teacher: Teacher, learners: Sequence[Learner], batches: Sequence[Batch], read: Callable[[int], None]
    ) -> dict[tuple[str, str], Sums]:
        """Every model reads every batch once; the teacher's logits of a chunk serve all learners and their exits.

        Under the tap `TEACHER` stands how the teacher itself does on the labels, nothing where there is none.
        """
        heads = {learner.name: ("logits", *learner.exits) for learner in learners}
        sums = {(name, tap): Sums() for name, taps in heads.items() for tap in taps}
        theirs = Sums()
        for batch in self._cut(batches):
            device = batch["input_ids"].device
            where = measured(batch).flatten().nonzero().squeeze(1)
            labels = batch["labels"].flatten()[where]
            documents = batch["documents"].flatten()[where].cpu().numpy()
            with torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None):
                said = teacher.forward(batch).features.flatten(0, -2)[where] if teacher else None
                inputs = {
                    (learner, tap): readout.inputs(tap).flatten(0, -2)[where]
                    for learner in learners
                    for readout in [learner.forward(batch)]
                    for tap in heads[learner.name]
                }
                for start in range(0, len(where), self.chunk):
                    rows = slice(start, start + self.chunk)
                    target = dense(teacher.logits(said[rows])) if teacher and said is not None else None
                    if target is not None:
                        theirs.add(documents[rows], _values(target, None, labels[rows]))
                    for (learner, tap), features in inputs.items():
                        mine, here = learner.logits(features[rows], tap), sums[learner.name, tap]
                        here.add(documents[rows], _values(mine, target, labels[rows]))
                        if self.task:
                            here.answers.append(
                                (_array(mine), _array(labels[rows]), None if target is None else _array(target))
                            )
            read(len(learners) * len(batch["select"]))
        return sums | {(learner.name, TEACHER): theirs for learner in learners}

    def _own(self, batches: Sequence[Batch]) -> list[Batch]:
        """This process's rows of some batches."""
        return [mine for batch in batches if (mine := own(batch, self.world)) is not None]

    def _cut(self, batches: Sequence[Batch]) -> list[Batch]:
        """The same rows, as many at a time as memory holds."""
        return [part for batch in self._own(batches) for part in cut(batch, self.parts.count)]

    def _together(self, sums: dict[tuple[str, str], Sums], batches: Sequence[Batch]) -> dict[tuple[str, str], Sums]:
        """What all processes have found."""
        if self.world.size == 1:
            return sums
        every = torch.cat([batch["documents"][measured(batch)].flatten() for batch in batches]).unique().tolist()
        counts = [[int(measured(run).sum()) for run in cut(batch, self.world.size)] for batch in batches]
        for one, tap in {id(it): (it, tap) for (_, tap), it in sums.items()}.values():
            table = torch.tensor(np.array([one.of[document] for document in every]).reshape(-1, len(SUMS)))
            rows = self.world.add(table).numpy()
            one.of = {document: row for document, row in zip(every, rows, strict=True) if row[0]}
            if self.task and tap != TEACHER:
                one.answers = self._answers(one.answers, counts)
        return sums

    def _answers(self, parts: list[Answered], counts: Sequence[Sequence[int]]) -> list[Answered]:
        """The answers to all rows, in their order."""
        columns, taught = (parts[0][0].shape[1], parts[0][2] is not None) if parts else (0, False)
        some, columns, taught = self.world.total([bool(parts), columns, taught])  # of those that have rows
        empty = np.zeros((0, round(columns / some)))

        def all_of(nothing: np.ndarray, mine: Sequence[np.ndarray]) -> np.ndarray:
            return joined(self.world, counts, torch.from_numpy(np.concatenate([nothing, *mine]))).numpy()

        theirs = [part[2] for part in parts if part[2] is not None]
        said, labels = all_of(empty, [part[0] for part in parts]), all_of(empty[:, 0], [part[1] for part in parts])
        return [(said, labels, all_of(empty, theirs) if taught else None)]

    def _gradient_norms(self, learner: Learner, batch: Batch) -> list[float] | None:
        """The gradient norm by layer of the common logit loss on one batch: same loss, same scale for all settings."""
        teacher = self.teachers[learner.name]
        if teacher is None:
            return None
        lesson = Lesson(learner.name, teacher.name, (COMMON,))
        still = Still(
            [teacher, learner],
            [lesson],
            chunk=self.chunk,
            autocast=self.autocast,
            world=self.world,
            balanced=False,
        )
        with without_gradients(learner):
            still.gradients([{TEXT: part} for part in self._cut([batch])], {TEXT: Counts.of([batch])}, step=0)
            self.world.sum_gradients(learner.parameters)
            return [self.world.norm(gradients(layer)).item() for layer in learner.layers]


def _values(student: Tensor, teacher: Tensor | None, labels: Tensor) -> np.ndarray:
    """The columns of `SUMS` of some tokens: `[len(SUMS), n]` in fp64."""
    labelled = labels != IGNORED
    best, scored = student.argmax(-1), student.shape[-1] == 1
    nothing = torch.zeros(len(labels), device=student.device)
    undefined = torch.full_like(nothing, torch.nan)  # of scores
    label_loss = squared_error if scored else cross_entropy
    agreed = undefined if scored else nothing if teacher is None else best == teacher.argmax(-1)
    columns = [
        torch.ones_like(nothing),
        common_loss(student, teacher) if teacher is not None else nothing,
        agreed,
        labelled,
        label_loss(student=student, labels=labels),
        undefined if scored else labelled & (best == labels),
    ]
    return torch.stack([column.double() for column in columns]).cpu().numpy()


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()


@contextmanager
def without_gradients(learner: Learner) -> Iterator[None]:
    """No gradients to begin with inside, and those that were there again outside."""
    held = [parameter.grad for parameter in learner.parameters]
    learner.optimizer.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        for parameter, gradient in zip(learner.parameters, held, strict=True):
            parameter.grad = gradient


@contextmanager
def evaluating(learners: Sequence[Learner]) -> Iterator[None]:
    """Evaluation mode inside, training mode again outside."""
    for learner in learners:
        learner.model.eval()
    try:
        yield
    finally:
        for learner in learners:
            learner.model.train()
