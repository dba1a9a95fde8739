"""Losses and gradients that are not finite: they reach no weight, and one setting's failure is no other's."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel import INSIDE, LABEL, LOGIT, MULTI, answer, batch, frozen, lay_out, learner, recipe, share, with_dropout
from kernel import still_of as made
from runfiles import hashes
from safetensors.torch import load_file
from torch import Tensor

import limbeck
from limbeck.batch import Batch
from limbeck.distil import schemes
from limbeck.distil.balance import Balance
from limbeck.distil.contrastive import contrastive_memory
from limbeck.distil.learner import Learner
from limbeck.distil.lessons import Pair, Term
from limbeck.distil.reduce import Counts
from limbeck.distil.schedules import constant
from limbeck.distil.still import Still
from limbeck.distil.teachers import Ema, Frozen
from limbeck.errors import Failed
from limbeck.lab.page import report
from limbeck.losses import contrastive
from limbeck.running import session
from limbeck.system.processes import World
from limbeck.training import checkpoint
from limbeck.training.loop import Course, Record, RunState, fit

Terms = tuple[Term, ...]
still_of = partial(made, chunk=10**6)
Seen = list[Record]


class Rows:
    """A feed of `kernel.batch`es that remembers which step was asked for last: what is broken, is broken at steps."""

    batch_size = 4

    def __init__(self) -> None:
        self.step = -1

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        self.step = step
        return {name: tensor[rows] for name, tensor in batch(100 + step, rows=self.batch_size, length=12).items()}


class BadBack(torch.autograd.Function):
    """The identity, whose gradient is not finite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Tensor:
        return given[0] * math.nan


def broken(feed: Rows, term: Term, steps: Sequence[int], bad: float | None = math.nan) -> Term:
    """The term with a value of `bad` at some steps; of None, with a gradient that is not finite."""

    def loss(**given: Any) -> Tensor:
        value = term.loss(**given)
        if feed.step not in steps:
            return value
        return value * bad if bad is not None else BadBack.apply(value)

    return replace(term, loss=loss)


def course(feed: Rows, still: Still, *, steps: int = 4, **more: Any) -> Course:
    said = {"stage": "train", "seed": 0}
    plain = {
        "stills": {0: still},
        "feeds": {0: feed},
        "steps": steps,
        "accumulate": 1,
        "describe": lambda name: {**said, "setting": name.partition("-")[0]},
        "measure": lambda step: False,
        "world": World(),
    }
    return Course(**{**plain, **more})


def trained(one: Course, *hooks: Callable[[Record], None]) -> Seen:
    records: Seen = []
    fit(one, [records.append, *hooks])
    return records


def bits(*actors: Learner | Ema) -> dict[str, Tensor]:
    """All that a checkpoint holds of some actors."""
    return {f"{it.name} {name}": value.clone() for it in actors for name, value in it.state().items()}


def same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


CONTRAST = Term(
    "contrast",
    contrastive,
    (Pair("pooled", "pooled", memory="memory"),),
    constant(0.1),
    per="row",
    modules={"memory": contrastive_memory(16, 24, width=8, negatives=4)},
)


@pytest.mark.parametrize("which", [term.name for term in (*MULTI, LABEL)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None], ids=["nan", "inf", "-inf", "gradient"])
def test_a_broken_step_changes_nothing_of_its_learner(which: str, bad: float | None) -> None:
    """Weights, projections, moments: as before the step, bit for bit; the line says which term; the next step is taken."""
    feed, terms, states = Rows(), (*MULTI, LABEL), []
    spoiled = tuple(broken(feed, term, [1], bad) if term.name == which else term for term in terms)
    one = learner("multi-seed0", spoiled, dropout=0.1)
    run = course(feed, still_of(frozen(), [(one, spoiled)]))
    records = trained(run, lambda record: states.append(bits(one)))
    rows = [record.rows[0] for record in records]
    same(states[0], states[1])
    assert not torch.equal(
        *(s["multi-seed0 model.bert.embeddings.word_embeddings.weight"] for s in (states[1], states[2]))
    )
    said = rows[1]["skipped"]
    assert [row["skipped"] for row in rows] == [None, said, None, None]
    assert said.startswith(f"term {which}" if bad is not None else "gradient")
    assert math.isfinite(rows[1]["loss"]) == (bad is None)
    assert run.way.skipped == {"multi-seed0": 0} and not run.way.failed


