"""Out of memory: the step is taken again in smaller micro-batches, and is the same update."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel import HIDDEN, LABEL, LOGIT, MULTI, batch, frozen, learner, parameters_of, share, still_of
from torch import Tensor

from limbeck.batch import Batch
from limbeck.distil import schemes
from limbeck.distil.balance import Balance
from limbeck.distil.contrastive import contrastive_memory
from limbeck.distil.learner import Learner
from limbeck.distil.lessons import Pair, Term
from limbeck.distil.schedules import constant
from limbeck.distil.still import Still
from limbeck.distil.teachers import Frozen
from limbeck.errors import UserError
from limbeck.losses import contrastive
from limbeck.system.out_of_memory import Short, is_short
from limbeck.system.processes import World
from limbeck.training.loop import Course, Record, fit

ROOT = Path(__file__).parents[2]
Terms = tuple[Term, ...]
SAID = {
    "gpu": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 "
        "bytes. Error code 12 (Cannot allocate memory)"
    ),
    "windows": lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    "python": MemoryError,
}
CONTRAST = Term(
    "contrast",
    contrastive,
    (Pair("pooled", "pooled", memory="memory"),),
    constant(0.1),
    per="row",
    modules={"memory": contrastive_memory(16, 24, width=8, negatives=4)},
)


class Rows:
    """A feed of `kernel.batch`es."""

    def __init__(self, batch_size: int = 8) -> None:
        self.batch_size, self.step = batch_size, -1

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        self.step = step
        return {name: tensor[rows] for name, tensor in batch(100 + step, rows=self.batch_size, length=20).items()}


class Backward(torch.autograd.Function):
    """The identity, whose gradient finds no memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, error: Callable[[], Exception]) -> Tensor:
        ctx.error = error
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Any:
        raise ctx.error()


def short(
    feed: Rows,
    term: Term,
    rows: int,
    error: Callable[[], Exception] = SAID["gpu"],
    *,
    since: int = 0,
    back: bool = False,
) -> Term:
    """The term, in a machine that has memory for that many rows only, from a step on."""

    def loss(**given: Any) -> Tensor:
        value = term.loss(**given)
        if feed.step < since or len(given["student"]) <= rows:
            return value
        if back:
            return Backward.apply(value, error)  # pyright: ignore
        raise error()

    return replace(term, loss=loss)


def course(feed: Rows, still: Still, *, steps: int = 3, **more: Any) -> Course:
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


def run(feed: Rows, cast: Sequence[tuple[Learner, Terms]], teacher: Frozen | None = None, **more: Any) -> Any:
    """Records, told lines, and the course."""
    told: list[str] = []
    one = course(feed, still_of(teacher or frozen(), cast, chunk=16), tell=told.append, **more)
    records: list[Record] = []
    fit(one, [records.append])
    return records, told, one


def spoiled(feed: Rows, rows: int, *arguments: Any, **more: Any) -> Terms:
    return tuple(short(feed, term, rows, *arguments, **more) if term is HIDDEN else term for term in (*MULTI, LABEL))


def close(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-10, atol=1e-10)


SPLITS = [(8, 4, 2), (8, 2, 4), (8, 1, 8), (6, 1, 6), (5, 2, 3)]  # rows of a batch, rows that fit, parts
CASES = {(*split, error, back) for split in SPLITS for error in SAID for back in (False, True)}
FEW = {(*SPLITS[1], min(SAID), True), (*SPLITS[4], max(SAID), False)}


