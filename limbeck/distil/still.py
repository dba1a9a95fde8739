"""The still: a cast, its lessons, and the one training step: read, speak, pull.

Every backbone runs once and leaves its readout (read). Logit terms are evaluated and differentiated chunk by chunk of the
selected tokens, every head running once a chunk, so that `[B, T, V]` never exists (speak). One backward for each learner
takes the other terms and the gradients of its head's inputs through the backbone (pull). Gradients are summed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import cast

import torch
from torch import Tensor

from limbeck.batch import Batch
from limbeck.distil.actors import Actor, Moment, Student
from limbeck.distil.lessons import Lesson, Pair, Term, Voice, learning, logits_of, portion, voices
from limbeck.distil.reduce import Counts
from limbeck.distil.result import Tally, names_of
from limbeck.distil.schedules import constant
from limbeck.losses import forward_kl, logit_mse
from limbeck.models.taps import Readout
from limbeck.system.out_of_memory import Short, release, tried
from limbeck.system.processes import World

Readouts = Mapping[str, Readout]
Share = tuple[Sequence[Batch], Counts]  # a process's micro-batches, and the counts of all processes


def chunk_of(vocabulary: int, precision: str) -> int:
    """How many tokens make 64 MiB of logits: the next lower power of two, from 64 to 4,096.

    >>> chunk_of(30522, "bf16"), chunk_of(30522, "fp32"), chunk_of(256000, "bf16")
    (1024, 512, 128)
    """
    fit = (1 << 26) // (vocabulary * {"bf16": 2, "fp32": 4, "fp64": 8}[precision])
    return 1 << (max(64, min(4096, fit)).bit_length() - 1)


def common_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The logit loss that all settings share: forward KL at temperature 1; of a score, which is no distribution, the square."""
    return (forward_kl if student.shape[-1] > 1 else logit_mse)(student=student, teacher=teacher)


COMMON = Term("logit", common_loss, (Pair("logits", "logits"),), constant(1.0), needs=("teacher",))


