"""What a run is measured on: fixed blocks, or rows, of both splits, and those on which reasons are looked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from time import perf_counter
from typing import Any

import numpy as np
from torch import nn

from limbeck.assemble import costs
from limbeck.assemble.kinds import kind_of
from limbeck.assemble.study import Study
from limbeck.assemble.text import Material, feed_of
from limbeck.batch import to_device
from limbeck.distil.learner import Learner
from limbeck.measure.barrier import barrier
from limbeck.measure.evaluation import Evaluation
from limbeck.measure.reasons import Reasons
from limbeck.system import clock
from limbeck.system.progress import doing

PIECE = 1 << 22  # tokens that are counted at a time
BARRIERS, POINTS = 12, 11  # pairs of students up to which the way between them is followed, and at how many points


def reasons(study: Study, tell: Callable[[str], None]) -> Reasons | None:
    """What looks for reasons at evaluations."""
    plan, material = study.design, study.material
    kind, heldout = kind_of(plan.recipe), material.corpus.heldout
    if not (many := kind.explained(plan.recipe, heldout)):
        return None
    feed = feed_of(plan, Material(material.corpus), 0, "heldout")
    batches = [to_device(b, study.world.device) for b in feed.fixed(many, batch_size=16)]
    counts = _occurrences(material.corpus.train.tokens, plan.student.vocab_size) if kind.one_length else None
    return Reasons(
        study.measures, batches, chunk=plan.chunk, autocast=plan.autocast, counts=counts, world=study.world, tell=tell
    )


def noun(study: Study) -> str:
    """What is measured on."""
    return kind_of(study.design.recipe).noun


def reason_rows(
    reasons: Reasons,
    who: Sequence[Learner],
    describe: Callable[[str], dict[str, Any]],
    at: dict[str, Any],
    last: bool,
) -> list[dict[str, Any]]:
    """The lines of reasons.jsonl that an evaluation adds, each beginning with `at`; at the last one with the ways between students.

    `describe`: learner -> its setting and seed.
    """
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


def evaluation(study: Study, tell: Callable[[str], None]) -> Evaluation:
    """The fixed blocks of both splits."""
    plan, material, world = study.design, study.material, study.world
    batches = {}
    kind = kind_of(plan.recipe)
    many = kind.measured(plan.recipe, material.corpus.heldout)
    for split, part in (("train", "train"), ("test", "heldout")):
        feed = feed_of(plan, Material(material.corpus), 0, part)
        batches[split] = [to_device(b, world.device) for b in feed.fixed(many, batch_size=16)]
    return Evaluation(
        study.measures,
        batches,
        chunk=plan.chunk,
        autocast=plan.autocast,
        world=world,
        task=kind.metrics(plan.recipe.data),
        tell=tell,
    )


def _occurrences(tokens: np.ndarray, vocabulary: int) -> np.ndarray:
    """How often each token stands in a stream: int64 `[V]`; a piece at a time, for the stream is on disk."""
    pieces = (tokens[start : start + PIECE] for start in range(0, len(tokens), PIECE))
    return sum((np.bincount(piece, minlength=vocabulary) for piece in pieces), np.zeros(vocabulary, np.int64))


def cost(study: Study) -> costs.StudyCost:
    """What its training costs, by the lengths of its rows."""
    feed = study.feeds[study.design.recipe.seeds[0]]
    return costs.of_study(study.design, costs.mean(study.design, feed, study.world.size))
