"""Views of a batch, and writers that make them: what is written is read, counted and cut like what a feed gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from kernel import INSIDE, LABEL, MULTI, batch, frozen, gradients_of, learner, still_of
from torch import Tensor

from limbeck.batch import TEXT, Batch, Views
from limbeck.distil import schemes
from limbeck.distil.actors import Actor
from limbeck.distil.lessons import Lesson, Term
from limbeck.distil.reduce import Share, counts_of
from limbeck.distil.still import Still
from limbeck.system.out_of_memory import Short
from limbeck.system.processes import World
from limbeck.training.loop import Course, fit

TERMS = (*MULTI, LABEL)


@dataclass
class Echo:
    """Writes the text down again, rows turned round."""

    reads: str = TEXT
    writes: str = "echo"
    actor: str = "teacher"
    written: list[tuple[int, int, int]] = field(default_factory=list)

    def write(self, actor: Actor, batch: Batch, step: int, row: int) -> Batch:
        self.written.append((step, row, len(batch["blocks"])))
        return {name: tensor.flip(0) for name, tensor in batch.items()}


def cast_of(one: Any, views: tuple[str, str], *writers: Echo, terms: Sequence[Term] = TERMS) -> Still:
    teacher = frozen()
    made = schemes.offline(one, {"teacher": teacher}, terms)
    lessons = tuple(replace(lesson, views=views) for lesson in made.lessons)
    return schemes.together([replace(made, lessons=lessons, writers=tuple(writers))], chunk=5)


def flipped(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.flip(0) for name, tensor in given.items()}


def close(mine: dict[str, Tensor | None], theirs: dict[str, Tensor | None]) -> None:
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-12, atol=1e-12)


def test_what_is_written_is_learned_as_if_it_had_been_given() -> None:
    """Counts of its own, gradients, the logit loss: those of a batch that holds it."""
    written, given = learner("s", TERMS), learner("s", TERMS)
    still = cast_of(written, ("echo", "echo"), Echo())
    views = [still.generate({TEXT: batch(seed)}, 3, 0) for seed in range(2)]
    assert list(views[0]) == [TEXT, "echo"]
    tally = still.gradients(views, counts_of(views), 3)["s"]
    share = Share.of([flipped(batch(seed)) for seed in range(2)])
    expected = still_of(frozen(), [(given, TERMS)], chunk=5).gradients(share.batches, share.counts, 3)["s"]
    close(gradients_of(written), gradients_of(given))
    assert tally.terms == expected.terms and tally.logit_loss == expected.logit_loss


def test_counts_are_those_of_the_view_that_is_learned_from() -> None:
    """A text of which nothing is selected beside one of which something is."""
    one = learner("s", TERMS)
    still = cast_of(one, ("echo", "echo"))
    text, echo = dict(batch(0)), dict(batch(1))
    text["select"], text["labels"] = torch.zeros_like(text["select"]), torch.full_like(text["labels"], -100)
    views: list[Views] = [{TEXT: text, "echo": echo}]
    tally, alone = still.gradients(views, counts_of(views), 0)["s"], Share.of([echo])
    other = learner("s", TERMS)
    expected = still_of(frozen(), [(other, TERMS)], chunk=5).gradients(alone.batches, alone.counts, 0)["s"]
    assert tally.terms == expected.terms and counts_of(views)[TEXT].selected == 0


def test_two_sides_read_two_views() -> None:
    """The student its own, the teacher the other; the same rows in both are the plain lesson."""
    apart, plain = learner("s", TERMS), learner("s", TERMS)
    still = cast_of(apart, (TEXT, "copy"))
    views: list[Views] = [{TEXT: batch(0), "copy": batch(0)}]
    still.gradients(views, counts_of(views), 0)
    share = Share.of([batch(0)])
    still_of(frozen(), [(plain, TERMS)], chunk=5).gradients(share.batches, share.counts, 0)
    close(gradients_of(apart), gradients_of(plain))


class Rows:
    """Eight rows a step."""

    batch_size = 8

    def batch(self, step: int, rows: slice = slice(None)) -> dict[str, Tensor]:
        return {name: tensor[rows] for name, tensor in batch(100 + step, rows=8, length=20).items()}


def run(one: Any, still: Still, **more: Any) -> Course:
    said = {"stage": "train", "setting": "s", "seed": 0}
    feeds: Any = {0: Rows()}
    course = Course({0: still}, feeds, 3, 2, lambda name: said, lambda step: False, World(), **more)
    fit(course, [])
    return course


def test_what_was_written_is_cut_and_not_written_again() -> None:
    """In a machine that has memory for two rows: written once for every micro-batch, by row of the whole batch."""
    short, large, echo = learner("s", TERMS), learner("s", TERMS), Echo()
    still = cast_of(short, ("echo", "echo"), echo)
    forward, told = still.forward, list[str]()

    def narrow(micro: Any) -> Any:
        if len(micro.views["echo"]["blocks"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(micro)

    def again(names: Any) -> Still:
        return still

    still.forward, still.without = narrow, again  # type: ignore[method-assign]
    course = run(short, still, tell=told.append)
    assert echo.written == [(step, row, 4) for step in range(3) for row in (0, 4)]
    assert course.way.split == 2 and len(told) == 1
    run(large, cast_of(large, ("echo", "echo"), Echo()))
    for mine, theirs in zip(short.parameters, large.parameters, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_without_a_smaller_share_it_is_short() -> None:
    one = learner("s", TERMS)
    still = cast_of(one, (TEXT, TEXT))

    def none(micro: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    still.forward = none  # type: ignore[method-assign]
    with pytest.raises(Short):
        still.step(Share.of([batch(0)]), 0)
    assert all(parameter.grad is None for parameter in one.parameters)


def test_a_lesson_of_no_terms_on_logits_notes_nothing() -> None:
    found = []
    for terms in (INSIDE, TERMS):
        one, share = learner("s", terms), Share.of([batch(0)])
        still = Still([frozen(), one], [Lesson("s", "teacher", terms)], chunk=5)
        found.append(still.gradients(share.batches, share.counts, 0)["s"].noted.keys())
    assert [set(names) for names in found] == [set(), {"logit"}]
