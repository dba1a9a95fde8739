"""What a run is measured on: fixed blocks, or rows, of both splits, and those on which reasons are looked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from limbeck.assemble import costs
from limbeck.assemble.kinds import kind_of
from limbeck.assemble.study import Study
from limbeck.assemble.text import Material, feed_of
from limbeck.batch import to_device
from limbeck.measure.evaluation import Evaluation
from limbeck.measure.reasons import Reasons

PIECE = 1 << 22  # tokens that are counted at a time


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
