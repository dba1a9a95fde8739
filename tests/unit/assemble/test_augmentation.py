"""Data augmentation of a study: what the task's rows become, the same bytes whatever happens, and which model is asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from augmenting import WHOLE, words
from rows import recipe, small, table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import limbeck
from limbeck.assemble import augmentation, design
from limbeck.assemble.text import Material, augmented, read_text
from limbeck.errors import UserError
from limbeck.recipe.data import Augment, Task
from limbeck.recipe.load import load
from limbeck.recipe.stages import expand
from limbeck.system.processes import World
from limbeck.system.progress import Done
from limbeck.text.augment import copies as kept
from limbeck.text.augment import proposals
from limbeck.text.augment.augmented_rows import training
from limbeck.text.augment.copies import CandidateShelf, Place, copies
from limbeck.text.augment.proposals import Proposer

# rows of a task


def opinions(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Sentences of the vocabulary, all of them different, with a class."""
    some = [f"the {a} {b} is {c}" for a in WHOLE[1:5] for b in ("film", "plot", "acting", "story") for c in WHOLE[4:9]]
    return [{"sentence": text, "label": ("no", "yes")[i % 2]} for i, text in enumerate(some)][first : first + count]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("augmented")
    for name, made in (("bert", small(layers=1)), ("gpt2", small("gpt2")), ("classifier", small(classes=2))):
        made.save_pretrained(folder / name)
        words().save_pretrained(folder / name)
    table(folder / "opinions" / "train.tsv", opinions(30))
    table(folder / "opinions" / "dev.tsv", opinions(12, 40))
    return folder


def said(world: Path, out: Path, how: Any, task: dict[str, Any] | None = None, **train: Any) -> dict[str, Any]:
    """Fine-tuning of the masked language model on rows and their copies."""
    task = {"kind": "classification", "augment": how, **(task or {})}
    data = {"corpus": str(world / "opinions"), "task": task, "max_length": 16}
    return recipe(data, {"student": {"init": str(world / "bert")}}, out, "cross_entropy", **train)


def made(table: dict[str, Any]) -> Material:
    plan = design.design(load(table))
    return augmented(plan, World(), read_text(plan, lambda line: None), lambda line: None)


def texts_of(part: Any) -> list[str]:
    names = [words().convert_ids_to_tokens(row) for row in part.rows(range(len(part)))]
    return [" ".join(row[1:-1]).replace(" ##", "") for row in names]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "facts.json"}


@pytest.fixture
def shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "SHARD", 4)


HOW = {"copies": 6, "candidates": 5}


@pytest.mark.usefixtures("shards")
def test_training_rows_are_followed_by_their_copies(world: Path, tmp_path: Path) -> None:
    plain, whole = made(said(world, tmp_path / "a", None)).corpus, made(said(world, tmp_path / "a", HOW)).corpus
    rows, found = texts_of(plain.train), texts_of(whole.train)
    proposer = Proposer(small(layers=1), words(), Augment(**HOW))
    expected, labels = [], []
    for number, row in enumerate(rows):
        some = [copy for (copy,) in copies((row,), proposer([row]), number, proposer.how)]
        assert some[0] == row and len(set(some)) == len(some)
        some = [copy for copy in some if copy == row or copy not in texts_of(plain.heldout)]
        expected += some
        labels += plain.train.labels([number]).tolist() * len(some)
    assert found == expected and len(found) > 100
    assert whole.train.labels(range(len(found))).tolist() == labels
    assert texts_of(whole.heldout) == texts_of(plain.heldout) and whole.heldout.labels([0, 1]).tolist() == [0, 1]
    facts = whole.facts
    assert (facts["documents"], facts["labelled"], facts["blocks"]) == (len(found),) * 3
    assert (
        facts["tokens"] == sum(map(len, whole.train.rows(range(len(found)))))
        and facts["sha256"] != plain.facts["sha256"]
    )
    assert f"augmented: {len(found) - 30} copies of 30 training rows" in facts["notes"]


def test_a_copy_that_is_held_out_is_left_out(world: Path, tmp_path: Path) -> None:
    found = texts_of(made(said(world, tmp_path / "a", HOW)).corpus.train)
    copy = next(text for text in found if text not in {row["sentence"] for row in opinions(999)})
    dev = table(tmp_path / "dev.tsv", [{"sentence": copy, "label": "no"}])
    table_ = said(world, tmp_path / "b", HOW)
    table_["data"] |= {"corpus": str(world / "opinions" / "train.tsv"), "heldout": str(dev)}
    again = texts_of(made(table_).corpus.train)
    assert copy not in again and set(again) >= {row["sentence"] for row in opinions(30)} and len(again) > 100


