"""The teacher cache: a run from it is the run of the live teacher; what is stale, foreign or damaged is not used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pair
import pytest
import torch
from kernel import TEACHER_DEPTH, TEACHER_WIDTH, answer, bert, lay_out, tokenizer
from kernel import recipe as of_text
from rows import bare, framed, sentence, small, table
from rows import recipe as of_rows
from runfiles import hashes, same_run, tensors
from transformers import AutoModelForMaskedLM

import limbeck
from limbeck import api
from limbeck.assemble import design
from limbeck.assemble.study import build_study
from limbeck.assemble.text import read_text
from limbeck.distil.still import Still
from limbeck.distil.teachers import Frozen
from limbeck.errors import Interrupted, UserError
from limbeck.losses.sparse import dense
from limbeck.recipe.load import load
from limbeck.running import stages
from limbeck.system.processes import World
from limbeck.teacher_cache import shelf

pytestmark = pytest.mark.usefixtures("fast")

STATIC = {"mode": "static", "probability": 0.3}
EXACTLY = {"top_k": 60, "states": "fp32"}  # as many tokens as there are, in full
INNER = [
    {"loss": "forward_kl"},
    {"loss": "mse", "tap": "hidden"},
    {"loss": "mse", "tap": "embedding"},
    {"loss": "attention_kl", "tap": "scores"},
    {"loss": "relation_kl", "tap": ["query", "key", "value"], "layers": "last"},
    {"loss": "cosine", "tap": "ffn"},
    {"loss": "cka", "tap": "pooled"},
]
SETTINGS = {
    "logit": {"terms": [{"loss": "forward_kl", "temperature": 2.0}]},
    "inner": {"terms": [{"loss": "mse", "tap": "hidden"}, {"loss": "attention_mse", "tap": "probs", "weight": 0.1}]},
    "multi": {"terms": INNER},
}


def opinions(count: int, first: int = 0) -> list[dict[str, Any]]:
    kinds = ("bad", "good", "middling")
    return [{"sentence": sentence(i), "label": kinds[i % 3], "score": i % 7 / 2} for i in range(first, first + count)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Masked and causal teachers over running text, a second one of another width, classifiers over rows."""
    folder = lay_out(tmp_path_factory.mktemp("world"))
    wide = bert(32, 3, seed=5, noise=0.1).float()
    wide.resize_token_embeddings(64)
    kinds = {"wide": (wide, tokenizer()), "gpt2": (small("gpt2", layers=3), bare("<s>", "$A", "</s>"))}
    kinds["classes"] = small(layers=2, classes=3, id2label=dict(enumerate(("bad", "good", "middling")))), framed()
    kinds["scores"] = small(layers=2, classes=1, problem_type="regression"), framed()
    for name, (model, words) in kinds.items():
        model.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    table(folder / "rows" / "train.jsonl", opinions(48))
    table(folder / "rows" / "dev.jsonl", opinions(21, 48))
    table(folder / "more.jsonl", opinions(20, 100))
    (folder / "more.txt").write_text("\n\n".join(sentence(i) * 3 for i in range(60)), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones, so that there are several, of which the last is not full."""
    monkeypatch.setattr(shelf, "SHARD", 40)
    monkeypatch.setattr(shelf, "ROWS", 16)


def text(world: Path, out: Path, **more: Any) -> dict[str, Any]:
    """A recipe over running text, with a cache beside its run."""
    made = of_text(world, out, train=more.pop("train", {}), **{"settings": SETTINGS, **more.pop("also", {})})
    made["data"] |= {"masking": STATIC, "cache": str(out.parent / "cache"), **more.pop("data", {})}
    made["models"] |= more.pop("models", {})
    return made | more


def causal(world: Path, out: Path, **more: Any) -> dict[str, Any]:
    student = {"layers": 1, "hidden": 16, "heads": 4, "intermediate": 32}
    said = text(world, out, models={"teacher": str(world / "gpt2"), "student": student}, **more)
    said["data"] |= {"positions": "all"}
    del said["data"]["masking"]
    return said


def rows(world: Path, out: Path, kind: str, **more: Any) -> dict[str, Any]:
    task = {"kind": "classification"} if kind == "classes" else {"kind": "regression", "label": "score"}
    models = {"teacher": str(world / kind), "student": {"layers": 1}}
    said = of_rows({"corpus": str(world / "rows"), "task": task, **more.pop("data", {})}, models, out, "forward_kl")
    loss = "forward_kl" if kind == "classes" else "logit_mse"
    inner = [{"loss": loss}, {"loss": "mse", "tap": "hidden"}, {"loss": "attention_kl", "tap": "scores"}]
    return said | {"settings": {"a": {"terms": [{"loss": loss}]}, "b": {"terms": inner}}} | more


def entries(out: Path) -> list[Path]:
    """The folders of the cache beside a run, one for each key."""
    return sorted((out.parent / "cache" / "teacher").iterdir())


def run(said: dict[str, Any]) -> limbeck.Run:
    return limbeck.run(said, quiet=True)


def near(one: limbeck.Run, other: limbeck.Run, bound: float) -> None:
    """Terms, losses and weights, relative to their size."""
    near_losses(one, other, bound)
    for name in other.students:
        found, expected = tensors(one, name), tensors(other, name)
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=bound, atol=bound)


def near_losses(one: limbeck.Run, other: limbeck.Run, bound: float) -> None:
    assert len(one.metrics) == len(other.metrics) > 0
    for mine, theirs in zip(one.metrics, other.metrics, strict=True):
        assert mine["terms"].keys() == theirs["terms"].keys()
        for name, value in theirs["terms"].items():
            assert mine["terms"][name] == pytest.approx(value, rel=bound, abs=bound), (mine["step"], name)
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=bound)


# as alive

CASES: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "masked": lambda world, out: text(world, out),
    "everywhere": lambda world, out: text(world, out, data={"positions": "all"}),
    "unmasked": lambda world, out: text(world, out, data={"positions": "all", "masking": {"mode": "none"}}),
    "micro-batches": lambda world, out: text(world, out, train={"accumulate": 2, "probe_every": 2}),
    "unlabelled": lambda world, out: text(
        world, out, data={"unlabelled": {"corpus": str(world / "more.txt"), "share": 0.5}}
    ),
    "sampled": lambda world, out: text(world, out, data={"positions": {"sampled": 0.3}}),
    "causal": causal,
    "ensemble": lambda world, out: text(
        world,
        out,
        models={"teacher": {"ensemble": [str(world / "teacher"), str(world / "wide")], "average": "probabilities"}},
        also={"settings": {"logit": SETTINGS["logit"]}},
    ),
    "named": lambda world, out: text(
        world,
        out,
        models={"teachers": {"wide": str(world / "wide")}},
        also={
            "settings": {
                "a": {
                    "terms": [
                        {"loss": "forward_kl"},
                        {"loss": "mse", "tap": "hidden", "teacher": "wide", "layers": "last"},
                    ]
                },
                "b": {"terms": [{"loss": "reverse_kl", "teacher": "wide"}]},
            }
        },
    ),
    "classes": lambda world, out: rows(world, out, "classes"),
    "scores": lambda world, out: rows(world, out, "scores"),
    "unlabelled rows": lambda world, out: rows(
        world, out, "classes", data={"unlabelled": {"corpus": str(world / "more.jsonl"), "share": 0.25}}
    ),
}


def exactly(said: dict[str, Any]) -> dict[str, Any]:
    """In fp64: Adam makes much of the rounding of a gradient that is 0 but for it, such as that of a key's bias."""
    return said | {"train": said["train"] | {"precision": "fp64"}}


@pytest.mark.parametrize("case", CASES)
def test_the_run_of_the_live_teacher(case: str, world: Path, tmp_path: Path) -> None:
    """With all that the teacher says kept in full: losses and final weights to 1e-5, evaluations too."""
    live = run(exactly(CASES[case](world, tmp_path / "live")))
    kept = run(exactly(CASES[case](world, tmp_path / "kept")) | {"cache": EXACTLY})
    near(kept, live, 1e-5)
    for mine, theirs in zip(kept.evals, live.evals, strict=True):
        for measure in ("logit_loss", "agreement"):
            if theirs[measure] is not None:
                assert mine[measure] == pytest.approx(theirs[measure], rel=1e-4, abs=1e-5)
    assert len(entries(tmp_path / "kept")) == (2 if case in ("ensemble", "named") else 1)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["bf16", "int8"])