def test_the_layer_is_the_first_whose_gradient_is_not_finite() -> None:
    """Of a loss at layer 2 the gradient reaches both layers; of one that ends above layer 1, only the second."""
    feed = Rows()
    one = learner("multi-seed0", (LOGIT,))
    still = still_of(frozen(), [(one, (broken(feed, LOGIT, [0], None),))])
    assert trained(course(feed, still, steps=1))[0].rows[0]["skipped"] == "gradient, layer 1"
    above, hook = learner("multi-seed0", (LOGIT,)), []
    output = above.model.bert.encoder.layer[1].output.dense  # pyright: ignore
    hook.append(output.weight.register_hook(lambda gradient: gradient * math.nan))
    still = still_of(frozen(), [(above, (LOGIT,))])
    assert trained(course(feed, still, steps=1))[0].rows[0]["skipped"] == "gradient, layer 2"


def test_a_gradient_of_a_projection_alone_is_found() -> None:
    """Projections are clipped apart, and one that is lost poisons its student a step later."""
    feed, one = Rows(), learner("multi-seed0", MULTI)
    one.modules["hidden-1"].weight.register_hook(lambda gradient: gradient * math.inf)  # pyright: ignore
    before = bits(one)
    records = trained(course(feed, still_of(frozen(), [(one, MULTI)]), steps=1))
    assert records[0].rows[0]["skipped"] == "gradient, modules of the terms"
    same(before, bits(one))


def test_a_weight_that_is_not_finite_is_named() -> None:
    feed, term = Rows(), replace(LOGIT, weight=lambda step: math.inf if step == 1 else 1.0)
    rows = [r.rows[0] for r in trained(course(feed, still_of(frozen(), [(learner("a", (term,)), (term,))])))]
    assert rows[1]["skipped"] == "weight of logit, layer 1" and rows[2]["skipped"] is None


def test_a_skipped_step_is_as_if_it_had_not_been_but_for_its_number() -> None:
    """Memory bank, average, balance and moments stand still, the next draw is the same; the schedule goes on."""
    ends = []
    for broken_steps, leaps in (([1], False), ([], True)):
        feed = Rows()
        terms = (broken(feed, LOGIT, broken_steps), replace(LOGIT, name="ema", teacher="ema"), CONTRAST)
        one = learner("ema-seed0", terms, dropout=0.1, rate=lambda step: 1e-3 * (step + 1))
        one.balance = Balance("uncertainty", [term.name for term in terms])
        one.optimizer = one._adamw()
        average = Ema("ema-seed0-average", one, ["logits"], 0.5)
        cast = schemes.averaged(one, average, {"teacher": teacher()}, terms)
        run = course(feed, schemes.together([cast], chunk=10**6), steps=1, probes=lambda step: not step)
        trained(run)
        before = bits(one, average)
        if not leaps:
            row = trained(replace(run, start=1, steps=2))[0].rows[0]
            same(before, bits(one, average))
            assert row["skipped"] and row["lr"] == 2e-3
        trained(replace(run, start=2, steps=4))
        assert not torch.equal(before["ema-seed0 bridges.memory.teacher_bank"], one.modules["memory"].teacher_bank)  # pyright: ignore
        assert one.modules["memory"].updates == 3  # pyright: ignore
        ends.append(bits(one, average))
    same(*ends)


@pytest.mark.parametrize("how", ["initial", "gradient", "uncertainty"])
def test_a_balance_whose_first_probe_fails_is_probed_again(how: str) -> None:
    """Weighed at the first step whose numbers are finite, as a run is that begins there; the other setting's is not."""
    ends, probes = [], lambda step: step in (0, 10)
    for broken_steps, start in (([0], 0), ([], 1)):
        feed = Rows()
        terms = tuple(broken(feed, term, broken_steps) if term.name == "hidden" else term for term in INSIDE)
        one, other = learner("balanced-seed0", terms), learner("other-seed0", INSIDE)
        for it in (one, other):
            it.balance = Balance(how, [term.name for term in INSIDE])
            it.optimizer = it._adamw()
        run = course(feed, still_of(frozen(), [(one, terms), (other, INSIDE)]), probes=probes, start=start)
        if start:
            run.probes = lambda step: step == 1
        rows = trained(run)
        ends.append(bits(one))
        if not start:
            assert [row.rows[0]["gradient_share"] is not None for row in rows] == [True, True, False, False]
            assert [row.rows[1]["gradient_share"] is not None for row in rows] == [True, False, False, False]
            assert one.balance.probes == other.balance.probes == 1
    same(*ends)


