"""The training loop. It is blind: it moves batches to stills and records to hooks, and knows no teacher and no scheme."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from time import perf_counter
from typing import Any, TypeVar

from limbeck.batch import TEXT, Views, cut_views, to_device
from limbeck.distil.balance import Probed, gradient_shares
from limbeck.distil.learner import Norms
from limbeck.distil.probe import probe
from limbeck.distil.reduce import Counts, Share, counts_of
from limbeck.distil.result import StepResult
from limbeck.distil.still import Still
from limbeck.errors import UserError
from limbeck.system import clock, out_of_memory
from limbeck.system.processes import World
from limbeck.text.feed import Batches


@dataclass(frozen=True)
class Record:
    """What a hook receives after a step."""

    step: int  # updates done, from 1; skipped ones count
    rows: list[dict[str, Any]]  # one for each learner: the line of metrics.jsonl
    norms: dict[str, Norms]  # of each learner
    failed: dict[str, str] = field(default_factory=dict)  # learner that stops after this step -> the line that says why


T = TypeVar("T")
Hook = Callable[[Record], None]
Found = dict[str, dict[str, Probed]]  # learner -> term -> what a probe found


@dataclass
class RunState:
    """What a run must remember of its way, beside its tokens and the state of its actors: a checkpoint holds it."""

    skipped: dict[str, int] = field(default_factory=dict)  # learner -> updates skipped in a row
    failed: dict[str, str] = field(default_factory=dict)  # learner that has stopped -> the line that says why
    split: int = 1  # parts of a micro-batch, where memory was short
    best: dict[str, dict[str, float | None]] = field(
        default_factory=dict
    )  # learner -> `step` and `score` of its best evaluation
    waited: dict[str, int] = field(default_factory=dict)  # learner -> evaluations since then
    ended: dict[str, int] = field(default_factory=dict)  # learner that has waited long enough -> its last update
    flops: dict[str, float] = field(default_factory=dict)  # learner -> FLOPs so far

    @property
    def out(self) -> set[str]:
        """The learners that are not trained any more."""
        return {*self.failed, *self.ended}


@dataclass
class Course:
    """Where a run goes: from which step to which, over which stills and feeds.

    Args:
        stills: for each seed its still.
        feeds: for each seed its batches.
        describe: learner -> what every line of its metrics says of it (stage, setting, seed).
        measure: the steps after which the update ratios are wanted.
        tokens: learner -> tokens seen so far; kept up to date.
        probes: the steps (updates done) before which every term is probed for itself.
        way: what else is to be remembered; kept up to date.
        price: the FLOPs of an update of a learner, by the counts of all processes.
        skips: updates in a row that are skipped before a learner stops.
        tell: where a line for people goes.
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
    way: RunState = field(default_factory=RunState)
    price: Callable[[str, Counts], float] = lambda learner, counts: 0.0
    skips: int = 10
    tell: Callable[[str], None] = out_of_memory.say


def fit(course: Course, hooks: Sequence[Hook], stopped: Callable[[], bool] = lambda: False) -> int:
    """Trains until the last step, or until the first step after which `stopped` says so in any process.

    A learner that has failed, or has ended, is not trained any more; where none is left, it ends.

    Returns:
        The number of updates done.

    Raises:
        UserError: not even one row fits into memory.
    """
    running, left = _running(course), len(course.way.out)
    for step in range(course.start, course.steps):
        if not running:
            return step
        record = Record(step + 1, [], {})
        for seed, still in running.items():
            with out_of_memory.explained(step + 1):
                _advance(course, seed, still, record)
        for hook in hooks:
            hook(record)
        if len(course.way.out) > left:
            running, left = _running(course), len(course.way.out)
        if course.world.total([stopped()])[0]:
            return step + 1
    return course.steps


def _running(course: Course) -> dict[int, Still]:
    """The stills without the learners that have failed or ended."""
    left = {seed: still.without(course.way.out) for seed, still in course.stills.items()}
    return {seed: still for seed, still in left.items() if still.learners}