def test_states_of_fewer_bits_are_near(how: str, world: Path, tmp_path: Path) -> None:
    live = run(text(world, tmp_path / "live"))
    kept = run(text(world, tmp_path / "kept", cache={"top_k": 60, "states": how}))
    near_losses(kept, live, 0.02)
    with pytest.raises(AssertionError):
        near_losses(kept, live, 1e-6)  # else nothing was shortened


@pytest.mark.slow
def test_some_tokens_of_a_prediction_are_near(world: Path, tmp_path: Path) -> None:
    """30 of 60: the first loss by hand over the 30 and all others as one, at temperature 2; the students learn the same."""
    said = text(world, tmp_path / "live", only=["logit"])
    live, kept = run(said), run(text(world, tmp_path / "kept", only=["logit"], cache={"top_k": 30}))
    plan = design.design(load(said))
    study = build_study(plan, World(), read_text(plan, lambda line: None))
    batch, actors = study.feeds[0].batch(0), study.stills[0].actors
    teacher, student = (_said(actors[name], batch) for name in ("teacher", "logit-seed0"))
    top = teacher.topk(30).indices
    buckets = []
    for logits in (teacher, student):
        p = logits.softmax(-1)
        some = p.gather(-1, top)
        buckets.append((torch.cat([some, 1 - some.sum(-1, keepdim=True)], -1).log() / 2).log_softmax(-1))
    by_hand = 4 * (buckets[0].exp() * (buckets[0] - buckets[1])).sum(-1).mean().item()
    assert kept.metrics[0]["loss"] == pytest.approx(by_hand, rel=5e-3)
    assert kept.metrics[0]["logit_loss"] is None and kept.metrics[0]["terms"].keys() == {"logit"}
    last = [[row["logit_loss"] for row in it.evals if row["split"] == "test"] for it in (kept, live)]
    assert last[0][-1] == pytest.approx(last[1][-1], rel=0.05) and last[0][-1] < last[0][0]