def teacher() -> Frozen:
    """The teacher, with pooled states."""
    return Frozen("teacher", frozen().model, ["hidden.2", "pooled", "logits"])


def settings(feed: Rows, steps: Sequence[int], bad: float | None = math.nan) -> dict[str, Terms]:
    """Three settings; the hidden states of the second are broken at some steps."""
    return {
        "logit": (LOGIT,),
        "multi": tuple(broken(feed, term, steps, bad) if term.name == "hidden" else term for term in MULTI),
        "label": (LABEL,),
    }


def company(at: Sequence[int], names: Sequence[str] = ("logit", "multi", "label"), **more: Any) -> Any:
    """Learners by setting, the records of their run, and its course."""
    feed = Rows()
    terms = settings(feed, at, more.pop("bad", math.nan))
    cast = {name: learner(f"{name}-seed0", terms[name], dropout=0.1) for name in names}
    run = course(feed, still_of(frozen(), [(one, terms[name]) for name, one in cast.items()]), **more)
    return cast, trained(run), run


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
@pytest.mark.parametrize("steps", [[1], [0, 1, 2, 3]], ids=["once", "for good"])
def test_one_settings_failure_is_no_others(steps: list[int], bad: float | None) -> None:
    """Three settings, one is broken: the other two end in the bits, and in the lines, of a run without it."""
    cast, records, run = company(steps, skips=2, bad=bad)
    alone, expected, _ = company([], ("logit", "label"))
    for name, one in alone.items():
        same(bits(one), bits(cast[name]))
    assert [record.step for record in records] == [1, 2, 3, 4]
    timed = ("seconds", "tokens_per_second")
    for mine, theirs in zip(records, expected, strict=True):
        rows = [{k: v for k, v in row.items() if k not in timed} for row in mine.rows if row["setting"] != "multi"]
        assert rows == [{k: v for k, v in row.items() if k not in timed} for row in theirs.rows]
    assert set(run.way.failed) == (set() if len(steps) == 1 else {"multi-seed0"})


@pytest.mark.parametrize("bad", [math.nan, None], ids=["term", "gradient"])
def test_after_some_in_a_row_a_setting_stops_and_says_why(bad: float | None) -> None:
    cast, records, run = company([1, 2, 3, 4, 5], steps=6, skips=3, bad=bad)
    whole = company([], steps=1)[0]
    same(bits(cast["multi"]), bits(whole["multi"]))  # what it was before the first of them
    assert [[row["setting"] for row in record.rows].count("multi") for record in records] == [1, 1, 1, 1, 0, 0]
    assert [set(record.failed) for record in records] == [set()] * 3 + [{"multi-seed0"}] + [set()] * 2
    why = run.way.failed["multi-seed0"]
    what = "term hidden, layer 1" if bad is not None else "gradient of term hidden, layer 1"
    assert why == records[3].failed["multi-seed0"] and "\n" not in why
    assert why.startswith(f"setting multi, seed 0: stopped at step 4, not finite 3 times in a row: {what};")
    assert "train.lr" in why


def test_a_good_step_begins_the_count_anew() -> None:
    _, records, run = company([0, 1, 3, 4], steps=6, skips=3)
    assert not run.way.failed and run.way.skipped["multi-seed0"] == 0
    assert [record.rows[1]["skipped"] is None for record in records] == [False, False, True, False, False, True]


def test_where_all_have_stopped_the_loop_ends() -> None:
    feed = Rows()
    terms = settings(feed, range(9))["multi"]
    run = course(feed, still_of(frozen(), [(learner("multi-seed0", terms), terms)]), steps=9, skips=2)
    assert fit(run, []) == 2 and list(run.way.failed) == ["multi-seed0"]
    assert fit(replace(run, start=2), []) == 2, "and it does not begin again"