def _advance(course: Course, seed: int, still: Still, record: Record) -> None:
    """One step of one still, and what the record says of it."""
    step, way, begin = record.step - 1, course.way, perf_counter()
    share = _share(course, seed, still, step)
    paused, probed = perf_counter(), {}
    names = [it.name for it in still.learners if course.probes(step) or (way.skipped.get(it.name) and it.balance.waits)]
    if names:
        probed = _probe(still, names, share, step)
    begin += clock.since(paused)
    tallies = still.step(share, step, course.measure(record.step))
    counts = share.counts[TEXT]
    speed = counts.tokens / clock.since(begin)
    for name, tally in tallies.items():
        shares = gradient_shares(probed[name], tally.weights) if name in probed else None
        angles = {term: dict(it.cosines) for term, it in probed[name].items()} if name in probed else None
        said = {"gradient_share": shares, "gradient_cosines": angles}
        record.rows.append(_row(course, still, name, tally, step, counts, speed) | said)
        assert tally.norms is not None
        record.norms[name] = tally.norms
    for name, tally in tallies.items():
        _count(course, seed, still, name, tally, record)


def _count(course: Course, seed: int, still: Still, name: str, tally: StepResult, record: Record) -> None:
    """Counts a learner's updates that were skipped in a row; after too many it stops, with its setting's others of this seed."""
    way, setting = course.way, course.describe(name)["setting"]
    way.skipped[name] = way.skipped.get(name, 0) + 1 if tally.skipped else 0
    if way.skipped[name] < course.skips or name in way.failed:
        return
    line = (
        f"setting {setting}, seed {seed}: stopped at step {record.step}, not finite {way.skipped[name]} times in a row: "
        f"{_cause(course, seed, still, name, tally, record.step - 1)}; lower train.lr, lengthen train.warmup, "
        "or lower the weight of the largest term"
    )
    for one in still.learners:
        if course.describe(one.name)["setting"] == setting:
            way.failed[one.name] = record.failed[one.name] = line


def untaken(course: Course) -> dict[str, str]:
    """At the end: the learners of which no update was taken, with the others of their setting and seed -> a line that says so."""
    way, found = course.way, {}
    for seed, still in course.stills.items():
        names = [learner.name for learner in still.learners if learner.name not in way.failed]
        settings = {name: course.describe(name)["setting"] for name in names}
        for name, setting in settings.items():
            if way.skipped.get(name, 0) < way.ended.get(name, course.steps):
                continue
            line = (
                f"setting {setting}, seed {seed}: all {way.skipped[name]} updates were skipped: loss or gradient was not "
                "finite (`skipped` in metrics.jsonl says what); lower train.lr, or the weight of the largest term"
            )
            found |= {other: line for other, its in settings.items() if its == setting}
    return found


def _cause(course: Course, seed: int, still: Still, name: str, tally: StepResult, step: int) -> str:
    """What is not finite; where every term is and a gradient is not, a probe finds the term that it comes from."""
    assert tally.norms is not None and tally.skipped
    if tally.broken:
        return tally.skipped
    found = _probed(still, [name], _share(course, seed, still, step), step)[name]
    terms = [term for term, it in found.items() if not math.isfinite(it.gradient_norm)]
    return ", ".join([f"gradient of term {terms[0]}" if terms else "gradient of the sum", *tally.norms.broken[:1]])


def _probe(still: Still, names: Sequence[str], share: Share, step: int) -> Found:
    """Probes some learners, and gives their balances what was found."""
    found = _probed(still, names, share, step)
    for learner in still.learners:
        if learner.name in found:
            learner.balance.learn(found[learner.name])
    return found


def _probed(still: Still, names: Sequence[str], share: Share, step: int) -> Found:
    learners = [learner for learner in still.learners if learner.name in names]
    return {
        it.name: share.fit(lambda batches, counts, it=it: probe(still, it, batches, counts, step)) for it in learners
    }


