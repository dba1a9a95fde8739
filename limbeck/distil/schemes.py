"""Schemes: who teaches whom. A scheme is a cast and its lessons, a value made by a short function, never a trainer.

A term says by whom it is taught: a role. A scheme says which actors play that role for a learner; where several do, the
term is the mean over them. Terms that need no teacher but labels stand once, whoever else teaches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from limbeck.distil.actors import Actor, Student
from limbeck.distil.lessons import COMMON, Lesson, Term
from limbeck.distil.schedules import scaled
from limbeck.distil.still import Still, Writer

Teachers = Mapping[str, Actor]  # role -> who plays it


@dataclass(frozen=True)
class Cast:
    """Actors, what each learner learns from whom, in which turn of a step it is updated, and what is written before."""

    actors: tuple[Actor, ...]
    lessons: tuple[Lesson, ...]
    turns: dict[str, int]
    writers: tuple[Writer, ...] = ()


def offline(learner: Student, teachers: Teachers, terms: Sequence[Term]) -> Cast:
    """A learner learns from fixed teachers, each in its role, or from labels alone where there is none."""
    return _cast([learner], [_lessons(learner, terms, _roles(teachers))], *teachers.values())


def mutual(peers: Sequence[Student], teachers: Teachers, terms: Sequence[Term], alternate: bool = False) -> Cast:
    """Peers learn from each other while they learn (Zhang et al. 2018, arXiv 1706.00384), and from teachers if there are any.

    For each peer the others are constants, and its loss from them is their mean. All read a batch before any is updated; with
    `alternate`, one after the other reads the batch again and is updated, as in the paper.
    """
    learned = [
        _lessons(one, terms, {**_roles(teachers), "peers": tuple(peer.name for peer in peers if peer is not one)})
        for one in peers
    ]
    return _cast(peers, learned, *teachers.values(), alternate=alternate)


def averaged(learner: Student, average: Actor, teachers: Teachers, terms: Sequence[Term]) -> Cast:
    """A learner learns from the exponential moving average of its own weights (mean teacher, arXiv 1703.01780)."""
    lessons = _lessons(learner, terms, {**_roles(teachers), "ema": (average.name,)})
    return _cast([learner], [lessons], average, *teachers.values())


def teaching(teachers: Teachers, seed: int) -> Teachers:
    """Teachers as they teach the learners of a seed."""
    return {role: teacher.teaching(seed) for role, teacher in teachers.items()}


def unmeasured(cast: Cast) -> Cast:
    """The same without the logit loss that all settings share: whole predictions, or predictions without dropout, are not known."""
    return replace(cast, lessons=tuple(replace(lesson, noted=()) for lesson in cast.lessons))


def together(casts: Sequence[Cast], **how: Any) -> Still:
    """One still of several casts; what they share stands once."""
    actors = {actor.name: actor for cast in casts for actor in cast.actors}
    turns = {name: turn for cast in casts for name, turn in cast.turns.items()}
    writers = [writer for cast in casts for writer in cast.writers]
    lessons = [lesson for cast in casts for lesson in cast.lessons]
    return Still(list(actors.values()), lessons, turns=turns, writers=writers, **how)


def _cast(
    learners: Sequence[Student], lessons: Sequence[list[Lesson]], *others: Actor, alternate: bool = False
) -> Cast:
    turns = {learner.name: number * alternate for number, learner in enumerate(learners)}
    return Cast((*others, *learners), tuple(lesson for each in lessons for lesson in each), turns)


def _roles(teachers: Teachers) -> dict[str, tuple[str, ...]]:
    return {role: (teacher.name,) for role, teacher in teachers.items()}


def _lessons(learner: Student, terms: Sequence[Term], roles: Mapping[str, tuple[str, ...]]) -> list[Lesson]:
    """A learner's lessons: one for each actor of each role; the first one carries the terms without a teacher.

    A learner whose deeper layers teach its shallower ones (be your own teacher, arXiv 1905.08094) plays the role `self`.
    """
    roles = {**roles, "self": (learner.name,)}
    taught = [(name, role, 1 / len(names)) for role, names in roles.items() for name in names if _of_role(terms, role)]
    if not taught:
        return [Lesson(learner.name, None, tuple(terms))]
    lessons = []
    for number, (name, role, share) in enumerate(taught):
        mine = [term for term in terms if _taught(term, role, first=not number)]
        shared = tuple(_shared(term, share) if "teacher" in term.needs else term for term in mine)
        lessons.append(Lesson(learner.name, name, shared, noted=(COMMON,) if role == "teacher" else ()))
    return lessons


def _of_role(terms: Sequence[Term], role: str) -> bool:
    return any(_taught(term, role, first=False) for term in terms)


def _taught(term: Term, role: str, first: bool) -> bool:
    return term.teacher == role if "teacher" in term.needs else first


def _shared(term: Term, share: float) -> Term:
    return term if share == 1 else replace(term, weight=scaled(term.weight, share))
