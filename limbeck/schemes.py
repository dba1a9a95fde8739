"""Schemes: functions that return a still. A scheme is a cast and its lessons, never a subclass of a trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from limbeck.actors import Frozen, Learner
from limbeck.lessons import Lesson, Term
from limbeck.still import Still


def offline(teacher: Frozen | None, students: Sequence[tuple[Learner, tuple[Term, ...]]], **how: Any) -> Still:
    """Every student learns from one fixed teacher, or from labels alone where there is none."""
    name = teacher.name if teacher else None
    lessons = [Lesson(learner.name, name, terms) for learner, terms in students]
    return Still([*([teacher] if teacher else []), *(learner for learner, _ in students)], lessons, **how)