@pytest.mark.parametrize(
    ("size", "rows", "parts", "error", "back"),
    [pytest.param(*case, marks=() if case in FEW else pytest.mark.slow) for case in sorted(CASES)],
)
def test_the_update_is_the_same(size: int, rows: int, parts: int, error: str, back: bool) -> None:
    """In fp64 without dropout to 1e-10: weights, projections, losses and norms of every step."""
    feed, plain = Rows(size), Rows(size)
    terms = spoiled(feed, rows, SAID[error], since=1, back=back)
    one, twin = learner("multi-seed0", terms), learner("multi-seed0", MULTI)
    records, told, course = run(feed, [(one, terms)])
    expected, _, _ = run(plain, [(twin, (*MULTI, LABEL))])
    close(parameters_of(one), parameters_of(twin))
    assert [record.rows[0]["accumulate"] for record in records] == [1, parts, parts]
    for mine, theirs in zip(records, expected, strict=True):
        for key in ("loss", "grad_norm", "logit_loss", "terms", "grad_norm_layers"):
            assert mine.rows[0][key] == pytest.approx(theirs.rows[0][key], rel=1e-10)
    assert course.way.split >= parts
    assert len(told) == math.ceil(math.log2(parts)) and all("\n" not in line for line in told)
    assert told[-1].startswith(f"step 2: out of memory; from now on {parts} micro-batches") and "fewer rows" in told[-1]


@pytest.mark.slow
def test_the_random_streams_are_those_of_the_new_split() -> None:
    """With dropout: the bits of a run that had the smaller micro-batches from the beginning."""
    feed = Rows()
    terms = spoiled(feed, 4)
    one, twin = learner("multi-seed0", terms, dropout=0.2), learner("multi-seed0", MULTI, dropout=0.2)
    run(feed, [(one, terms)])
    run(Rows(), [(twin, (*MULTI, LABEL))], accumulate=2)
    assert all(torch.equal(t, parameters_of(twin)[n]) for n, t in parameters_of(one).items())


def test_it_stays_so_after_a_resume() -> None:
    """What the checkpoint holds of it is enough: the second half does not fail once more, and ends in the same bits."""
    ends = []
    for parts in ([3], [2, 3]):
        feed = Rows()
        terms, start, way, tokens, lines = spoiled(feed, 4), 0, {}, {}, []
        one = learner("multi-seed0", terms, dropout=0.2)
        for steps in parts:
            _, told, done = run(feed, [(one, terms)], start=start, steps=steps, tokens=tokens, **way)
            start, way = steps, {"way": replace(done.way)}
            lines += told
        assert len(lines) == 1
        ends.append(parameters_of(one))
    assert all(torch.equal(t, ends[1][n]) for n, t in ends[0].items())


@pytest.mark.slow
def test_what_the_failed_try_has_seen_is_forgotten() -> None:
    """A memory bank takes every row once, and its first negatives are the same."""
    ends = []
    for rows in (4, 99):
        feed = Rows()
        terms = (CONTRAST, short(feed, replace(HIDDEN, pairs=HIDDEN.pairs[:1]), rows))
        one = learner("a", terms)
        teacher = Frozen("teacher", frozen().model, ["hidden.2", "pooled", "logits"])
        run(feed, [(one, terms)], teacher)
        memory: Any = one.modules["memory"]
        assert memory.updates == 3 and not memory._seen
        ends.append({"bank": memory.teacher_bank.clone(), "student": memory.student_bank.clone(), **parameters_of(one)})
    close(*ends)


@pytest.mark.parametrize("how", ["gradient", "uncertainty"])
def test_a_probe_that_runs_short_is_taken_again(how: str) -> None:
    ends = []
    for rows in (4, 99):
        feed = Rows()
        terms = spoiled(feed, rows)
        one = learner("a", terms)
        one.balance = Balance(how, [term.name for term in terms])
        one.optimizer = one._adamw()
        records, told, _ = run(feed, [(one, terms)], probes=lambda step: step == 0)
        assert len(told) == (rows < 8) and one.balance.probes == 1
        ends.append((parameters_of(one), [record.rows[0]["gradient_share"] for record in records]))
    close(ends[0][0], ends[1][0])
    assert ends[0][1][0] == pytest.approx(ends[1][1][0], rel=1e-6)


