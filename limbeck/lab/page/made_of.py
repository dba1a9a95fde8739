"""What a run was made of, in lines to read: teachers, students, text or rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from limbeck.lab import names
from limbeck.lab.data.run import RunData
from limbeck.lab.numbers import count
from limbeck.recipe import actor_names

Facts = dict[str, Any]
Lines = list[tuple[str, str]]


def lines(run: RunData) -> Lines:
    """What it is and what the manifest says of it; what is not in the manifest is left out."""
    noun = "row" if run.task else "document"
    found = [
        *_teachers([run.manifest.get("teacher"), *(run.manifest.get("teachers") or [])]),
        ("students", _students(run.manifest.get("students") or {})),
        (names.of(run).train, _amount(run.data, "", noun) + _measured(run, "train")),
        (names.of(run).heldout, _amount(run.data, "heldout_", noun) + _measured(run, "test")),
        *_others(run, noun),
        ("classes", ", ".join(map(str, run.data.get("classes") or []))),
    ]
    return [(what, said) for what, said in found if said]


def _teachers(facts: Iterable[Facts | None]) -> Lines:
    """One line for every role; the students of a stage that play one role for different seeds stand together."""
    found: dict[tuple[str, str, int | None], list[str]] = {}
    for teacher in facts:
        if teacher:
            role, learner = actor_names.role_and_student(str(teacher.get("name") or "teacher"))
            found.setdefault((role, str(teacher.get("source")), teacher.get("parameters")), []).append(learner)
    said = []
    for (role, source, parameters), learners in found.items():
        stage = source.removeprefix("$").partition("/")[0]
        what = f"{', '.join(learners)} of the stage {stage}" if source.startswith("$") and any(learners) else source
        said.append((role, ": ".join(part for part in (what, _parameters(parameters, len(learners))) if part)))
    return said


def _students(facts: dict[str, Facts]) -> str:
    sizes: dict[int, list[str]] = {}
    for name, student in facts.items():
        if student.get("parameters"):
            sizes.setdefault(student["parameters"], []).append(name)
    who = {size: ", ".join(names) if len(sizes) > 1 else f"{len(names)}" for size, names in sizes.items()}
    return "; ".join(f"{who[size]} of {_parameters(size, len(names))}" for size, names in sizes.items())


def _parameters(number: int | None, of: int) -> str:
    return "" if number is None else f"{number:,} parameters" + (" each" if of > 1 else "")


def _amount(data: Facts, part: str, noun: str) -> str:
    """docs: 173 rows, 1,036 tokens; 150 of the rows are labelled."""
    number, tokens, labelled = (data.get(part + name) for name in ("documents", "tokens", "labelled"))
    if number is None:
        return ""
    where = data.get("heldout") if part else data.get("corpus")
    said = [count(number, noun), *([count(tokens, "token")] if tokens is not None else [])]
    share = "" if labelled in (None, number) else f"; {labelled:,} of the {noun}s are labelled"
    return (f"{where}: " if isinstance(where, str) else "") + ", ".join(said) + share


def _measured(run: RunData, split: str) -> str:
    """How much of it the evaluations read."""
    part = names.measured(run, split)
    if part is None or part[0] >= part[1]:
        return ""
    return f"; evaluations measure {part[0]:,} of the {'rows' if run.task else 'tokens'}"


def _others(run: RunData, noun: str) -> Lines:
    """The texts beside the corpus, with their shares of a batch."""
    table = run.table.get("data") or {}
    found = [(f"unlabelled {names.of(run).text}", run.data.get("unlabelled"), table.get("unlabelled"))]
    mixture = table.get("mixture") or {}
    found += [(f"mixed with {name}", facts, mixture.get(name)) for name, facts in run.data.get("mixture", {}).items()]
    return [(what, _other(facts, said or {}, noun)) for what, facts, said in found if facts]


def _other(facts: Facts, said: Facts, noun: str) -> str:
    """docs: 173 documents, 1,036 tokens; 25 % of every batch; labels are not used."""
    labels = said.get("labels", False)
    amount = _amount(facts if labels else {**facts, "labelled": None}, "", noun)
    share = said.get("share")
    return amount + (f"; {100 * share:g} % of every batch" if isinstance(share, int | float) else "")
