"""Capacity ladders on the page: the best teacher of each student, and whether a larger one is a better one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from limbeck.lab.data.capacity import Ladder, of_run
from limbeck.lab.data.run import RunData
from limbeck.lab.page.cost import NONE
from limbeck.lab.page.lead import OPEN, listed
from limbeck.lab.page.verdicts import Judged, judge
from limbeck.lab.statistics.outcomes import Outcome
from limbeck.lab.statistics.verdicts import Verdict, of_pairs
from limbeck.recipe.keys import MEASURES


class Told(NamedTuple):
    """What the page says: a sentence for each student; a table of scores, students down; verdicts on each step to a larger teacher."""

    sentences: list[str]
    headings: list[str]
    lines: list[tuple[str, list[tuple[str, bool]]]]  # student, then score and whether it is the best of the line
    judged: Judged


def of_ladder(run: RunData) -> Told | None:
    """The section of runs with students and teachers of several sizes; None for others.

    For each student every teacher is compared with those of the next smaller size, paired by seed; Holm's family are all these
    pairs of all students.
    """
    ladder = of_run(run)
    if ladder is None:
        return None
    values = {setting: dict(spread.by_seed) for setting, spread in ladder.scores.items()}
    measure = MEASURES[ladder.measure.key.removeprefix("metrics.")]
    pairs = [(a.settings[size], b.settings[size]) for size in ladder.sizes for a, b in ladder.steps(size)]
    found = of_pairs(pairs, values, measure)
    judged = judge(replace(run, against=None), Outcome(measure, 0, values, (), found), main=False)
    itself = [line.reached.show(ladder.measure.write) if line.reached else NONE for line in ladder.lines]
    words = {(it.first, it.second): it for it in found}
    return Told(
        [_sentence(ladder, size, words) for size in ladder.sizes if ladder.steps(size)],
        ["parameters", *(line.name for line in ladder.lines)],
        [*(_scores(ladder, size) for size in ladder.sizes), ("the teacher itself", [(it, False) for it in itself])],
        judged,
    )


def _scores(ladder: Ladder, size: int) -> tuple[str, list[tuple[str, bool]]]:
    """What a student reaches with each teacher, and which is the best."""
    spreads = [ladder.scores.get(line.settings.get(size, "")) for line in ladder.lines]
    known = [ladder.measure.better * each.mean for each in spreads if each and each.mean == each.mean]
    cells = [
        (NONE, False)
        if each is None
        else (each.show(ladder.measure.write), ladder.measure.better * each.mean == max(known, default=None))
        for each in spreads
    ]
    return f"{size:,}", cells


def _sentence(ladder: Ladder, size: int, found: Mapping[tuple[str, str], Verdict]) -> str:
    """Where a larger teacher stops helping a student: it is shown to be worse; shown to be better everywhere; or neither."""
    steps = [(a, b, found[a.settings[size], b.settings[size]].word) for a, b in ladder.steps(size)]
    who = f"For the student of {size:,} parameters"
    worse = [f"{b.name} teaches it worse than {a.name}" for a, b, word in steps if word == "worse"]
    if worse:
        return f"{who} a larger teacher stops helping: {listed(worse)}."
    undecided = [f"{b.name} against {a.name}" for a, b, word in steps if word != "better"]
    if undecided:
        which = (
            listed(undecided) if len(undecided) <= OPEN else f"{len(undecided)} of {len(steps)} steps to a larger one"
        )
        return f"{who} it is not shown where a larger teacher stops helping: no verdict on {which}."
    return f"{who} each larger teacher is better than those of the next smaller size, up to {steps[-1][1].name}."