def test_the_count_goes_on_after_a_resume() -> None:
    """Stopped after two of three skips and gone on with: the third stops it, as without the pause."""
    _, expected, whole = company([1, 2, 3], steps=6, skips=3)
    cast, _, first = company([1, 2, 3], steps=3, skips=3)
    assert first.way.skipped["multi-seed0"] == 2
    feed = Rows()
    terms = settings(feed, [1, 2, 3])
    still = still_of(frozen(), [(one, terms[name]) for name, one in cast.items()])
    way = RunState(**copy.deepcopy(vars(first.way)))
    later = course(feed, still, start=3, steps=6, skips=3, way=way, tokens=first.tokens)
    assert [set(record.failed) for record in trained(later)] == [set(record.failed) for record in expected[3:]]
    assert later.way == whole.way


@pytest.mark.parametrize("which", ["a", "b", "ab"])
def test_peers_stop_together(which: str) -> None:
    """Two that teach each other are one group: when one cannot go on, the other would learn from nobody.

    The first that fails says why: where both do, of a the labels are broken, of b what it hears of its peer.
    """
    feed = Rows()
    peer = replace(LOGIT, name="peer", teacher="peers")
    worse = {"a": (peer, broken(feed, LABEL, [1, 2, 3])), "b": (broken(feed, peer, [1, 2, 3]), LABEL)}
    pair = [learner(f"mutual-seed0-{name}", (peer, LABEL), seed=seed) for seed, name in enumerate("ab")]
    other = learner("label-seed0", (LABEL,))
    cast = schemes.mutual(pair, {}, (peer, LABEL))
    lessons = [replace(it, terms=worse[it.student[-1]] if it.student[-1] in which else it.terms) for it in cast.lessons]
    cast = replace(cast, lessons=tuple(lessons))
    still = schemes.together([cast, schemes.offline(other, {}, (LABEL,))], chunk=16)
    run = course(feed, still, steps=5, skips=2)
    records = trained(run)
    assert set(run.way.failed) == {one.name for one in pair}
    (line,) = set(run.way.failed.values())
    assert f"times in a row: term {'label' if 'a' in which else 'peer'}" in line
    assert [len(record.rows) for record in records] == [3, 3, 3, 1, 1]


def test_the_probe_of_a_cause_leaves_the_others_alone() -> None:
    """What looks for the cause reads the batch again; nobody's bits change by it."""
    cast, _, _ = company([1, 2], skips=2, bad=None)
    alone, _, _ = company([], ("logit", "label"))
    assert all(one.optimizer.state for one in cast.values())
    for name, one in alone.items():
        same(bits(one), bits(cast[name]))


def test_nothing_is_read_twice() -> None:
    """The still alone, without a loop: the tally says it, and gradients are gone."""
    feed = Rows()
    feed.step = 0
    terms = (broken(feed, LOGIT, [0]),)
    one = learner("a", terms)
    whole = [batch()]
    tally = still_of(frozen(), [(one, terms)]).step(share(whole), 0)["a"]
    assert tally.skipped == "term logit, layer 1" and all(p.grad is None for p in one.parameters)


# whole runs


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a corpus."""
    return lay_out(tmp_path_factory.mktemp("world"))


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the hidden term of a setting's learners be NaN from a step on, to one before another."""

    def go(setting: str, first: int, last: int = 10**9) -> None:
        plain = Still.gradients

        def gradients(still: Still, batches: Sequence[Batch], counts: Counts, step: int) -> Any:
            tallies = plain(still, batches, counts, step)
            for one in still.learners:
                if one.name.startswith(setting) and first <= step < last:
                    tallies[one.name].terms["hidden"] *= math.nan
                    for p in one.parameters:
                        p.grad = None if p.grad is None else p.grad * math.nan
            return tallies

        monkeypatch.setattr(Still, "gradients", gradients)

    return go


def three(world: Path, out: Path, *, only: Sequence[str] | None = None, **train: Any) -> dict[str, Any]:
    """A recipe of three settings, with dropout."""
    plain = recipe(world, out, train={"skips": 2, **train})
    plain["settings"]["label"] = {"terms": [{"loss": "cross_entropy"}]}
    return with_dropout(plain | ({"only": list(only)} if only else {}), 0.1)


def untimed(rows: Sequence[dict[str, Any]], but: str) -> list[dict[str, Any]]:
    timed = ("seconds", "tokens_per_second")
    return [{k: v for k, v in row.items() if k not in timed} for row in rows if row["setting"] != but]


