"""Reasons: why one setting beats another, measured on a few fixed held-out batches; plain numbers, ready for JSON.

What the layers hold (alignment with the teacher's, effective rank), how far predictions can be trusted (calibration), where
the student differs from its teacher (by frequency and by place), and how far students of one seed went apart.

n tokens, H width, L layers, V vocabulary. None stands wherever a number is not defined or not finite.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.batch import IGNORED, Batch
from limbeck.distil.actors import Actor
from limbeck.distil.learner import Learner
from limbeck.distil.lessons import common_loss
from limbeck.losses import cross_entropy, squared_error, symmetric_kl
from limbeck.losses.sparse import dense
from limbeck.losses.tensors import wide
from limbeck.measure.evaluation import Teacher, evaluating
from limbeck.measure.fixed import PLACES, Fixed, measured, of_documents, place, predicted, spread
from limbeck.measure.quantities import Layer, Numbers, binned, calibration, cka_grid, frequency_edges, plain
from limbeck.measure.shares import joined
from limbeck.models.taps import Tapped
from limbeck.system.out_of_memory import Parts, say
from limbeck.system.processes import World
from limbeck.system.progress import Done, uncounted

TOKENS = 2048  # whose states are compared: the products are what costs

Couple = tuple[Learner, Learner]
Layers = Mapping[Any, list[Layer]]  # actor -> its layers, none of an ensemble
# An actor -> confidence and right of its tokens; two actors -> agreed and divergence: [2, n] for each chunk.
Heard = dict[Any, list[np.ndarray]]
Whole = Mapping[Any, np.ndarray]  # the same of all tokens: [2, n]


@dataclass(frozen=True)
class Found:
    """What was measured."""

    learners: dict[str, dict[str, Any]]
    pairs: list[dict[str, Any]]  # of learners of one seed


class Reasons:
    """The measures, and the batches on which they are taken, fixed for the whole run.

    Predictions are asked at the tokens of an evaluation (selected, of a document), states at no more than `tokens` of all
    attended tokens of a document, evenly spread and the same for all models. Every model reads every batch once, in
    evaluation mode; nothing is drawn, so that a run trains to the same bits with it as without.

    With as many blocks as one of the two splits of an evaluation it costs some 0.45 of that evaluation (a teacher of 6
    layers of 256, two students of 3, 30,522 words, on a CPU), a fifth of it for the pair; in proportion to the batches,
    but for the layers, whose products cost at most 2 * tokens * A * B operations for widths that add up to A and B.

    Frequency is that of the token which is predicted: of the label, and where there is none of the token that stands there.
    For a causal model this is the next token; for a masked one it is the token itself, also where the input shows [MASK].

    Args:
        teachers: learner -> whose predictions are its measure, None where there is no teacher.
        batches: held-out ones, at least one.
        chunk: tokens whose logits exist at a time, of all learners of a seed and of their teachers.
        autocast: dtype of matrix products.
        counts: how often each token occurs in the training text, int64 `[V]`; None: nothing is told by frequency.
        tokens: whose states are compared, at most.
        world: the processes, each of which reads a share of every batch; all are told the same.
        tell: takes a line where memory is short, and batches are read in smaller parts from then on.
    """

    def __init__(
        self,
        teachers: Mapping[str, Teacher],
        batches: Sequence[Batch],
        *,
        chunk: int,
        autocast: torch.dtype | None = None,
        counts: np.ndarray | None = None,
        tokens: int = TOKENS,
        world: World = World(),  # noqa: B008 (a frozen value)
        tell: Callable[[str], None] = say,
    ) -> None:
        self.teachers, self.chunk, self.autocast, self.world = teachers, chunk, autocast, world
        self.fixed = [
            Fixed(batch, where, batch["labels"].flatten()[where], states)
            for batch, states in zip(batches, spread([of_documents(batch) for batch in batches], tokens), strict=True)
            for where in [measured(batch).flatten().nonzero().squeeze(1)]
        ]
        text = batches[0]["select"].dim() == 2
        self.labelled = np.concatenate([_array(one.labels != IGNORED) for one in self.fixed]).astype(bool)
        self.places = np.concatenate([place(one) for one in self.fixed]) if text else None
        self.edges = frequency_edges(counts) if counts is not None and text else None
        self.frequencies = None
        if self.edges is not None and counts is not None:
            said = np.concatenate([predicted(one) for one in self.fixed])
            self.frequencies = np.searchsorted(self.edges, counts[said], side="right") - 1
        self._wrapped: dict[object, Tapped | None] = {}
        self.parts = Parts("reasons", max(len(batch["select"]) for batch in batches), tell)

    @torch.no_grad()
    def __call__(self, learners: Sequence[Learner], pairs: bool = True, done: Done = uncounted) -> Found:
        """Measures some learners, and unless told otherwise every pair of those of one seed.

        `done` receives how many blocks, or rows, all models have read.
        """
        theirs = dict.fromkeys(teacher for one in learners if (teacher := self.teachers[one.name]) is not None)
        companies = [[one for one in learners if one.seed == seed] for seed in dict.fromkeys(o.seed for o in learners)]
        couples = [list(combinations(company, 2)) if pairs else [] for company in companies]
        with evaluating(learners):
            states, heard = self.parts.fitting(lambda: self._heard(learners, list(theirs), companies, couples, done))
        layers = {one: [Layer.of(self._together(one, parts)) for parts in its] for one, its in states.items()}
        taught = [(one, teacher) for one in learners if (teacher := self.teachers[one.name]) is not None]
        keys = [*theirs, *learners, *taught, *(couple for its in couples for couple in its)]
        whole = {key: self._all(_joined(heard[key])) for key in keys}
        return Found(
            {one.name: self._of_learner(one, layers, whole) for one in learners},
            [self._of_pair(couple, layers, whole) for its in couples for couple in its],
        )

    def _heard(
        self,
        learners: Sequence[Learner],
        theirs: Sequence[Actor],
        companies: Sequence[Sequence[Learner]],
        couples: Sequence[Sequence[Couple]],
        done: Done,
    ) -> tuple[dict[Actor, list[list[Tensor]]], Heard]:
        """What this process's rows give: an actor -> layer -> its states, and what was said."""
        states: dict[Actor, list[list[Tensor]]] = {}
        heard: Heard = defaultdict(list)
        for one in (*theirs, *learners):
            inside = self._inside(one)
            if inside is not None:
                states[one] = [[] for _ in inside.taps]
        count, of = 0, sum(len(fixed.batch["select"]) for fixed in self._own())
        for fixed in self._cut():
            done(count, of)
            count += len(fixed.batch["select"])
            with self._precision(fixed):
                features = {one: self._read(one, fixed, states.get(one)) for one in (*theirs, *learners)}
                for rows in self._chunks(fixed):
                    said = self._logits(theirs, features, rows, fixed.labels, heard)
                    for company, its in zip(companies, couples, strict=True):
                        mine = self._logits(company, features, rows, fixed.labels, heard)
                        self._compare(mine, said, its, heard)
        done(count, of)
        return states, heard

    def _together(self, actor: Actor, parts: list[Tensor]) -> Tensor:
        """The states of one layer at all tokens, in their order."""
        if self.world.size == 1:
            return torch.cat(parts)
        nothing = torch.zeros((0, actor.width), device=self.world.device)  # of a process without rows
        runs = [list(fixed.cut(self.world.size)) for fixed in self.fixed]
        return joined(self.world, [[len(run.states) for run in its] for its in runs], torch.cat([nothing, *parts]))

    def _all(self, mine: np.ndarray) -> np.ndarray:
        """What was heard at all tokens `[2, n]`, in their order."""
        runs = [list(fixed.cut(self.world.size)) for fixed in self.fixed]
        counts = [[len(run.where) for run in its] for its in runs]
        return joined(self.world, counts, torch.from_numpy(mine.T.copy())).numpy().T

    @torch.no_grad()
    def label_loss(self, learner: Learner) -> float:
        """The mean label loss of one learner, nan without labels: what `paths.barrier` may follow. It reads no teacher."""
        return self.parts.fitting(lambda: self._label_loss(learner))

    def _label_loss(self, learner: Learner) -> float:
        total = 0.0
        with evaluating([learner]):
            for fixed in self._cut():
                with self._precision(fixed):
                    features = self._read(learner, fixed)
                    for rows in self._chunks(fixed):
                        logits = learner.logits(features[rows])
                        loss = cross_entropy if logits.shape[-1] > 1 else squared_error
                        total += float(loss(student=logits, labels=fixed.labels[rows]).double().sum())
        (total,) = self.world.total([total])
        return total / int(self.labelled.sum()) if self.labelled.any() else math.nan

    # states and logits

    def _read(self, actor: Actor, fixed: Fixed, states: list[list[Tensor]] | None = None) -> Tensor:
        """The inputs of a model's head at the selected tokens; to `states` goes what its layers hold, where it has any."""
        tapped = self._inside(actor)
        if tapped is None:
            return actor.forward(fixed.batch).features.flatten(0, -2)[fixed.where]
        readout = tapped(fixed.batch)
        if states is not None:
            for layer, tap in zip(states, tapped.taps, strict=True):
                layer.append(readout[tap].flatten(0, 1)[fixed.states])
        return readout.features.flatten(0, -2)[fixed.where]

    def _inside(self, actor: Actor) -> Tapped | None:
        """Its model tapped at every layer, made once of each model: a student that is finished has another."""
        model = getattr(actor, "model", actor)
        if model not in self._wrapped:
            self._wrapped[model] = actor.everywhere()
        return self._wrapped[model]

    def _logits(
        self, actors: Iterable[Actor], features: Mapping[Actor, Tensor], rows: slice, labels: Tensor, heard: Heard
    ) -> dict[Actor, Tensor]:
        """The logits of some actors; how sure they are, and whether they are right, is noted."""
        said = {actor: dense(actor.logits(features[actor][rows])) for actor in actors}
        for actor, logits in said.items():
            heard[actor].append(_array(_sureness(logits, labels[rows])))
        return said

    def _compare(
        self, mine: Mapping[Actor, Tensor], said: Mapping[Actor, Tensor], couples: Sequence[Couple], heard: Heard
    ) -> None:
        """Notes where learners and their teachers, and the learners of a couple, agree, and how far they are apart."""
        for one, logits in mine.items():
            teacher = self.teachers[one.name]
            if teacher is not None:
                heard[one, teacher].append(_array(_distance(logits, said[teacher], common_loss)))
        for one, other in couples:
            heard[one, other].append(_array(_distance(mine[one], mine[other], _apart)))

    def _own(self) -> list[Fixed]:
        """This process's rows."""
        runs = (list(fixed.cut(self.world.size)) for fixed in self.fixed)
        return [its[self.world.rank] for its in runs if self.world.rank < len(its)]

    def _cut(self) -> Iterator[Fixed]:
        """The same rows, as many at a time as memory holds."""
        return (part for fixed in self._own() for part in fixed.cut(self.parts.count))

    def _chunks(self, fixed: Fixed) -> Iterator[slice]:
        return (slice(start, start + self.chunk) for start in range(0, len(fixed.where), self.chunk))

    def _precision(self, fixed: Fixed) -> torch.autocast:
        return torch.autocast(fixed.labels.device.type, dtype=self.autocast, enabled=self.autocast is not None)

    # what is told

    def _of_learner(self, learner: Learner, layers: Layers, heard: Whole) -> dict[str, Any]:
        teacher = self.teachers[learner.name]
        mine, theirs = layers[learner], layers.get(teacher) or None
        agreed, loss = heard[learner, teacher] if teacher is not None else np.empty((2, 0))
        compared = {"agreement": agreed, "logit_loss": loss}
        by_frequency = by_place = None
        if teacher is not None and self.places is not None:
            by_place = binned(self.places, PLACES, **compared)
            if self.frequencies is not None and self.edges is not None:
                table = binned(self.frequencies, len(self.edges), **compared)
                by_frequency = {"from": self.edges.tolist(), **table}
        return {
            "tokens": len(self.labelled),
            "states": len(mine[0].states),
            "effective_rank": [plain(layer.rank) for layer in mine],
            "teacher_effective_rank": theirs and [plain(layer.rank) for layer in theirs],
            "cka": theirs and _grid(mine, theirs),
            "calibration": self._calibration(heard[learner]),
            "teacher_calibration": self._calibration(heard[teacher]) if teacher is not None else None,
            "by_frequency": by_frequency,
            "by_place": by_place,
        }

    def _calibration(self, heard: np.ndarray) -> dict[str, Any] | None:
        confidence, right = heard[:, self.labelled]
        return calibration(confidence, right)

    def _of_pair(self, couple: Couple, layers: Layers, heard: Whole) -> dict[str, Any]:
        one, other = couple
        agreement, apart = heard[couple].mean(1).tolist() if len(self.labelled) else (math.nan, math.nan)
        return {
            "seed": one.seed,
            "learners": [one.name, other.name],
            "agreement": plain(agreement),
            "symmetric_kl": plain(apart),
            "cka": _grid(layers[one], layers[other]),
        }


