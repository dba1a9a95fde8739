"""Voices: which heads some lessons on logits hear, and which terms hear them chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from limbeck.distil.lessons import Lesson, Pair

Voice = tuple[str, str]  # an actor, and the tap of the head that speaks


def learning(lesson: Lesson) -> list[Voice]:
    """The heads of its student that a lesson on logits trains."""
    return [(lesson.student, tap) for term in lesson.logit_terms for tap in term.taps("student")]


def voices(lessons: Sequence[Lesson]) -> list[Voice]:
    """Every head that some lessons on logits hear, once."""
    found: dict[Voice, None] = {}
    for lesson in lessons:
        found |= dict.fromkeys(learning(lesson))
        if lesson.teacher:
            taps = [tap for term in lesson.logit_terms if "teacher" in term.needs for tap in term.taps("teacher")]
            found |= dict.fromkeys((lesson.teacher, tap) for tap in taps)
            if lesson.measured:
                found |= {(lesson.student, "logits"): None, (lesson.teacher, "logits"): None}
    return list(found)


def logits_of(lesson: Lesson, pair: Pair, logits: Mapping[Voice, Tensor]) -> tuple[Tensor, Tensor | None]:
    """What student and teacher say at a pair of taps; the teacher is a constant, None where nobody teaches."""
    theirs = logits.get((lesson.teacher or "", str(pair.teacher)))
    return logits[lesson.student, str(pair.student)], None if theirs is None else theirs.detach()


def portion(lessons: Sequence[Lesson], whole: bool) -> list[Lesson]:
    """The logit terms that need all selected tokens of a micro-batch at once, or those that do not."""
    found = []
    for lesson in lessons:
        terms = {
            here: tuple(term for term in lesson.logit_terms if (term.per == "batch") == here) for here in (True, False)
        }
        if terms[whole]:
            measured = lesson.measured and not (whole and terms[False])  # once
            found.append(replace(lesson, terms=terms[whole], measured=measured))
    return found
