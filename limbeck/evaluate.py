"""Evaluation: the same questions to every learner, whatever it trained on, on blocks that no seed changes.

Logit loss (forward KL at temperature 1), top-1 agreement with the teacher, label loss and accuracy, each as a sum for
every document (special tokens, which belong to none, are left out); the gradient norm by layer of the common logit loss.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.actors import Frozen, Learner, gradients, norm
from limbeck.lessons import Lesson
from limbeck.losses import cross_entropy, forward_kl
from limbeck.reduce import Batch, Counts
from limbeck.still import COMMON, Still
from limbeck.world import World

SUMS = ("tokens", "logit_loss", "agreement", "labels", "label_loss", "label_accuracy")


@dataclass
class Sums:
    """Sums over the selected tokens of each document: document number -> one number for each of `SUMS`."""

    of: dict[int, np.ndarray] = field(default_factory=lambda: defaultdict(lambda: np.zeros(len(SUMS))))

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
        teacher: whose predictions are the measure, None where there is no teacher.
        batches: split (`train`, `test`) -> its batches.
        chunk: tokens whose logits exist at a time.
        autocast: dtype of matrix products.
        device: where the models are.
    """

    def __init__(
        self,
        teacher: Frozen | None,
        batches: dict[str, Sequence[Batch]],
        *,
        chunk: int,
        autocast: torch.dtype | None = None,
        device: torch.device = torch.device("cpu"),  # noqa: B008 (an immutable value)
    ) -> None:
        self.teacher, self.batches, self.chunk, self.autocast = teacher, batches, chunk, autocast
        self.device = device

    def __call__(self, learners: Sequence[Learner]) -> dict[tuple[str, str], dict[str, Any]]:
        """(learner, split) -> its means, its `documents` and its `logit_grad_norm_layers`."""
        found = {}
        with evaluating(learners):
            for split, batches in self.batches.items():
                sums = self._sums(learners, batches)
                for learner in learners:
                    mine = sums[learner.name]
                    found[learner.name, split] = {
                        "logit_loss": mine.mean("logit_loss") if self.teacher else None,
                        "agreement": mine.mean("agreement") if self.teacher else None,
                        "label_loss": mine.mean("label_loss"),
                        "label_accuracy": mine.mean("label_accuracy"),
                        "tokens": mine.tokens,
                        "logit_grad_norm_layers": self._gradient_norms(learner, batches[0]),
                        "documents": mine.of,
                    }
        return found

    @torch.no_grad()
    def _sums(self, learners: Sequence[Learner], batches: Sequence[Batch]) -> dict[str, Sums]:
        """Every model reads every batch once; the teacher's logits of a chunk serve all learners."""
        sums = {learner.name: Sums() for learner in learners}
        for batch in batches:
            device = batch["input_ids"].device
            where = (batch["select"] & (batch["documents"] >= 0)).flatten().nonzero().squeeze(1)
            labels = batch["labels"].flatten()[where]
            documents = batch["documents"].flatten()[where].cpu().numpy()
            with torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None):
                teacher = self._chunks(self.teacher, batch, where) if self.teacher else None
                students = [self._chunks(learner, batch, where) for learner in learners]
                for start in range(0, len(where), self.chunk):
                    rows = slice(start, start + self.chunk)
                    target = teacher(rows) if teacher else None
                    for learner, logits in zip(learners, students, strict=True):
                        values = _values(logits(rows), target, labels[rows])
                        sums[learner.name].add(documents[rows], values)
        return sums

    def _chunks(self, actor: Frozen | Learner, batch: Batch, where: Tensor) -> Callable[[slice], Tensor]:
        features = actor.read(batch).features.flatten(0, 1)[where]
        return lambda rows: actor.speak(features[rows])

    def _gradient_norms(self, learner: Learner, batch: Batch) -> list[float] | None:
        """The gradient norm by layer of the common logit loss on one batch: same loss, same scale for all settings."""
        if self.teacher is None:
            return None
        lesson = Lesson(learner.name, self.teacher.name, (COMMON,))
        still = Still(
            [self.teacher, learner],
            [lesson],
            chunk=self.chunk,
            autocast=self.autocast,
            world=World(device=self.device),
            balanced=False,
        )
        with without_gradients(learner):
            still.gradients([batch], Counts.of([batch]), step=0)
            return [norm(gradients(layer)).item() for layer in learner.layers]


def _values(student: Tensor, teacher: Tensor | None, labels: Tensor) -> np.ndarray:
    """The columns of `SUMS` of some tokens: `[len(SUMS), n]` in fp64."""
    labelled = labels != -100
    best = student.argmax(-1)
    nothing = torch.zeros(len(labels), device=student.device)
    columns = [
        torch.ones_like(nothing),
        forward_kl(student=student, teacher=teacher) if teacher is not None else nothing,
        best == teacher.argmax(-1) if teacher is not None else nothing,
        labelled,
        cross_entropy(student=student, labels=labels),
        labelled & (best == labels),
    ]
    return torch.stack([column.double() for column in columns]).cpu().numpy()


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