def _said(actor: Any, batch: Any) -> torch.Tensor:
    with torch.no_grad():
        return dense(actor.logits(actor.forward(batch).features[batch["select"]])).double()


READING = [
    {"loss": "factor_transfer", "tap": "hidden", "layers": "last", "paraphraser_steps": 2},
    {"loss": "contrastive", "tap": "pooled", "negatives": 6, "width": 8},
    {"loss": "forward_kl"},
]


@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16"])
@pytest.mark.parametrize("how", ["fp32", "bf16", "int8"])
def test_modules_read_what_was_kept(how: str, precision: str, world: Path, tmp_path: Path) -> None:
    """States reach paraphrasers and projections in the precision of the teacher, however they were kept."""
    train = {"precision": precision, "steps": 2, "eval_every": 2}
    said = text(world, tmp_path / "run", train=train, also={"settings": {"a": {"terms": READING}}})
    made = run(said | {"cache": {"top_k": 10, "states": how}})
    live = run({**said, "out": str(tmp_path / "live")})
    for mine, theirs in zip(made.metrics, live.metrics, strict=True):
        for name in ("hidden", "pooled"):
            assert mine["terms"][name] == pytest.approx(theirs["terms"][name], rel=0.05)


# who runs


class Watch:
    """Counts how often fixed teachers read, within steps of training and outside of them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.training = self.writing = self.other = 0
        self._inside: list[str] = []
        forward, step, write = Frozen.forward, Still.step, shelf.AnswerShelf._write

        def reads(one: Frozen, *given: Any, **how: Any) -> Any:
            where = self._inside[-1] if self._inside else "other"
            setattr(self, where, getattr(self, where) + 1)
            return forward(one, *given, **how)

        def within(name: str, call: Any) -> Any:
            def go(*given: Any, **how: Any) -> Any:
                self._inside.append(name)
                try:
                    return call(*given, **how)
                finally:
                    self._inside.pop()

            return go

        patch.setattr(Frozen, "forward", reads)
        patch.setattr(Still, "step", within("training", step))
        patch.setattr(shelf.AnswerShelf, "_write", within("writing", write))


@pytest.mark.slow
def test_the_second_run_reads_and_the_teacher_sleeps(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    run(text(world, tmp_path / "live"))
    assert watch.training == 6 and watch.writing == 0, "else nothing is counted"
    first, watch = run(text(world, tmp_path / "first", cache={})), Watch(monkeypatch)
    bytes_of = hashes(tmp_path / "cache")
    second = run(text(world, tmp_path / "second", cache={}))
    assert watch.training == watch.writing == 0 and watch.other > 0, "evaluations ask the live teacher"
    assert hashes(tmp_path / "cache") == bytes_of
    same_run(second, first)


def test_the_first_run_asks_for_every_row_once(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)
    made = run(text(world, tmp_path / "first", cache={}))
    blocks = made.manifest["data"]["blocks"]
    shards = [-(-min(40, blocks - start) // 16) for start in range(0, blocks, 40)]
    assert watch.training == 0 and watch.writing == sum(shards) and len(shards) > 2


@pytest.mark.slow
def test_one_cache_for_what_is_masked_alike(world: Path, tmp_path: Path) -> None:
    """Causal text is the same for all seeds; masks of static masking, and a share of the positions, are drawn for each."""
    some = {"positions": {"sampled": 0.3}}
    for name, make, count in (("causal", causal, 1), ("static", text, 2), ("sampled", causal, 2)):
        out = tmp_path / name / "run"
        said = make(world, out, seeds=[0, 1], cache={})
        said["data"] |= some if name == "sampled" else {}
        run(said)
        assert len(entries(out)) == count


@pytest.mark.slow
def test_other_students_and_rates_share_it(world: Path, tmp_path: Path) -> None:
    """What the answers are no function of makes no new cache; neither does a teacher's folder of another name."""
    run(text(world, tmp_path / "one", cache={}))
    before = hashes(tmp_path / "cache" / "teacher")
    shutil.copytree(world / "teacher", tmp_path / "moved")
    student = {"layers": 1, "hidden": 8, "heads": 4, "intermediate": 16}
    settings = {"a": {"terms": [*INNER, *SETTINGS["inner"]["terms"][1:]]}}
    said = text(world, tmp_path / "two", train={"lr": 1e-3, "steps": 2, "batch_size": 8}, also={"settings": settings})
    said["models"] = {"teacher": str(tmp_path / "moved"), "student": student}
    said["settings"] = {"a": {"terms": [{"loss": "reverse_kl"}]}}
    run(said | {"cache": {}})
    assert len(entries(tmp_path / "two")) == 2, "other states are asked for"
    run(
        text(
            world,
            tmp_path / "three",
            train={"lr": 1e-3, "steps": 2},
            models={"teacher": str(tmp_path / "moved")},
            cache={},
        )
    )
    after = hashes(tmp_path / "cache" / "teacher")
    assert before.items() <= after.items() and len(entries(tmp_path / "two")) == 2