@dataclass
class _Share(Share):
    """The share of a process in a step, in smaller micro-batches from now on where memory is short."""

    course: Course
    seed: int
    step: int
    whole: list[Views]  # the micro-batches that the recipe asks for, as they were written

    def cut(self) -> None:
        """Cuts what was written into the parts that memory holds, and counts them."""
        self.batches = [part for views in self.whole for part in cut_views(views, self.course.way.split)]
        total, mine = self.course.world.total, counts_of(self.batches)
        self.counts = {view: Counts(*(round(it) for it in total(astuple(each)))) for view, each in mine.items()}

    def fit(self, work: Callable[[Sequence[Views], Mapping[str, Counts]], T]) -> T:
        """What `work` makes of it; where memory is short, of the same rows in micro-batches of half the size.

        Raises:
            UserError: they have one row already.
        """
        while True:
            try:
                return work(self.batches, self.counts)
            except out_of_memory.Short:
                pass
            self._halve()

    def _halve(self) -> None:
        out_of_memory.release()
        course = self.course
        rows = course.feeds[self.seed].batch_size // (course.accumulate * course.world.size)
        if course.way.split >= rows:
            raise UserError(f"step {self.step + 1}: out of memory with one row at a time; {out_of_memory.HELP}")
        course.way.split = min(2 * course.way.split, rows)
        self.cut()
        if course.world.is_main:
            course.tell(
                f"step {self.step + 1}: out of memory; from now on {len(self.batches)} micro-batches, each of at most "
                f"{-(-rows // course.way.split)} rows: the same update, but losses of whole micro-batches see fewer rows"
            )


def _share(course: Course, seed: int, still: Still, step: int) -> _Share:
    """The share of a step."""
    share = _Share([], {}, course, seed, step, micro_batches(course, seed, step, still))
    share.cut()
    return share


def micro_batches(course: Course, seed: int, step: int, still: Still | None = None) -> list[Views]:
    """This process's share of the batch of (seed, step), in micro-batches: contiguous rows of the whole batch.

    With what the writers of the still write to it.
    """
    world, feed = course.world, course.feeds[seed]
    still, rows = still or course.stills[seed], feed.batch_size // (course.accumulate * world.size)
    starts = [(micro * world.size + world.rank) * rows for micro in range(course.accumulate)]
    read = [(start, to_device(feed.batch(step, slice(start, start + rows)), world.device)) for start in starts]
    return [still.generate({TEXT: batch}, step, start) for start, batch in read]


def _row(
    course: Course, still: Still, name: str, tally: StepResult, step: int, counts: Counts, speed: float
) -> dict[str, Any]:
    """The line of metrics.jsonl of one learner and step."""
    lessons = [lesson for lesson in still.lessons if lesson.student == name]
    common = counts.selected and any(lesson.teacher and lesson.noted and lesson.logit_terms for lesson in lessons)
    norms = tally.norms
    assert norms is not None
    teachers = {lesson.teacher for lesson in lessons if lesson.teacher} - {name}
    course.tokens[name] = course.tokens.get(name, 0) + counts.tokens
    course.way.flops[name] = course.way.flops.get(name, 0.0) + course.price(name, counts)
    said = course.describe(name)
    return {
        "step": step + 1,
        **{key: said[key] for key in ("stage", "setting", "seed")},
        "learner": name,
        "loss": tally.loss,
        "terms": dict(tally.totals),
        "weights": tally.weights,
        "logit_loss": tally.common if common else None,
        "grad_norm": norms.whole,
        "grad_norm_mean": sum(norms.layers) / len(norms.layers),
        "grad_norm_layers": norms.layers,
        "grad_norm_bridges": norms.modules,
        "lr": norms.learning_rate,
        "skipped": tally.skipped,
        "accumulate": tally.micro_batches,
        "tokens": course.tokens[name],
        "tokens_per_second": speed,
        "seconds": still.seconds[name] + sum(still.seconds[teacher] for teacher in teachers),
        "flops": course.way.flops[name],
    }
