"""The training loop. It is blind: it moves batches to stills and records to hooks, and knows no teacher and no scheme."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from threading import current_thread, main_thread
from time import perf_counter
from types import FrameType
from typing import Any

import torch

from limbeck.actors import Norms
from limbeck.balance import Probed, gradient_shares
from limbeck.errors import UserError
from limbeck.feeds.feed import Batches
from limbeck.probe import probe
from limbeck.reduce import Batch, Counts
from limbeck.still import Still, Tally
from limbeck.world import World


@dataclass(frozen=True)
class Record:
    """What a hook receives after a step."""

    step: int  # updates done, from 1
    rows: list[dict[str, Any]]  # one for each learner: the line of metrics.jsonl
    norms: dict[str, Norms]  # of each learner


Hook = Callable[[Record], None]


@dataclass
class Course:
    """Where a run goes: from which step to which, over which stills and feeds.

    Args:
        stills: for each seed its still.
        feeds: for each seed its batches.
        describe: learner -> what every line of its metrics says of it (stage, setting, seed, cost of a step).
        measure: the steps after which the update ratios are wanted.
        tokens: learner -> tokens seen so far; kept up to date.
        probes: the steps (updates done) before which every term is probed for itself.
    """

    stills: dict[int, Still]
    feeds: Mapping[int, Batches]
    steps: int
    accumulate: int
    describe: Callable[[str], dict[str, Any]]
    measure: Callable[[int], bool]
    world: World
    start: int = 0
    tokens: dict[str, int] = field(default_factory=dict)
    probes: Callable[[int], bool] = lambda step: False


def fit(course: Course, hooks: Sequence[Hook], stopped: Callable[[], bool] = lambda: False) -> int:
    """Trains until the last step, or until the first step after which `stopped` says so in any process.

    Returns:
        The number of updates done.
    """
    for step in range(course.start, course.steps):
        rows, norms = [], {}
        for seed, still in course.stills.items():
            begin = perf_counter()
            batches = micro_batches(course, seed, step)
            mine = Counts.of(batches)
            counts = Counts(*(round(total) for total in course.world.total(astuple(mine))))
            paused = perf_counter()
            probed = _probe(still, batches, counts, step) if course.probes(step) else {}
            begin += perf_counter() - paused
            tallies = still.step(batches, counts, step, course.measure(step + 1))
            speed = counts.tokens / (perf_counter() - begin)
            for name, tally in tallies.items():
                shares = gradient_shares(probed[name], tally.weights) if name in probed else None
                angles = {term: dict(it.cosines) for term, it in probed[name].items()} if name in probed else None
                said = {"gradient_share": shares, "gradient_cosines": angles}
                rows.append(_row(course, still, name, tally, step, counts, speed) | said)
                norms[name] = tally.norms
        for hook in hooks:
            hook(Record(step + 1, rows, norms))
        if course.world.total([stopped()])[0]:
            return step + 1
    return course.steps


def _probe(still: Still, batches: Sequence[Batch], counts: Counts, step: int) -> dict[str, dict[str, Probed]]:
    """Probes every learner, and gives its balance what was found."""
    found = {learner.name: probe(still, learner, batches, counts, step) for learner in still.learners}
    for learner in still.learners:
        learner.balance.learn(found[learner.name])
    return found


def micro_batches(course: Course, seed: int, step: int) -> list[Batch]:
    """This process's share of the batch of (seed, step), in micro-batches: contiguous rows of the whole batch."""
    world, feed = course.world, course.feeds[seed]
    rows = feed.batch_size // (course.accumulate * world.size)
    starts = [(micro * world.size + world.rank) * rows for micro in range(course.accumulate)]
    return [to_device(feed.batch(step, slice(start, start + rows)), world.device) for start in starts]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch where the models are."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _row(
    course: Course, still: Still, name: str, tally: Tally, step: int, counts: Counts, speed: float
) -> dict[str, Any]:
    """The line of metrics.jsonl of one learner and step."""
    lessons = [lesson for lesson in still.lessons if lesson.student == name]
    names = list(dict.fromkeys(term.name for lesson in lessons for term in lesson.terms))
    nothing = torch.zeros((), device=course.world.device)  # of a process whose rows have no selected token
    local = [tally.terms.get(term, nothing) for term in names]
    local.append(nothing if tally.logit_loss is None else tally.logit_loss)
    totals = course.world.total(torch.stack([value.double() for value in local]).tolist())
    terms = dict(zip(names, totals, strict=False))
    common = counts.selected and any(lesson.teacher and lesson.measured and lesson.logit_terms for lesson in lessons)
    norms = tally.norms
    assert norms is not None
    teachers = {lesson.teacher for lesson in lessons if lesson.teacher} - {name}
    course.tokens[name] = course.tokens.get(name, 0) + counts.tokens
    said = course.describe(name)
    return {
        "step": step + 1,
        **{key: said[key] for key in ("stage", "setting", "seed")},
        "learner": name,
        "loss": sum(tally.weights[term] * value for term, value in terms.items()) + tally.regulariser,
        "terms": terms,
        "weights": tally.weights,
        "logit_loss": totals[-1] if common else None,
        "grad_norm": norms.whole,
        "grad_norm_mean": sum(norms.layers) / len(norms.layers),
        "grad_norm_layers": norms.layers,
        "grad_norm_bridges": norms.bridges,
        "lr": norms.learning_rate,
        "tokens": course.tokens[name],
        "tokens_per_second": speed,
        "seconds": still.seconds[name] + sum(still.seconds[teacher] for teacher in teachers),
        "flops": said["flops_per_step"] * (step + 1),
    }


def require_finite(record: Record) -> None:
    """A hook: a loss or gradient that is not finite ends the run with its name, before it is saved anywhere."""
    for row in record.rows:
        parts = {
            **{f"the term {name}": value for name, value in row["terms"].items()},
            "the gradient": row["grad_norm"],
            "the gradient of the bridges": row["grad_norm_bridges"],
        }
        for what, value in parts.items():
            if not torch.tensor(value).isfinite():
                raise UserError(
                    f"setting {row['setting']}, seed {row['seed']}, step {record.step}: {what} is {value}; "
                    "lower train.lr, lengthen train.warmup, or lower the weight of the largest term"
                )


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM ask for a stop after the step; a second one stops at once. Outside the main thread, nothing does."""
    asked: list[int] = []
    if current_thread() is not main_thread():
        yield lambda: False
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        print("stopping after this step; once more to stop at once", file=sys.stderr, flush=True)

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