# what is not used


def changed(world: Path, tmp_path: Path, what: str) -> dict[str, Any]:
    """A recipe that is another in one thing that the answers are a function of."""
    said = text(world, tmp_path / what, cache={})
    if what == "seed":
        said["seeds"] = [7]
    if what == "probability":
        said["data"]["masking"] = {"mode": "static", "probability": 0.31}
    if what == "positions":
        said["data"]["positions"] = "all"
    if what == "length":
        said["data"]["max_length"] = 12
    if what == "heldout":
        said["data"]["heldout"] = 0.3
    if what in ("top_k", "states"):
        said["cache"] = {"top_k": 49} if what == "top_k" else {"states": "int8"}
    if what == "precision":
        said["train"]["precision"] = "bf16"
    if what == "text":
        words = (world / "corpus.txt").read_text(encoding="utf-8").split("\n\n")
        (tmp_path / "corpus.txt").write_text("\n\n".join([*words[1:], words[0][::-1]]), encoding="utf-8")
        said["data"]["corpus"] = str(tmp_path / "corpus.txt")
    if what == "weights":
        shutil.copytree(world / "teacher", tmp_path / "other")
        model = AutoModelForMaskedLM.from_pretrained(tmp_path / "other")
        with torch.no_grad():
            next(model.bert.encoder.parameters()).view(-1)[5] += 1e-3  # pyright: ignore[reportAttributeAccessIssue]
        model.save_pretrained(tmp_path / "other")
        said["models"]["teacher"] = str(tmp_path / "other")
    return said


