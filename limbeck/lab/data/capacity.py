"""Capacity ladders: students of several sizes, each learning from teachers of several sizes, out of runs that are joined.

A larger teacher can be a worse one for a small student, the "capacity gap" (Cho & Hariharan 2019, arXiv 1910.01348), and a model
of a size between the two can bridge it (Mirzadeh et al. 2020, arXiv 1902.03393).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from limbeck.errors import UserError
from limbeck.lab.data.evaluated import last_step
from limbeck.lab.data.joined import Joined, RunPart, called
from limbeck.lab.data.run import RunData, read
from limbeck.lab.names import NamedMeasure, of
from limbeck.lab.numbers import Spread, amount
from limbeck.recipe.actor_names import is_of_measure, role_and_student, setting_and_seed
from limbeck.recipe.keys import LOSS_KEYS
from limbeck.recipe.stage_texts import stage_of
from limbeck.recipe.stages import FOLDER

Facts = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """The students of one teacher, by their size.

    name: the setting's, and the teacher's size behind it: "large (6.70 M)". size: the teacher's parameters; None: labels alone.
    reached: the teacher's own score, where it is known. settings: a student's parameters -> its setting on the page.
    """

    name: str
    size: int | None
    reached: Spread | None
    settings: dict[int, str]


@dataclass(frozen=True)
class Ladder:
    """Lines of several teachers, the smallest first and labels alone last, and what their students reach on held-out data.

    measure: the first metric of a task, else the label loss: the loss against the own teacher means something else for each.
    scores: setting -> the measure at the last step at which all were evaluated (each at its own, with `own_ends`).
    """

    measure: NamedMeasure
    lines: tuple[Line, ...]
    scores: dict[str, Spread]

    @property
    def sizes(self) -> list[int]:
        """The parameters of the students, rising."""
        return sorted({size for line in self.lines for size in line.settings})

    def steps(self, size: int) -> list[tuple[Line, Line]]:
        """From a teacher to each one of the next size, for students of a size: pairs (smaller, larger)."""
        lines = [line for line in self.lines if line.size is not None and size in line.settings]
        rungs = [list(each) for _, each in groupby(lines, key=lambda line: line.size)]
        return [(one, other) for low, high in pairwise(rungs) for one in low for other in high]


def of_run(run: RunData) -> Ladder | None:
    """The ladder of runs that were joined; None where students or teachers are all of one size.

    A setting has a place on it if one fixed model teaches it, or none. Where two settings have the same place (arms that differ
    in something else too), or two teachers the same name, there is no ladder.
    """
    if not isinstance(run, Joined):
        return None
    measure = (of(run).metrics or (of(run).measure("label_loss"),))[0]
    scores, own = _scores(run, measure.key), _scores(run, f"teacher_{measure.key}")
    found: dict[tuple[str, str | None], Line] = {}
    for part in _single(run):
        for name, facts in _taught(part.run):
            setting, size = called(name, part.shown), _parameters(part.run, name)
            if size is None or setting not in scores:
                continue
            first = facts[0] if facts else {}
            key, teacher = (name, first.get("source")), first.get("parameters")
            if key not in found:
                measured = facts and is_of_measure(role_and_student(str(first.get("name") or "teacher"))[0])
                reached = own.get(setting) if measured else _in_stage(run, part.run, facts, measure.key)
                shown = f"{name} ({amount(teacher)})" if teacher else name
                found[key] = Line(shown, teacher, reached, {})
            if size in found[key].settings:
                return None
            found[key].settings[size] = setting
    lines = sorted(found.values(), key=lambda line: line.size or math.inf)
    ladder = Ladder(measure, tuple(lines), {it: scores[it] for line in lines for it in line.settings.values()})
    whole = len(ladder.sizes) > 1 and any(map(ladder.steps, ladder.sizes))
    return ladder if whole and len({line.name for line in lines}) == len(lines) else None


def _single(run: Joined) -> Iterator[RunPart]:
    """The parts that are single runs, also those of a study among the runs."""
    for part in run.parts:
        if not isinstance(part.run, Joined):
            yield part
            continue
        for inner in _single(part.run):
            yield inner._replace(shown={own: called(name, part.shown) for own, name in inner.shown.items()})


def _scores(run: RunData, key: str) -> dict[str, Spread]:
    """Setting -> a column of the evaluations on held-out data, where it has a finite value."""
    lines = run.evals.get("test", {})
    groups = [[it for it in lines if it[0] == name] for name in run.settings] if run.own_ends else [list(lines)]
    found: dict[str, dict[int, float]] = {}
    for group in groups:
        step = last_step([row["step"] for row in lines[it]] for it in group)
        for setting, seed in group if step is not None else ():
            steps, values = run.series(key, setting, seed, "test")
            found.setdefault(setting, {})[seed] = float(values[steps == step][0])
    return {setting: Spread(seeds) for setting, seeds in found.items() if any(map(math.isfinite, seeds.values()))}


def _taught(run: RunData) -> Iterator[tuple[str, list[Facts]]]:
    """The settings that one fixed model teaches, and what the manifest says of it (seed by seed where it is a student of a stage),
    and those that none teaches."""
    told = [it for it in [run.manifest.get("teacher"), *(run.manifest.get("teachers") or [])] if it]
    for setting, said in (run.table.get("settings") or {}).items():
        roles = {term.get("teacher", "teacher") for term in said["terms"] if _asks(term["loss"])}
        facts = [it for it in told if {role_and_student(str(it.get("name") or "teacher"))[0]} == roles]
        if not roles or (facts and facts[0].get("parameters")):
            yield setting, facts


def _asks(loss: str) -> bool:
    """Whether a loss needs a teacher; one of one's own may."""
    return loss not in LOSS_KEYS or "teacher" in LOSS_KEYS[loss].needs


def _parameters(run: RunData, setting: str) -> int | None:
    """Those of the first seed's student: all seeds have as many."""
    learner = next((rows[0]["learner"] for (name, _), rows in run.metrics.items() if name == setting), None)
    return (run.manifest.get("students") or {}).get(learner, {}).get("parameters")


def _in_stage(run: Joined, taught: RunData, facts: list[Facts], key: str) -> Spread | None:
    """What a student of an earlier stage, which teaches, reached there on the same held-out data; None where that is not known."""
    name = stage_of(str(facts[0].get("source"))) if facts else None
    wanted = ((taught.manifest.get("earlier") or {}).get(name) or {}).get("recipe_sha256")
    for part in _single(run) if wanted else ():  # arms share a stage, which lies with the first of them
        try:
            stage = read(part.run.folder / FOLDER / str(name))
        except UserError:
            continue
        same = stage.data.get("heldout_sha256") == taught.data.get("heldout_sha256")
        if stage.manifest.get("recipe_sha256") == wanted and same:
            known = [setting_and_seed(role_and_student(str(it.get("name")))[1]) for it in facts]
            scores = _scores(stage, key)
            values = {who[1]: scores[who[0]].by_seed[who[1]] for who in known if who and who[0] in scores}
            return Spread(values) if values else None
    return None