def checkpointed(run: limbeck.Run, learner: str) -> dict[str, Tensor]:
    return load_file(checkpoint.list_all(run.folder / "checkpoints")[0] / f"{learner}.safetensors")


def test_a_setting_that_fails_stops_alone(
    world: Path,
    tmp_path: Path,
    spoil: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One of three: exit status 3 and one line; the two others end in the bits of a run without it; the page says it."""
    expected = limbeck.run(three(world, tmp_path / "without", only=["logit", "label"]), quiet=True)
    good = limbeck.run(three(world, tmp_path / "short", only=["multi"], steps=3, schedule="constant"), quiet=True)
    spoil("multi", 3)
    table = tmp_path / "three.json"
    table.write_text(json.dumps(three(world, tmp_path / "with")))
    status, said, log = answer(monkeypatch, capsys, "run", str(table))
    run = limbeck.Run(tmp_path / "with")
    why = "setting multi, seed 0: stopped at step 5, not finite 2 times in a row: term hidden, layer 1;"
    assert status == 3 and not said and log.splitlines()[-1].startswith(f"limbeck: failed: {why}")
    assert "Traceback" not in log
    assert untimed(run.metrics, "multi") == untimed(expected.metrics, "multi")
    assert untimed(run.evals, "multi") == untimed(expected.evals, "multi")
    assert set(run.students) == {"logit-seed0", "label-seed0"} == {p.name for p in (run.folder / "students").iterdir()}
    for name in run.students:
        same(checkpointed(run, name), checkpointed(expected, name))
    assert run.manifest["status"] == "done" and run.manifest["failed"]["multi-seed0"].startswith(why)
    mine = [row for row in run.metrics if row["setting"] == "multi"]
    assert [row["skipped"] for row in mine] == [None] * 3 + ["term hidden, layer 1"] * 2
    assert mine[3]["loss"] is mine[3]["terms"]["hidden"] is mine[3]["grad_norm"] is None
    assert (
        checkpointed(run, "multi-seed0")["optimizer.0.step"]
        == 3
        == checkpointed(good, "multi-seed0")["optimizer.0.step"]
    )
    page = run.report.read_text(encoding="utf-8")
    assert "Failed: setting multi, seed 0: stopped at step 5" in page
    before = hashes(run.folder)
    status, _, log = answer(monkeypatch, capsys, "run", str(table))
    assert status == 3 and why in log and hashes(run.folder) == before, "run again, it says so again"


@pytest.mark.slow
def test_a_failure_is_the_same_through_a_kill(
    world: Path, tmp_path: Path, spoil: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after each step and gone on with from a checkpoint: the same lines and bits, the same failure."""
    monkeypatch.setattr(report, "write", lambda folder: folder)
    spoil("multi", 2)
    runs = []
    for step in (0, 3, 4, 5):
        out = three(world, tmp_path / f"after-{step}", checkpoint_every=1, skips=3)
        if step:
            with monkeypatch.context() as patch:
                kill_at(patch, step)
                with pytest.raises(Killed):
                    limbeck.run(out, quiet=True)
        with pytest.raises(Failed, match="stopped at step 5, not finite 3 times in a row"):
            limbeck.run(out, quiet=True)
        runs.append(limbeck.Run(tmp_path / f"after-{step}"))
    for run in runs[1:]:
        assert untimed(run.metrics, "") == untimed(runs[0].metrics, "")
        assert untimed(run.evals, "") == untimed(runs[0].evals, "")
        assert run.manifest["failed"] == runs[0].manifest["failed"]
        for name in ("logit-seed0", "multi-seed0", "label-seed0"):
            same(checkpointed(run, name), checkpointed(runs[0], name))


class Killed(Exception):
    """Stands for the end of the process."""


def kill_at(patch: pytest.MonkeyPatch, step: int) -> None:
    plain = session.Session._record

    def record(self: session.Session, record: Record) -> None:
        plain(self, record)
        if record.step == step:
            raise Killed

    patch.setattr(session.Session, "_record", record)


def test_a_run_whose_settings_have_all_failed(
    world: Path, tmp_path: Path, spoil: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends, has a page and a checkpoint, and says the same when it is run again."""
    spoil("multi", 1)
    for _ in range(2):
        with pytest.raises(Failed, match="setting multi, seed 0: stopped at step 3"):
            limbeck.run(three(world, tmp_path / "all", only=["multi"]), quiet=True)
    run = limbeck.Run(tmp_path / "all")
    assert run.manifest["status"] == "failed" and not run.students
    assert run.metrics[-1]["step"] == 3 and "No setting of the run has ended" in run.report.read_text(encoding="utf-8")


def test_a_run_that_took_no_update_has_failed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A weight of 1e300 and fewer steps than `train.skips`; also where it was killed and gone on with, and when it is done."""
    plain = three(world, tmp_path / "none", only=["multi"], steps=3, skips=50, checkpoint_every=1)
    plain["settings"]["multi"]["terms"][2]["weight"] = 1e300
    with monkeypatch.context() as patch:
        kill_at(patch, 2)
        with pytest.raises(Killed):
            limbeck.run(plain, quiet=True)
    table = tmp_path / "none.json"
    table.write_text(json.dumps(plain))
    for _ in range(2):
        status, said, log = answer(monkeypatch, capsys, "run", str(table))
        assert (status, said) == (3, "")
        why = "setting multi, seed 0: all 3 updates were skipped: loss or gradient was not finite"
        assert log.splitlines()[-1].startswith(f"limbeck: failed: {why}")
    run = limbeck.Run(tmp_path / "none")
    assert run.manifest["status"] == "failed" and list(run.manifest["failed"]) == ["multi-seed0"] and not run.students
    assert [row["skipped"] is None for row in run.metrics] == [False] * 3
    page = run.report.read_text(encoding="utf-8")
    assert f"Failed: {why}" in page
    assert re.search(r'<th scope="row">skipped updates</th>\s*<td[^>]*><span>3</span>', page)


def test_a_run_that_took_one_update_is_done(
    world: Path, tmp_path: Path, spoil: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "write", lambda folder: folder)
    spoil("multi", 1)
    run = limbeck.run(three(world, tmp_path / "one", only=["multi", "logit"], steps=3, skips=50), quiet=True)
    assert run.manifest["status"] == "done" and run.manifest["failed"] == {} and len(run.students) == 2
    (line,) = [line for line in run.table().splitlines() if line.startswith("skipped updates")]
    assert line.split()[2:] == ["0", "2"]


@pytest.mark.slow
def test_one_seed_that_fails_leaves_the_others(world: Path, tmp_path: Path, spoil: Callable[..., None]) -> None:
    spoil("multi-seed1", 1)
    with pytest.raises(Failed, match="setting multi, seed 1: stopped"):
        limbeck.run(three(world, tmp_path / "seeds") | {"seeds": [0, 1]}, quiet=True)
    run = limbeck.Run(tmp_path / "seeds")
    assert len(run.students) == 5 and "Failed: setting multi, seed 1" in run.report.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_trial_that_diverges_is_the_worst(world: Path, tmp_path: Path) -> None:
    """Of three rates two explode, really: the study goes on, chooses the third, and says what was found."""
    rates = [1e30, 1e-2, 1e36]
    plain = three(world, tmp_path / "tuned", only=["logit", "multi"], clip=None)
    run = limbeck.run(plain | {"tune": {"vary": {"train.lr": rates}}}, quiet=True)
    told = json.loads((run.folder / "study.json").read_text())["tuned"]
    for name in ("logit", "multi"):
        assert told[name]["chosen"] == {"train.lr": 1e-2}
        assert [loss is None for loss in told[name]["losses"].values()] == [True, False, True]
    assert len(run.students) == 2


@pytest.mark.slow
def test_an_arm_that_diverges_leaves_the_others(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = three(world, tmp_path / "arms", only=["logit"], clip=None) | {"vary": {"train.lr": [1e30, 1e-2]}}
    table = tmp_path / "arms.json"
    table.write_text(json.dumps(plain))
    status, _, log = answer(monkeypatch, capsys, "run", str(table))
    run = limbeck.Run(tmp_path / "arms")
    assert status == 3 and "Traceback" not in log
    assert log.splitlines()[-1].startswith("limbeck: failed: setting logit, seed 0: stopped at step")
    assert [arm.manifest["status"] for arm in run.arms.values()] == ["failed", "done"]
    assert list(run.students) == ["arms/02/logit-seed0"]
    assert "Failed: " in run.report.read_text(encoding="utf-8")
