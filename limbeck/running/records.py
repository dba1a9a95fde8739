"""What an evaluation adds to evals.jsonl, to the sums of its documents, and to reasons.jsonl, as rows; the session writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from time import perf_counter
from typing import Any

from torch import nn

from limbeck.distil.learner import Learner
from limbeck.distil.result import Norms
from limbeck.measure.barrier import alike, barrier
from limbeck.measure.evaluation import document_rows
from limbeck.measure.reasons import Reasons
from limbeck.system import clock
from limbeck.system.progress import doing

BARRIERS, POINTS = 12, 11  # pairs of students up to which the way between them is followed, and at how many points

Row = dict[str, Any]
Evaluated = Mapping[tuple[str, str], Row]  # (learner, split) -> what was found
Describe = Callable[[str], Row]  # learner -> its stage, setting and seed


def evaluation_rows(
    evaluated: Evaluated,
    describe: Describe,
    step: int,
    norms: Mapping[str, Norms],
    kept: Mapping[str, Mapping[str, Any]] | None,
) -> tuple[list[Row], list[Row]]:
    """The lines of evals.jsonl, and the rows of the documents.

    Args:
        evaluated: what was found; its sums of documents are taken out.
        describe: learner -> its stage, setting and seed.
        step: updates done.
        norms: learner -> norms of the last update, of those that were updated.
        kept: learner -> `step` of the weights that were measured, where these are not those of `step`.
    """
    rows, documents = [], []
    for (learner, split), found in evaluated.items():
        said = describe(learner)
        who = {"setting": said["setting"], "seed": said["seed"], "learner": learner, "split": split}
        documents += [who | row for row in document_rows(found.pop("documents"))]
        ratios = norms[learner].update_ratios if learner in norms else None
        best = {} if kept is None else {"kept_step": kept[learner]["step"]}
        rows.append({"step": step, "stage": said["stage"], **who, **found, "update_ratio_layers": ratios, **best})
    return rows, documents


def reason_rows(
    reasons: Reasons,
    who: Sequence[Learner],
    describe: Describe,
    at: dict[str, Any],
    last: bool,
) -> list[dict[str, Any]]:
    """The lines of reasons.jsonl that an evaluation adds, each beginning with `at`; at the last one with the ways between students."""
    begin, rows = perf_counter(), []
    learners = {learner.name: learner for learner in who}
    with doing(f"reasons at step {at['step']}", "blocks") as done:
        found = reasons(list(who), done=done)
    for name, said in found.learners.items():
        role = {key: describe(name)[key] for key in ("setting", "seed")}
        rows.append({**at, "kind": "learner", **role, "learner": name, **said})
    for pair in found.pairs:
        one, other = (learners[name] for name in pair["learners"])
        named = [describe(name)["setting"] for name in pair["learners"]]
        ends = last and len(found.pairs) <= BARRIERS and named[0] != named[1]  # one beginning
        ends = ends and one.facts() == other.facts() and alike(one.model, other.model)  # the same changes, and ranks
        rows.append({**at, "kind": "pair", **pair, "settings": named, **(_way(reasons, one, other) if ends else {})})
    spent = clock.since(begin)
    return [row | {"seconds": spent / len(rows)} for row in rows]


def _way(reasons: Reasons, one: Learner, other: Learner) -> dict[str, Any]:
    """The loss on the way from one student to another."""
    passed = count()
    with doing(f"the way from {one.name} to {other.name}", "points") as done:

        def loss(model: nn.Module) -> float:
            assert model is one.model
            done(next(passed), POINTS)
            return reasons.label_loss(one)

        return {"barrier": barrier(one.model, other.model, loss, POINTS)}