@dataclass(frozen=True)
class Micro:
    """One micro-batch of one step: what read, speak and pull hand on to each other."""

    batch: Batch
    number: int
    step: int
    counts: Counts  # of the whole step
    tallies: dict[str, Tally]


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
    ) -> None:
        taking_part = {name for lesson in lessons for name in (lesson.student, lesson.teacher)}
        self.actors = {actor.name: actor for actor in actors if actor.name in taking_part}
        self.lessons, self.chunk, self.autocast, self.world = list(lessons), chunk, autocast, world
        self.balanced = balanced
        students = {lesson.student for lesson in lessons}
        self.learners = [cast(Student, actor) for name, actor in self.actors.items() if name in students]
        self.turns = sorted({(turns or {}).get(learner.name, 0) for learner in self.learners})
        self._turn_of = dict(turns or {})
        self.seconds = dict.fromkeys(self.actors, 0.0)  # each actor's own, of the last step
        spoken = [lesson for lesson in lessons if lesson.logit_terms]
        self._heard = {name for name, _ in voices(spoken)}  # those whose heads are asked

    def step(
        self,
        batches: Sequence[Batch],
        counts: Counts,
        step: int,
        measure: bool = False,
        smaller: Callable[[], Share] | None = None,
    ) -> dict[str, Tally]:
        """One update of every learner from this process's micro-batches; `counts` are those of all processes.

        A learner whose loss or gradient is not finite is left as it was. Where memory is short, the gradients are computed
        again from what `smaller` gives; it raises where nothing smaller is left.

        Raises:
            Short: memory is short, and there is no `smaller`.
        """
        parts = [self._turn(turn) for turn in self.turns] if len(self.turns) > 1 else [self]
        tallies: dict[str, Tally] = {}
        for part in parts:
            found, batches, counts = part._found(batches, counts, step, smaller)
            part._update(found, step, measure)
            tallies |= found
        self.seconds = {name: sum(part.seconds.get(name, 0.0) for part in parts) for name in self.actors}
        updated = {name for name, tally in tallies.items() if not tally.skipped}
        for actor in self.actors.values():
            actor.advance(updated)
        return {learner.name: tallies[learner.name] for learner in self.learners}

    def _turn(self, turn: int) -> Still:
        lessons = [lesson for lesson in self.lessons if self._turn_of.get(lesson.student, 0) == turn]
        return self.only(*lessons, balanced=self.balanced)

    def _found(
        self, batches: Sequence[Batch], counts: Counts, step: int, smaller: Callable[[], Share] | None
    ) -> tuple[dict[str, Tally], Sequence[Batch], Counts]:
        """The gradients of a share of the batch that memory holds; also that share."""
        while True:
            try:
                return self._added_up(batches, counts, step), batches, counts
            except Short:
                for learner in self.learners:
                    learner.drop()
                if smaller is None:
                    raise
            release()
            batches, counts = smaller()

    def _added_up(self, batches: Sequence[Batch], counts: Counts, step: int) -> dict[str, Tally]:
        """Gradients of this process, and tallies whose totals are those of all processes."""
        names, tallies = {learner.name: names_of(self._terms(learner)) for learner in self.learners}, {}

        def local() -> list[float]:
            tallies.update(self.gradients(batches, counts, step))
            nothing = torch.zeros((), device=self.world.device)
            parts = [value for name, terms in names.items() for value in tallies[name].local(terms, nothing)]
            return torch.stack(parts).tolist()

        totals = iter(tried(local, sum(len(terms) + 1 for terms in names.values()), self.world))
        for name, terms in names.items():
            tallies[name].totals = {term: next(totals) for term in terms}
            tallies[name].common, tallies[name].micro_batches = next(totals), len(batches)
        return tallies

    def _update(self, tallies: Mapping[str, Tally], step: int, measure: bool) -> None:
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
        return Still(list(self.actors.values()), left, turns=self._turn_of, **how)

    def _weight(self, learner: Student, term: Term, step: int) -> float | Tensor:
        """The weight of a term at a step: the recipe's, times the factor of the learner's balance."""
        weight = term.weight(step)
        return weight * learner.balance.factor(term.name) if self.balanced else weight

    def _terms(self, learner: Student) -> list[Term]:
        return [term for lesson in self.lessons if lesson.student == learner.name for term in lesson.terms]

    def gradients(self, batches: Sequence[Batch], counts: Counts, step: int) -> dict[str, Tally]:
        """Adds the gradient of every learner's loss to its parameters' `.grad`."""
        self.seconds = dict.fromkeys(self.actors, 0.0)
        tallies = {learner.name: Tally() for learner in self.learners}
        for number, batch in enumerate(batches):
            micro = Micro(batch, number, step, counts, tallies)
            readouts = self.read(micro)
            spoken = self.speak(micro, readouts)
            self.pull(micro, readouts, spoken)
        return tallies

    def read(self, micro: Micro) -> Readouts:
        """Runs every backbone once."""
        readouts = {}
        for name, actor in self.actors.items():
            with self._clock(name), self._precision():
                moment = Moment(micro.step, micro.number, self.world.rank)
                readouts[name] = actor.read(micro.batch, moment, whole=name in self._heard)
        return readouts

    def speak(self, micro: Micro, readouts: Readouts) -> dict[Voice, tuple[Tensor, Tensor]]:
        """The logit terms. Returns the selected inputs of each head that learns, and the gradient there.

        Chunk by chunk; what a loss needs of the batch as a whole is evaluated once more, in one piece.
        """
        where = micro.batch["select"].flatten().nonzero().squeeze(1)
        labels = micro.batch["labels"].flatten()[where]
        lessons = [lesson for lesson in self.lessons if lesson.logit_terms]
        inputs = {(name, tap): readouts[name].inputs(tap).flatten(0, -2)[where] for name, tap in voices(lessons)}
        slopes = {voice: torch.zeros_like(inputs[voice]) for lesson in lessons for voice in learning(lesson)}
        for parts, size in ((portion(lessons, False), self.chunk), (portion(lessons, True), max(1, len(where)))):
            here = voices(parts)
            with self._precision():  # once: weights are cast for all chunks
                for start in range(0, len(where), size) if parts else ():
                    chunk = slice(start, start + size)
                    leaves = {voice: inputs[voice][chunk].detach().requires_grad_(voice in slopes) for voice in here}
                    logits = {voice: self._say(voice, leaf) for voice, leaf in leaves.items()}
                    for name in dict.fromkeys(lesson.student for lesson in parts):
                        with self._clock(name), self._precision(enabled=False):
                            loss = self._logit_loss(micro, name, parts, logits, labels[chunk])
                            loss.backward()
                    for voice, leaf in leaves.items():
                        if leaf.grad is not None:
                            slopes[voice][chunk] += leaf.grad
        return {voice: (inputs[voice], slope) for voice, slope in slopes.items()}

    def _say(self, voice: Voice, features: Tensor) -> Tensor:
        name, tap = voice
        with self._clock(name):
            return self.actors[name].speak(features, tap)

    def _logit_loss(
        self, micro: Micro, name: str, lessons: Sequence[Lesson], logits: Mapping[Voice, Tensor], labels: Tensor
    ) -> Tensor:
        """The weighted logit terms of one student on one chunk; what it learns from are constants for it."""
        tally, total = micro.tallies[name], torch.zeros((), device=labels.device)
        learner = next(it for it in self.learners if it.name == name)
        for lesson in lessons:
            if lesson.student != name:
                continue
            common = None
            for term in lesson.terms:
                for pair in term.pairs:
                    mine, theirs = logits_of(lesson, pair, logits)
                    value = term.of_logits(mine, theirs, labels, micro.counts)
                    tally.add(term.name, value)
                    total = total + self._weight(learner, term, micro.step) * value
                    common = value if term.loss is forward_kl and pair in COMMON.pairs else common
            if lesson.teacher and lesson.measured:
                with torch.no_grad():
                    said = logits_of(lesson, COMMON.pairs[0], logits)
                    common = COMMON.of_logits(*said, labels, micro.counts) if common is None else common
                tally.add_logit_loss(common)
        return total

    def pull(
        self, micro: Micro, readouts: Readouts, spoken: Mapping[Voice, tuple[Tensor, Tensor]], keep: bool = False
    ) -> None:
        """The other terms, and one backward for each learner; `keep` keeps the graph for another."""
        for learner in self.learners:
            with self._clock(learner.name):
                with self._precision():
                    losses = [self._other_loss(micro, learner, it, readouts) for it in self.lessons if it.other_terms]
                roots = [(loss, torch.ones_like(loss)) for loss in losses if loss is not None]
                roots += [root for (name, _), root in spoken.items() if name == learner.name]
                if roots:
                    torch.autograd.backward([root for root, _ in roots], [slope for _, slope in roots], keep)

    def _other_loss(self, micro: Micro, learner: Student, lesson: Lesson, readouts: Readouts) -> Tensor | None:
        if lesson.student != learner.name or lesson.teacher is None:
            return None
        losses = []
        for term in lesson.other_terms:
            value = term.of_readouts(
                readouts[learner.name], readouts[lesson.teacher], learner.bridges, micro.batch, micro.counts
            )
            micro.tallies[learner.name].add(term.name, value)
            losses.append(self._weight(learner, term, micro.step) * value)
        return torch.stack(losses).sum()

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
