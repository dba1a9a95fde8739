"""What a run is measured on: fixed blocks, or rows, of both splits, and those on which reasons are looked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from limbeck import build, costs
from limbeck.build import Study
from limbeck.engine import to_device
from limbeck.evaluate import Evaluation
from limbeck.reasons import Reasons

PIECE = 1 << 22  # tokens that are counted at a time
BLOCKS = 64  # of an evaluation


def reasons(study: Study, tell: Callable[[str], None]) -> Reasons | None:
    """What looks for reasons at evaluations, in the first process."""
    count, task, material = study.design.recipe.train.reasons_blocks, study.design.recipe.data.task, study.material
    if not count or not study.world.is_main:
        return None
    plan, heldout = study.design, material.corpus.heldout
    feed = build.feed(plan, build.Material(material.corpus, None), 0, "heldout")
    batches = [to_device(b, study.world.device) for b in feed.fixed(len(heldout) if task else count, batch_size=16)]
    counts = None if task else _occurrences(material.corpus.train.tokens, plan.student.vocab_size)
    return Reasons(study.measures, batches, chunk=plan.chunk, autocast=plan.autocast, counts=counts, tell=tell)


def evaluation(study: Study, tell: Callable[[str], None]) -> Evaluation:
    """The fixed blocks of both splits."""
    plan, material, world = study.design, study.material, study.world
    batches = {}
    task = study.design.recipe.data.task
    count = study.design.recipe.train.eval_blocks or (len(material.corpus.heldout) if task else BLOCKS)
    for split, part in (("train", "train"), ("test", "heldout")):
        feed = build.feed(plan, build.Material(material.corpus, None), 0, part)
        batches[split] = [to_device(b, world.device) for b in feed.fixed(count, batch_size=16)]
    return Evaluation(
        study.measures,
        batches,
        chunk=plan.chunk,
        autocast=plan.autocast,
        device=world.device,
        task=task.kind if task else None,
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