@pytest.mark.slow
def test_of_peers_that_take_turns_each_is_updated_once() -> None:
    """The second runs short after the first one was updated: the first is left as it is."""
    ends = []
    for rows in (4, 99):
        feed = Rows()
        peer = replace(LOGIT, name="peer", teacher="peers")
        inner = replace(HIDDEN, pairs=(replace(HIDDEN.pairs[1], teacher="hidden.2", projection=None),), teacher="peers")
        pair = [learner(f"mutual-seed0-{name}", (peer, inner), seed=seed) for seed, name in enumerate("ab")]
        cast = schemes.mutual(pair, {}, (peer, inner), alternate=True)
        late = short(feed, inner, rows)
        lessons = [replace(it, terms=(peer, late)) if it.student == "mutual-seed0-b" else it for it in cast.lessons]
        still = schemes.together([replace(cast, lessons=tuple(lessons))], chunk=16)
        told: list[str] = []
        fit(course(feed, still, tell=told.append), [])
        assert len(told) == (rows < 8)
        ends.append({f"{one.name} {n}": t for one in pair for n, t in parameters_of(one).items()})
    close(*ends)


def test_where_one_row_does_not_fit_the_remedy_is_named() -> None:
    feed = Rows(4)
    terms = spoiled(feed, 0)
    one = learner("multi-seed0", terms)
    before = parameters_of(one)
    with pytest.raises(UserError, match=r"^step 1: out of memory with one row at a time; ") as caught:
        run(feed, [(one, terms)])
    for remedy in ("train.chunk", "data.max_length", "fewer settings together", "train.precision", "bf16"):
        assert remedy in str(caught.value)
    assert all(torch.equal(t, before[n]) for n, t in parameters_of(one).items())
    assert all(p.grad is None for p in one.parameters)


def test_an_optimizer_that_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    one = learner("multi-seed0", (LOGIT,))

    def step() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(one.optimizer, "step", step)
    with pytest.raises(UserError, match=r"step 1: out of memory beside the batch.*train\.precision"):
        run(Rows(), [(one, (LOGIT,))])