def test_rows_without_labels_and_pairs(world: Path, tmp_path: Path) -> None:
    rows = [{"one": row["sentence"], "two": "a slow story", "score": 0.5} for row in opinions(12)]
    file = table(tmp_path / "pairs.jsonl", rows)
    more: dict[str, Any] = {"kind": "regression", "text": "one", "pair": "two", "label": None}
    task = said(world, tmp_path / "a", HOW, more)
    task["data"] |= {"corpus": str(file), "heldout": 0.3}
    task["models"] = {"teacher": str(world / "one"), "student": {"layers": 1}}
    task["settings"] = {"a": {"terms": [{"loss": "logit_mse"}]}}
    one = small(classes=1)
    one.save_pretrained(world / "one")
    words().save_pretrained(world / "one")
    task["data"]["task"]["augment"] = HOW | {"model": str(world / "bert")}
    corpus = made(task).corpus
    assert len(corpus.train) > 40 and corpus.facts["labelled"] == 0
    assert set(corpus.train.labels(range(len(corpus.train))).tolist()) == {-100}
    seconds = {text.split("[SEP]")[1].strip() for text in texts_of(corpus.train)}
    assert "a slow story" in seconds and len(seconds) > 3


# the same bytes, whatever happens


@pytest.mark.usefixtures("shards")
def test_the_same_bytes_from_another_batch_size(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("a", 64), ("b", 3)):
        monkeypatch.setattr(proposals, "QUERIES", size)
        table_ = said(world, tmp_path / name, HOW)
        table_["data"]["cache"] = str(tmp_path / name)
        made(table_)
    for part in ("augmented", "candidates"):
        assert files(tmp_path / "a" / part) == files(tmp_path / "b" / part) != {}