WAYS = ["seed", "probability", "positions", "length", "heldout", "top_k", "states", "precision", "text", "weights"]


@pytest.mark.parametrize("what", WAYS)
def test_other_answers_are_other_caches(what: str, world: Path, tmp_path: Path) -> None:
    """The run is that of a cache of its own; the first one stays as it is."""
    run(text(world, tmp_path / "one", train={"steps": 2}, cache={}))
    (old,) = entries(tmp_path / "one")
    before, said = hashes(old), changed(world, tmp_path, what)
    found = run(said)
    assert len(entries(tmp_path / "one")) == 2 and hashes(old) == before
    alone = tmp_path / "alone" / "run"
    said["data"]["cache"] = str(alone.parent / "cache")
    same_run(found, run(said | {"out": str(alone)}))


def spoiled(place: Path, how: str) -> None:
    """Damages the first shard."""
    file = place / "00000" / ("index.npy" if how == "index" else "logits.bin")
    if how == "missing":
        (place / "00000" / "hidden.2.bin").unlink()
    elif how == "facts":
        facts = json.loads((place / "00000" / "facts.json").read_text())
        facts["facts"]["widths"]["logits"] += 1
        (place / "00000" / "facts.json").write_text(json.dumps(facts))
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["flipped", "truncated", "missing", "facts", "index"])
def test_damage_is_named_and_mended(how: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(text(world, tmp_path / "first", cache={}))
    (place,) = entries(tmp_path / "first")
    before = hashes(place)
    spoiled(place, how)
    assert hashes(place) != before
    capsys.readouterr()
    second = limbeck.run(text(world, tmp_path / "second", cache={}))
    lines = [line for line in capsys.readouterr().err.splitlines() if "the cache is damaged" in line]
    assert len(lines) == 1 and str(place / "00000") in lines[0]
    assert hashes(place) == before
    same_run(second, first)


@pytest.mark.parametrize("whence", ["another key", "another number"])
def test_a_shard_from_elsewhere_is_refused(whence: str, world: Path, tmp_path: Path) -> None:
    """Whole, with sound checksums, of the same shape: and named otherwise than what it holds."""
    run(text(world, tmp_path / "one", train={"steps": 2}, cache={}))
    (place,) = entries(tmp_path / "one")
    source = place / "00001"
    if whence == "another key":
        run(changed(world, tmp_path, "weights"))
        source = next(folder for folder in entries(tmp_path / "one") if folder != place) / "00000"
    shutil.rmtree(place / "00000")
    shutil.copytree(source, place / "00000")
    with pytest.raises(
        UserError, match=r"00000: holds (other answers|another entry) than its name says; remove the folder"
    ):
        run(text(world, tmp_path / "two", train={"steps": 2}, cache={}))
    assert not (tmp_path / "two" / "checkpoints").exists()


@pytest.mark.parametrize("what", ["input_ids", "select", "blocks"])
def test_a_row_of_other_text_is_refused(what: str, world: Path, tmp_path: Path) -> None:
    """The last line of defence: each row carries a checksum of what the teacher read."""
    plan = design.design(load(text(world, tmp_path / "run", cache={})))
    study = build_study(plan, World(), read_text(plan, lambda line: None))
    teacher: Any = study.stills[0].actors["teacher"]
    batch = study.feeds[0].batch(0)
    assert teacher.forward(batch).features.shape[:2] == batch["input_ids"].shape
    other = {name: tensor.clone() for name, tensor in batch.items()}
    if what == "blocks":
        other["blocks"] = other["blocks"].flip(0)
    elif what == "select":
        other["select"][1, 3] ^= True
    else:
        other["input_ids"][2, 4] += 1
    with pytest.raises(UserError, match=r"row \d+ is another text than the teacher read; remove the folder"):
        teacher.forward(other)


# interrupted


class Killed(BaseException):
    """What no one catches."""


def test_killed_while_writing(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of the second shard: the first stays, the others are written by the next start."""
    alone = tmp_path / "alone" / "run"
    expected = run(text(world, alone, cache={}))
    read, reads = shelf.AnswerShelf._arrays, []

    def dies(one: shelf.AnswerShelf, batch: Any) -> Any:
        reads.append(1)
        if len(reads) == 5:  # of three reads a shard
            raise Killed
        return read(one, batch)

    said = text(world, tmp_path / "run", cache={})
    with monkeypatch.context() as patch:
        patch.setattr(shelf.AnswerShelf, "_arrays", dies)
        with pytest.raises(Killed):
            run(said)
    (place,) = entries(tmp_path / "run")
    assert [folder.name for folder in place.iterdir()] == ["00000"]
    first, watch = hashes(place / "00000"), Watch(monkeypatch)
    found = run(said)
    (whole,) = entries(alone)
    assert hashes(place) == hashes(whole) and hashes(place / "00000") == first
    blocks = found.manifest["data"]["blocks"]
    assert watch.writing == sum(-(-min(40, blocks - start) // 16) for start in range(40, blocks, 40))
    same_run(found, expected)


@pytest.mark.slow
def test_a_writer_that_nobody_could_stop_leaves_no_harm(world: Path, tmp_path: Path) -> None:
    """A folder that was being filled when the machine went down is not read."""
    first = run(text(world, tmp_path / "first", cache={}))
    (place,) = entries(tmp_path / "first")
    (place / "00001").rename(place / f"00001.{'0' * 32}.tmp")
    (place / f"00001.{'0' * 32}.tmp" / "logits.bin").write_bytes(b"half")
    same_run(run(text(world, tmp_path / "second", cache={})), first)


@pytest.mark.slow
def test_asked_to_stop_while_writing(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    @contextmanager
    def signals() -> Iterator[Callable[[], bool]]:
        yield lambda: asked.append(1) or len(asked) > 4

    said = text(world, tmp_path / "run", cache={})
    with monkeypatch.context() as patch:
        patch.setattr(stages, "interruptible", signals)
        with pytest.raises(Interrupted, match="while answers of the teacher were written; run it again to go on"):
            run(said)
    (place,) = entries(tmp_path / "run")
    assert [folder.name for folder in place.iterdir()] == ["00000"]
    expected = run(text(world, tmp_path / "alone" / "run", cache={}))
    same_run(run(said), expected)


def test_a_full_disk_is_named(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = design.design(load(text(world, tmp_path / "run", cache={})))
    material = read_text(plan, lambda line: None)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shelf.shards.np, "save", full)
    with pytest.raises(UserError, match=r"No space left on device; make room, or name another disk with data\.cache"):
        build_study(plan, World(), material)
    assert not list(entries(tmp_path / "run")[0].iterdir())


# two processes


@pytest.mark.slow
def test_two_processes_write_side_by_side(world: Path, tmp_path: Path) -> None:
    """Each its share of the shards: the same bytes as of one process, and the run is that of one."""
    how: dict[str, Any] = {"train": {"precision": "fp64", "batch_size": 8}, "only": ["logit", "inner"], "cache": {}}
    alone = run(text(world, tmp_path / "one" / "run", **how))
    script = tmp_path / "small.py"
    script.write_text(
        "from limbeck import cli\nfrom limbeck.teacher_cache import shelf\nshelf.SHARD, shelf.ROWS = 40, 16\ncli.main()\n"
    )
    both = tmp_path / "two" / "run"
    both.parent.mkdir()
    pair.launch(text(world, both, **how), both.parent, script)
    found = limbeck.Run(both)
    assert found.manifest["processes"] == 2
    assert hashes(both.parent / "cache" / "teacher") == hashes(tmp_path / "one" / "cache" / "teacher")
    assert len(list(entries(both)[0].iterdir())) > 2
    near(found, alone, 1e-8)


# words


def refused(said: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        api.check(said)


def test_what_cannot_be_kept_is_refused_with_the_remedy(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    dynamic = text(world, out, cache={}, data={"masking": {"mode": "dynamic"}})
    refused(dynamic, "a cache holds one masking; set data.masking.mode to static")
    raw = {"settings": {"a": {"terms": [{"loss": "logit_mse"}]}}}
    refused(
        text(world, out, also=raw, cache={}), r"settings\.a\.logit: logit_mse looks at every column, .* use forward_kl"
    )
    api.check(text(world, out, also=raw, cache=EXACTLY))  # all of them are kept
    many = {"settings": {"a": {"terms": [{"loss": "topk_kl", "k": 55}]}}}
    refused(text(world, out, also=many, cache={}), "k is 55, and the cache keeps 50 tokens; raise cache.top_k to it")
    own = {"settings": {"a": {"terms": [{"loss": "tests_own:mean_square"}]}}}
    refused(text(world, out, also=own, cache={}), "tests_own:mean_square looks at every column|cannot be imported")
    refused(text(world, out, cache={"top_k": 0}), "top_k")
    refused(text(world, out, cache={"states": "fp16"}), "states")
    refused(text(world, out, cache={"topk": 5}), "topk")
    assert not out.exists()


def test_the_command(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Writes what the run then reads; says where and how much."""
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(text(world, tmp_path / "run", cache={})))
    status, said, _ = answer(monkeypatch, capsys, "cache", str(path))
    (place,) = entries(tmp_path / "run")
    size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    assert status == 0 and said.splitlines() == [f"{place}  {size / 2**20:,.1f} MiB"]
    assert not (tmp_path / "run").exists()
    before, watch = hashes(place), Watch(monkeypatch)
    run(json.loads(path.read_text()))
    assert watch.writing == watch.training == 0 and hashes(place) == before


def test_the_command_without_the_word(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(text(world, tmp_path / "run")))
    status, said, log = answer(monkeypatch, capsys, "cache", str(path))
    assert status == 2 and not said
    (line,) = log.splitlines()
    assert line.endswith("cache: this recipe keeps no answers; add `cache: {}` to it, or cache={} to the command")
    status, said, _ = answer(monkeypatch, capsys, "cache", str(path), "cache={}")
    assert status == 0 and len(said.splitlines()) == 1


def test_check_says_how_much(world: Path, tmp_path: Path) -> None:
    """And so much is written: bytes of the files over tokens and predictions."""
    said = text(world, tmp_path / "run", cache={"top_k": 10, "states": "int8"}, only=["multi"])
    (line,) = [line for line in api.check(said) if "cache of teacher" in line]
    bits = 10 * (2 + 6) + 10 + 15  # two low bits and six of a probability a token; 15 values of the high ones
    hidden = 3 * (TEACHER_WIDTH + 4)  # embedding and two layers, each with its scale
    maps = 2 * 2 * (TEACHER_WIDTH + 4) + (TEACHER_WIDTH + 4)  # queries and keys of two layers, values of one
    ffn = 2 * (2 * TEACHER_WIDTH + 4)
    states = hidden + maps + ffn
    assert f"{4 + -(-bits // 8)} bytes a selected token, {states} a token for states" in line
    found = run(said)
    (place,) = entries(tmp_path / "run")
    tokens = found.manifest["data"]["blocks"] * 10
    files = {path.name: 0 for path in place.rglob("*.bin")}
    for path in place.rglob("*.bin"):
        files[path.name] += path.stat().st_size
    assert sum(size for name, size in files.items() if name != "logits.bin") == states * tokens
    assert files["logits.bin"] % (4 + -(-bits // 8)) == 0
    assert TEACHER_DEPTH == 4