def test_other_errors_are_ours() -> None:
    """What is no shortage of memory is not tried again."""
    feed, tries = Rows(), []

    def wrong() -> Exception:
        tries.append(None)
        return RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    terms = spoiled(feed, 1, wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        run(feed, [(learner("a", terms), terms)])
    assert len(tries) == 1
    assert not is_short(ValueError("out of memory")) and is_short(RuntimeError("std::bad_alloc"))


def test_a_still_alone_says_that_it_is_short() -> None:
    feed = Rows()
    feed.step, terms = 0, spoiled(feed, 0)
    one, whole = learner("a", terms), [batch()]
    with pytest.raises(Short):
        still_of(frozen(), [(one, terms)], chunk=16).step(share(whole), 0)
    assert all(p.grad is None for p in one.parameters)


REAL = """
import json, re, resource, sys
from pathlib import Path
sys.path[:0] = ["tests", "tests/faults"]
import torch
from kernel import SCORES, batch, frozen, learner, parameters_of, still_of
from limbeck.training.loop import fit
from test_memory_faults import Rows, course

class Large(Rows):
    def batch(self, step, rows=slice(None)):
        return {name: tensor[rows] for name, tensor in batch(7, rows=self.batch_size, length=32, padded=False).items()}

torch.set_num_threads(1)
room, told, rows = float(sys.argv[1]), [], []
one = learner("a", (SCORES,))
still = still_of(frozen(), [(one, (SCORES,))], chunk=64)
fit(course(Large(2), still, steps=1), [])
if room:
    used = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + int(room * 2**20), resource.RLIM_INFINITY))
large = course(Large(2048), still, start=1, steps=2, tell=told.append)
fit(large, [lambda record: rows.extend(record.rows)])
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(json.dumps([told, rows[0], {name: tensor.tolist() for name, tensor in parameters_of(one).items()}]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the size of the address space is read from /proc")
def test_a_real_allocator_that_has_no_more() -> None:
    """A process with 300 MiB for a step that takes more: torch's own allocator fails, and the update is the same."""
    found = []
    for room in ("300", "0"):
        process = subprocess.run(
            [sys.executable, "-c", REAL, room], capture_output=True, text=True, timeout=600, check=False, cwd=ROOT
        )
        assert process.returncode == 0, process.stderr[-4000:]
        found.append(json.loads(process.stdout))
    (told, row, mine), (nothing, whole, theirs) = found
    assert told and not nothing and row["accumulate"] > whole["accumulate"] == 1
    assert row["loss"] == pytest.approx(whole["loss"], rel=1e-10)
    for name, tensor in theirs.items():
        torch.testing.assert_close(
            torch.tensor(mine[name]).double(), torch.tensor(tensor).double(), rtol=1e-9, atol=1e-9
        )


SEVERAL = """
import json, sys
sys.path[:0] = ["tests", "tests/faults"]
import torch
from dataclasses import replace
from pathlib import Path
from kernel import HIDDEN, LABEL, MULTI, frozen, learner, parameters_of, still_of
from limbeck.training.loop import fit
from limbeck.system.processes import World
from test_memory_faults import Rows, course, short
from test_numbers import broken

torch.set_num_threads(1)
world = World.join("cpu")
feed, terms = Rows(), (*MULTI, LABEL)
if world.rank == 1 and sys.argv[2] == "short":
    terms = tuple(short(feed, term, 2, since=1) if term.name == "hidden" else term for term in terms)
if world.rank == 1 and sys.argv[2] == "broken":
    terms = tuple(broken(feed, term, [1, 2]) if term.name == "hidden" else term for term in terms)
one, other = learner("multi-seed0", terms), learner("label-seed0", (LABEL,))
still = still_of(frozen(), [(one, terms), (other, (LABEL,))], chunk=16, world=world)
rows, told = [], []
run = course(feed, still, world=world, tell=told.append, skips=2, steps=4)
fit(run, [lambda record: rows.extend(record.rows)])
names = ("step", "setting", "skipped", "accumulate", "loss")
said = {
    "told": told,
    "rows": [{name: row[name] if row[name] == row[name] else None for name in names} for row in rows],
    "failed": run.way.failed,
    "split": run.way.split,
    "ends": {it.name: {n: t.tolist() for n, t in parameters_of(it).items()} for it in (one, other)},
}
Path(sys.argv[1], f"{world.rank}.json").write_text(json.dumps(said))
World.leave()
"""


def several(folder: Path, what: str, size: int) -> list[dict[str, Any]]:
    """What each process of a loop says, whose second process is short of memory or has a term that is not finite."""
    folder.mkdir()
    (folder / "loop.py").write_text(SEVERAL)
    launcher = ["-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={size}", "--rdzv-backend=c10d",
                "--rdzv-endpoint=localhost:0"]  # fmt: skip
    process = subprocess.run(
        [sys.executable, *launcher, str(folder / "loop.py"), str(folder), what],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=ROOT,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def alike(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name, tensor in mine.items():
        mine_d, theirs_d = (torch.tensor(it, dtype=torch.float64) for it in (tensor, theirs[name]))
        torch.testing.assert_close(mine_d, theirs_d, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_processes_agree(tmp_path: Path) -> None:
    """Short, or not finite, in one of two processes: both take smaller micro-batches, both skip, both stop the setting."""
    alone = several(tmp_path / "alone", "plain", 1)[0]
    one, other = several(tmp_path / "short", "short", 2)
    assert one["split"] == other["split"] == 2 and len(one["told"]) == 1 and not other["told"]
    assert one["ends"] == other["ends"]
    for name, ends in one["ends"].items():
        alike(ends, alone["ends"][name])
    assert [row["accumulate"] for row in one["rows"]] == [1, 1, 2, 2, 2, 2, 2, 2]
    one, other = several(tmp_path / "broken", "broken", 2)
    assert one == other and list(one["failed"]) == ["multi-seed0"]
    multi = [row["skipped"] for row in one["rows"] if row["setting"] == "multi"]
    assert multi == [None, "term hidden, layer 1", "term hidden, layer 1"]
    alike(one["ends"]["label-seed0"], alone["ends"]["label-seed0"])