def test_check_counts_the_copies_into_the_time(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model multiplies, as torch counts it while it does; on a sample, about that."""
    table_ = said(world, tmp_path / "a", HOW)
    plan = design.design(load(table_))
    proposer = augmentation._proposer(plan, augmentation._how(plan), World())
    texts = [text for _, (text,) in training(plan.recipe.data)]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it knows no fused attention
        proposer(texts)
    assert augmentation.flops(plan) == pytest.approx(counter.get_total_flops(), rel=0.05)
    monkeypatch.setattr(augmentation, "SAMPLE", 10)
    assert augmentation.flops(plan) == pytest.approx(counter.get_total_flops(), rel=0.3)
    lines = limbeck.check(table_)
    (time,) = [number for number, line in enumerate(lines) if line.startswith("time ")]
    assert lines[time + 1].endswith("seconds of it for copies of rows, once")
    table_["data"]["task"].pop("augment")
    assert not [line for line in limbeck.check(table_) if "copies" in line]


@pytest.mark.usefixtures("shards")
def test_processes_make_disjoint_shares_of_the_same_bytes(tmp_path: Path) -> None:
    """Each process asks the model for its own shards alone; together they are those of one process."""
    rows = [(str(i), (row["sentence"],)) for i, row in enumerate(opinions(30))]
    asked: list[str] = []
    proposer = Proposer(small(layers=1), words(), Augment(**HOW))

    def propose(texts: Sequence[str], done: Done) -> list[list[Place]]:
        asked.extend(texts)
        return proposer(texts, done)

    CandidateShelf(tmp_path / "one", propose, print).write(rows)
    alone, asked[:] = list(asked), []
    for rank, count in ((0, 16), (1, 30)):
        CandidateShelf(tmp_path / "two", propose, print).write(rows, rank, 2)
        assert len(asked) == count
    assert sorted(asked) == sorted(alone) == sorted(text for _, (text,) in rows)
    assert len(list((tmp_path / "one").iterdir())) == 8
    assert [(path / "places.json").read_bytes() for path in sorted((tmp_path / "one").iterdir())] == [
        (path / "places.json").read_bytes() for path in sorted((tmp_path / "two").iterdir())
    ]


KILLED = """
import json, os, signal, sys
from limbeck.assemble import design
from limbeck.assemble.text import augmented, read_text
from limbeck.text.augment import copies
from limbeck.recipe.load import load
from limbeck.system.processes import World
copies.SHARD, count, write = 4, 0, copies.CandidateShelf._write
def late(self, folder, **given):
    global count
    count += 1
    done = write(self, folder, **given)
    if count == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
copies.CandidateShelf._write = late
plan = design.design(load(json.loads(sys.argv[1])))
augmented(plan, World(), read_text(plan, print), print)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("shards")
def test_a_writer_that_was_killed_goes_on(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table_ = said(world, tmp_path / "a", HOW)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(table_)], env=os.environ | {"HF_HUB_OFFLINE": "1"},
        cwd=Path(limbeck.__file__).parents[1], capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    (folder,) = (tmp_path / "cache" / "candidates").iterdir()
    assert len(list(folder.glob("?????"))) == 3 and not (tmp_path / "cache" / "augmented").exists()
    asked: list[int] = []
    plain = Proposer.__call__
    monkeypatch.setattr(Proposer, "__call__", lambda self, texts, done: asked.append(len(texts)) or plain(self, texts))
    made(table_)
    assert sum(asked) == 30 - 3 * 4
    table_["data"]["cache"] = str(tmp_path / "other")
    made(table_)
    assert files(tmp_path / "cache" / "augmented") == files(tmp_path / "other" / "augmented") != {}


def test_what_is_kept_is_found_again(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other copies of the same candidates do not ask the model again; another number of candidates does."""
    first = made(said(world, tmp_path / "a", HOW)).corpus
    plain = Proposer.__call__
    asked: list[int] = []
    monkeypatch.setattr(Proposer, "__call__", lambda self, texts, done: asked.append(len(texts)) or plain(self, texts))
    assert texts_of(made(said(world, tmp_path / "a", HOW)).corpus.train) == texts_of(first.train)
    assert len(made(said(world, tmp_path / "a", HOW | {"copies": 12})).corpus.train) > len(first.train)
    assert texts_of(made(said(world, tmp_path / "a", HOW | {"draw": 1})).corpus.train) != texts_of(first.train)
    assert not asked
    made(said(world, tmp_path / "a", HOW | {"candidates": 3}))
    assert sum(asked) == 30


@pytest.mark.usefixtures("fast")
def test_a_run_reads_the_copies(world: Path, tmp_path: Path) -> None:
    run = limbeck.run(said(world, tmp_path / "run", HOW), quiet=True)
    assert run.manifest["data"]["documents"] > 100 and run.manifest["data"]["heldout_documents"] == 12
    again = limbeck.run(said(world, tmp_path / "again", HOW), quiet=True)
    assert [row["loss"] for row in again.metrics] == [row["loss"] for row in run.metrics]


# which model is asked


def stages(world: Path, out: Path) -> dict[str, Any]:
    whole = said(world, out, HOW)
    tuned = {"stage": "tuned", "models": whole.pop("models"), "settings": whole.pop("settings")}
    student = {"teacher": "$previous", "student": {"layers": 1}}
    return whole | {"stages": [tuned, {"stage": "small", "models": student, "settings": {"b": {"terms": [{"loss": "forward_kl"}]}}}]}  # fmt: skip


def test_the_model_is_what_the_teacher_was_fine_tuned_from(world: Path, tmp_path: Path) -> None:
    plans = design.chain(expand(stages(world, tmp_path / "run")))
    assert [augmentation.masked_model(plan).source for plan in plans.values()] == [str(world / "bert")] * 2


def taught(world: Path, out: Path, how: dict[str, Any]) -> dict[str, Any]:
    whole = said(world, out, how)
    return whole | {"models": {"teacher": str(world / "classifier"), "student": {"layers": 1}}}


REFUSED: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "a classifier": (lambda world: {}, "a classifier, which proposes no words; name the masked language model in data.task.augment.model"),
    "a causal model": (lambda world: {"model": str(world / "gpt2")}, "predicts the next word, and no masked ones; name"),
    "no model": (lambda world: {"model": str(world / "nothing")}, "no such model folder"),
    "no vectors": (lambda world: {"model": str(world / "bert"), "vectors": "none.txt"}, "none.txt: cannot be read (No such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_masks_nothing_is_refused(world: Path, tmp_path: Path, case: str) -> None:
    how, expected = REFUSED[case]
    table_ = taught(world, tmp_path / "a", how(world))
    table_["data"]["task"]["classes"] = ["no", "yes"]
    with pytest.raises(UserError) as error:
        made(table_)
    assert expected in str(error.value)


def test_the_words_are_checked() -> None:
    with pytest.raises(ValueError, match="probability"):
        Task.model_validate({"kind": "classification", "augment": {"probability": 1.5}})
    assert Task(kind="classification").augment is None