def _sureness(logits: Tensor, labels: Tensor) -> Tensor:
    """Confidence, and whether the likeliest class is the label: `[2, n]`; nan of scores."""
    if logits.shape[-1] == 1:
        return torch.full((2, len(labels)), torch.nan)
    top, best = wide(logits).max(-1)
    return torch.stack([(top - wide(logits).logsumexp(-1)).exp(), (best == labels).to(top)])


def _distance(mine: Tensor, theirs: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Whether both find the same class likeliest (nan of scores), and a divergence: `[2, n]`."""
    apart = loss(mine, theirs)
    agreed = (mine.argmax(-1) == theirs.argmax(-1)).to(apart) if mine.shape[-1] > 1 else apart * torch.nan
    return torch.stack([agreed, apart])


def _apart(mine: Tensor, theirs: Tensor) -> Tensor:
    """The symmetric form of the loss that all settings share; of scores the square, which is symmetric."""
    return symmetric_kl(student=mine, teacher=theirs) if mine.shape[-1] > 1 else common_loss(mine, theirs)


def _grid(mine: Sequence[Layer], theirs: Sequence[Layer]) -> list[Numbers]:
    return [[plain(cell) for cell in row] for row in cka_grid(mine, theirs)]


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty((2, 0)), *parts], axis=1)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()
