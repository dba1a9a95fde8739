"""The still: a cast, its lessons, and the one training step: generate, forward, logit losses, backward.

Writers make the views that no feed gives (generate). Every backbone runs once for each view that it reads and leaves its
readout (forward). Logit terms are evaluated and differentiated chunk by chunk of the selected tokens, every head running
once a chunk, so that `[B, T, V]` never exists (logit losses). One backward for each learner takes the other terms and the
gradients of its head's inputs through the backbone (backward). Gradients are summed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol, cast

import torch
from torch import Tensor

from limbeck.batch import Batch, Views
from limbeck.distil.actors import Actor, Moment, Student
from limbeck.distil.lessons import Lesson, LogitSource, Term, learning, logit_sources, logits_of, portions
from limbeck.distil.reduce import Counts, Share
from limbeck.distil.result import StepResult, names_of
from limbeck.losses import Loss
from limbeck.losses.facts import common_loss_of
from limbeck.losses.sparse import TopK
from limbeck.models.taps import Readout
from limbeck.system.out_of_memory import Short, tried
from limbeck.system.processes import World

Readouts = Mapping[tuple[str, str], Readout]  # of an actor and the view that it read
# what a head that learns was given `[n, F]`, and the gradient there
LogitGradients = dict[LogitSource, tuple[Tensor, Tensor]]


def chunk_of(vocabulary: int, precision: str) -> int:
    """How many tokens make 64 MiB of logits: the next lower power of two, from 64 to 4,096.

    >>> chunk_of(30522, "bf16"), chunk_of(30522, "fp32"), chunk_of(256000, "bf16")
    (1024, 512, 128)
    """
    fit = (1 << 26) // (vocabulary * {"bf16": 2, "fp32": 4, "fp64": 8}[precision])
    return 1 << (max(64, min(4096, fit)).bit_length() - 1)


class Writer(Protocol):
    """Makes a view of a batch from another one, with an actor. It has no state: a run that goes on writes the same."""

    reads: str  # a view
    writes: str  # a view, of as many rows
    actor: str  # by whom

    def write(self, actor: Actor, batch: Batch, step: int, row: int) -> Batch:
        """What is written to rows `row`, `row` + 1, ... of the batch of a step: a function of the seed, step and row."""
        ...


@dataclass(frozen=True)
class Micro:
    """One micro-batch of one step: what its parts hand on to each other."""

    views: Views
    number: int
    step: int
    counts: Mapping[str, Counts]  # of each view in the whole step
    tallies: dict[str, StepResult]


class Still:
    """A cast of actors and the lessons between them.

    Args:
        actors: all models; lessons call them by their names.
        lessons: who learns from whom; the lessons of one student add up.
        chunk: number of tokens whose logits exist at a time.
        autocast: dtype of matrix products, None for the parameters' own.
        world: the processes that share the work.
        balanced: whether the balances of the learners act on the weights.
        turns: learner -> its turn in a step; those of a later turn read the batch after the earlier ones were updated.
        writers: what is written before a batch is read, in this order.
    """

    def __init__(
        self,
        actors: Sequence[Actor],
        lessons: Sequence[Lesson],
        *,
        chunk: int,
        autocast: torch.dtype | None = None,
        world: World = World(),  # noqa: B008 (a frozen value)
        balanced: bool = True,
        turns: Mapping[str, int] | None = None,
        writers: Sequence[Writer] = (),
    ) -> None:
        sides = [(name, view) for it in lessons for name, view in zip((it.student, it.teacher), it.views, strict=True)]
        taking_part = {name for name, _ in sides} | {writer.actor for writer in writers}
        self.actors = {actor.name: actor for actor in actors if actor.name in taking_part}
        self.lessons, self.chunk, self.autocast, self.world = list(lessons), chunk, autocast, world
        self.balanced, self.writers, self._turn_of = balanced, list(writers), dict(turns or {})
        students = {lesson.student for lesson in lessons}
        self.learners = [cast(Student, actor) for name, actor in self.actors.items() if name in students]
        self.turns = sorted({self._turn_of.get(learner.name, 0) for learner in self.learners})
        self.seconds = dict.fromkeys(self.actors, 0.0)  # each actor's own, of the last step
        self._reads = [(name, view) for name in self.actors for view in dict.fromkeys(v for n, v in sides if n == name)]
        self._with_logits = {
            (it.actor, it.view) for it in logit_sources([lesson for lesson in lessons if lesson.logit_terms])
        }

    def step(self, share: Share, step: int, measure: bool = False) -> dict[str, StepResult]:
        """One update of every learner from this process's micro-batches; `measure` asks for the update ratios.

        A learner whose loss or gradient is not finite is left as it was.

        Raises:
            Short: memory is short, and the share has nothing smaller.
        """
        parts = [self._turn(turn) for turn in self.turns] if len(self.turns) > 1 else [self]
        tallies: dict[str, StepResult] = {}
        for part in parts:
            found = share.fit(lambda batches, counts, part=part: part._added_up(batches, counts, step))
            part._update(found, step, measure)
            tallies |= found
        self.seconds = {name: sum(part.seconds.get(name, 0.0) for part in parts) for name in self.actors}
        updated = {name for name, tally in tallies.items() if not tally.skipped}
        for actor in self.actors.values():
            actor.advance(updated)
        return {learner.name: tallies[learner.name] for learner in self.learners}

    def gradients(self, batches: Sequence[Views], counts: Mapping[str, Counts], step: int) -> dict[str, StepResult]:
        """Adds the gradient of every learner's loss to its parameters' `.grad`."""
        self.seconds = dict.fromkeys(self.actors, 0.0)
        tallies = {learner.name: StepResult() for learner in self.learners}
        for number, views in enumerate(batches):
            micro = Micro(views, number, step, counts, tallies)
            readouts = self.forward(micro)
            gradients = self.logit_losses(micro, readouts)
            self.backward(micro, readouts, gradients)
        return tallies

    def generate(self, views: Views, step: int, row: int) -> Views:
        """Adds what the writers write to a micro-batch that begins with row `row` of the whole batch."""
        for writer in self.writers:
            with torch.no_grad(), self._clock(writer.actor), self._precision():
                written = writer.write(self.actors[writer.actor], views[writer.reads], step, row)
            views = {**views, writer.writes: written}
        return views

    def forward(self, micro: Micro) -> Readouts:
        """Runs every backbone once for each view that it reads."""
        readouts, moment = {}, Moment(micro.step, micro.number, self.world.rank)
        for name, view in self._reads:
            with self._clock(name), self._precision():
                whole = (name, view) in self._with_logits
                readouts[name, view] = self.actors[name].forward(micro.views[view], moment, whole=whole)
        return readouts

    def logit_losses(self, micro: Micro, readouts: Readouts) -> LogitGradients:
        """The logit terms, chunk by chunk; what a loss needs of the batch as a whole is evaluated once more, in one piece.

        The selected tokens of two views are compared in their order.
        """
        lessons = [lesson for lesson in self.lessons if lesson.logit_terms]
        where = {view: batch["select"].flatten().nonzero().squeeze(1) for view, batch in micro.views.items()}
        inputs = {
            it: readouts[it.actor, it.view].inputs(it.tap).flatten(0, -2)[where[it.view]]
            for it in logit_sources(lessons)
        }
        slopes = {source: torch.zeros_like(inputs[source]) for lesson in lessons for source in learning(lesson)}
        for part, whole in portions(lessons):
            (view, _), here = part[0].views, logit_sources(part)
            labels = micro.views[view]["labels"].flatten()[where[view]]
            size = max(1, len(labels)) if whole else self.chunk
            with self._precision():  # once: weights are cast for all chunks
                for start in range(0, len(labels), size):
                    chunk = slice(start, start + size)
                    leaves = {
                        source: inputs[source][chunk].detach().requires_grad_(source in slopes) for source in here
                    }
                    logits = {source: self._logits(source, leaf) for source, leaf in leaves.items()}
                    for name in dict.fromkeys(lesson.student for lesson in part):
                        with self._clock(name), self._precision(enabled=False):
                            self._logit_loss(micro, name, part, logits, labels[chunk]).backward()
                    for source, leaf in leaves.items():
                        if leaf.grad is not None:
                            slopes[source][chunk] += leaf.grad
        return {source: (inputs[source], slope) for source, slope in slopes.items()}

    def backward(self, micro: Micro, readouts: Readouts, gradients: LogitGradients, keep: bool = False) -> None:
        """The other terms, and one backward for each learner; `keep` keeps the graph for another."""
        for learner in self.learners:
            with self._clock(learner.name):
                with self._precision():
                    losses = [self._other_loss(micro, learner, it, readouts) for it in self.lessons if it.other_terms]
                roots = [(loss, torch.ones_like(loss)) for loss in losses if loss is not None]
                roots += [root for source, root in gradients.items() if source.actor == learner.name]
                if roots:
                    torch.autograd.backward([root for root, _ in roots], [slope for _, slope in roots], keep)

    def _logits(self, source: LogitSource, features: Tensor) -> Tensor | TopK:
        with self._clock(source.actor):
            return self.actors[source.actor].logits(features, source.tap)

    def _logit_loss(
        self,
        micro: Micro,
        name: str,
        lessons: Sequence[Lesson],
        logits: Mapping[LogitSource, Tensor | TopK],
        labels: Tensor,
    ) -> Tensor:
        """The weighted logit terms of one student on one chunk; what it learns from are constants for it."""
        tally, total = micro.tallies[name], torch.zeros((), device=labels.device)
        learner = next(it for it in self.learners if it.name == name)
        for lesson in (it for it in lessons if it.student == name):
            known: dict[tuple[Loss, object], Tensor] = {}
            counts = micro.counts[lesson.views[0]]
            for term in lesson.terms:
                for pair in term.pairs:
                    value = term.of_logits(*logits_of(lesson, pair, logits), labels, counts)
                    tally.add(term.name, value)
                    total = total + self._weight(learner, term, micro.step) * value
                    known[term.loss, pair] = value
            for term in lesson.noted if lesson.teacher else ():
                mine, theirs = logits_of(lesson, term.pairs[0], logits)
                value = known.get((common_loss_of(mine.shape[-1]), term.pairs[0]))
                with torch.no_grad():
                    tally.note(term.name, term.of_logits(mine, theirs, labels, counts) if value is None else value)
        return total

    def _other_loss(self, micro: Micro, learner: Student, lesson: Lesson, readouts: Readouts) -> Tensor | None:
        if lesson.student != learner.name or lesson.teacher is None:
            return None
        mine, theirs = zip((lesson.student, lesson.teacher), lesson.views, strict=True)
        batch, counts, losses = micro.views[lesson.views[0]], micro.counts[lesson.views[0]], []
        for term in lesson.other_terms:
            value = term.of_readouts(readouts[mine], readouts[theirs], learner.modules, batch, counts)
            micro.tallies[learner.name].add(term.name, value)
            losses.append(self._weight(learner, term, micro.step) * value)
        return torch.stack(losses).sum()

    def _added_up(self, batches: Sequence[Views], counts: Mapping[str, Counts], step: int) -> dict[str, StepResult]:
        """Gradients of this process, and tallies whose totals are those of all processes."""
        names, tallies = {learner.name: names_of(self._terms(learner)) for learner in self.learners}, {}

        def local() -> list[float]:
            tallies.update(self.gradients(batches, counts, step))
            nothing = torch.zeros((), device=self.world.device)
            parts = [value for name, terms in names.items() for value in tallies[name].local(terms, nothing)]
            return torch.stack(parts).tolist()

        try:
            totals = iter(tried(local, sum(len(terms) + 1 for terms in names.values()), self.world))
        except Short:
            for learner in self.learners:
                learner.drop()
            raise
        for name, terms in names.items():
            tallies[name].totals = {term: next(totals) for term in terms}
            tallies[name].common, tallies[name].micro_batches = next(totals), len(batches)
        return tallies

    def _update(self, tallies: Mapping[str, StepResult], step: int, measure: bool) -> None:
        for learner in self.learners:
            tally = tallies[learner.name]
            with self._clock(learner.name):
                stated = {term.name: term.weight(step) for term in self._terms(learner)}
                tally.weights = {name: weight * float(learner.balance.factor(name)) for name, weight in stated.items()}
                tally.regulariser = learner.balance.regulariser(stated)
                learner.balance.differentiate(tally.terms, stated, self.world.size)
                tally.norms = learner.update(step, self.world, measure, finite=not tally.broken)

    def only(self, *lessons: Lesson, balanced: bool = False) -> Still:
        """The same cast and manner with other lessons; unless `balanced`, with the weights that these state."""
        how = {"chunk": self.chunk, "autocast": self.autocast, "world": self.world, "balanced": balanced}
        return Still(list(self.actors.values()), lessons, **how)

    def without(self, names: Collection[str]) -> Still:
        """The same still without some of its learners; the others end in the same bits."""
        left = [lesson for lesson in self.lessons if lesson.student not in names]
        how = {"chunk": self.chunk, "autocast": self.autocast, "world": self.world, "balanced": self.balanced}
        return Still(list(self.actors.values()), left, turns=self._turn_of, writers=self.writers, **how)

    def _turn(self, turn: int) -> Still:
        lessons = [lesson for lesson in self.lessons if self._turn_of.get(lesson.student, 0) == turn]
        return self.only(*lessons, balanced=self.balanced)

    def _weight(self, learner: Student, term: Term, step: int) -> float | Tensor:
        """The weight of a term at a step: the recipe's, times the factor of the learner's balance."""
        weight = term.weight(step)
        return weight * learner.balance.factor(term.name) if self.balanced else weight

    def _terms(self, learner: Student) -> list[Term]:
        return [term for lesson in self.lessons if lesson.student == learner.name for term in lesson.terms]

    def _precision(self, enabled: bool = True) -> torch.autocast:
        return torch.autocast(
            self.world.device.type, dtype=self.autocast, enabled=enabled and self.autocast is not None
        )

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        """Adds the time inside to an actor's, on a GPU that of the device."""
        start = self._now()
        yield
        self.seconds[name] += max(0.0, self._now() - start)

    def _now(self) -> float:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)
        return perf_counter()
