"""Data augmentation: a slow, plain reading of the published algorithm, and what the task's rows become."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from kernel import bert
from rows import recipe, small, table
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
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
from limbeck.system.seeds import derive_seed
from limbeck.text.augment import copies as kept
from limbeck.text.augment import proposals, word_vectors
from limbeck.text.augment.augmented_rows import training
from limbeck.text.augment.copies import CandidateShelf, Place, copies
from limbeck.text.augment.proposals import STOP, Proposer
from limbeck.text.order import uniform

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WHOLE = (
    "film",
    "good",
    "great",
    "fine",
    "dull",
    "bad",
    "plot",
    "story",
    "actor",
    "funny",
    "act",
    "slow",
    "fast",
    "warm",
)
PIECES = ("##ing", "##ly", "##s", "##ed", "##or")
OTHERS = ("the", "is", "a", "not", ",", ".", "'", "t", "x", "7", "[", "]", "mask")
VOCABULARY = (*SPECIALS, *WHOLE, *PIECES, *OTHERS)
GLOVE = {"filming": (1, 0.2, 0), "film": (1, 0.1, 0), "story": (0.9, 0.5, 0.1), "badly": (-1, 0, 0.3), "bad": (-1, 0.1, 0.2),
         "dull": (-0.8, 0.4, 0.5), "good": (0.1, 1, 0), "the": (0, 0, 1), "plots": (0.5, 0.5, 0.5)}  # fmt: skip
SENTENCES = (
    "the film is good .",
    "filming the story badly , is not a fast act",
    "a dull plot 7 , actors acted [mask] x",
    "warmly funny isn ' t bad",
    "zebra plots fastly",
    "the is a .",
    "good good good good filming",
)


def words() -> tf.PreTrainedTokenizerFast:
    """BERT's tokenizer over a small vocabulary: lower case, punctuation apart, pieces."""
    backend: Any = Tokenizer(models.WordPiece({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(list(SPECIALS))
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name.lower()[1:-1]}_token": name for name in SPECIALS}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return tf.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=32, model_input_names=inputs, **names)


def glove(path: Path) -> Path:
    lines = [" ".join([word, *map(str, vector)]) for word, vector in GLOVE.items()]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model() -> Any:
    return bert(16, 2, seed=3).eval()


# the published algorithm, read slowly


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def pieces_of(word: str) -> list[str]:
    """The longest piece of the vocabulary first, again and again."""
    found: list[str] = []
    while word:
        mark = "##" if found else ""
        cut = next((n for n in range(len(word), 0, -1) if mark + word[:n] in VOCABULARY), 0)
        if not cut:
            return ["[UNK]"]
        found.append(mark + word[:cut])
        word = word[cut:]
    return found


@torch.no_grad()
def ranked(model: Any, tokens: list[list[str]], number: int) -> list[str]:
    """Every token, the most probable first, where word `number` is masked: one text alone, without padding."""
    plain = [piece for word in tokens for piece in word]
    place = 1 + sum(map(len, tokens[:number]))
    first = ["[CLS]", *plain, "[SEP]"]
    first[place] = "[MASK]"
    ids = [VOCABULARY.index(token) for token in [*first, *plain, "[SEP]"]]
    types = [0] * len(first) + [1] * (len(plain) + 1)
    logits = model(torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits[0, place, : len(VOCABULARY)]
    return [VOCABULARY[i] for i in torch.argsort(logits, descending=True).tolist()]


def by_hand(text: str, model: Any, count: int, published: bool, from_file: bool) -> dict[int, tuple[str, list[str]]]:
    """Place of a word among the words -> (the word, what may stand there)."""
    said = re.findall(r"[a-z0-9]+|[^a-z0-9\s]", text.lower())
    tokens = [pieces_of(word) for word in said]
    found: dict[int, tuple[str, list[str]]] = {}
    for number, (word, pieces) in enumerate(zip(said, tokens, strict=True)):
        if re.search("[^a-z]", word) or word in STOP or (pieces == ["[UNK]"] and not published):
            continue
        if len(pieces) == 1 and published:
            some = [token for token in ranked(model, tokens, number)[:count] if not token.startswith("##")]
        elif len(pieces) == 1:
            some = [t for t in ranked(model, tokens, number) if t.isalpha() and len(t) > 1 and t != word][:count]
        elif from_file:
            others = sorted(GLOVE, key=lambda w: -cosine(GLOVE[word], GLOVE[w])) if word in GLOVE else []
            some = [other for other in others if other != word][:count]
        else:
            rows = model.get_input_embeddings().weight.tolist()
            mine = [rows[VOCABULARY.index(piece)] for piece in pieces]
            query = [sum(column) / len(mine) for column in zip(*mine, strict=True)]
            whole = [w for w in VOCABULARY if w.isalpha() and len(w) > 1]
            some = sorted(whole, key=lambda w: -cosine(query, rows[VOCABULARY.index(w)]))[:count]
        found[number] = (word, some or [word])
    return found


@pytest.mark.parametrize("from_file", [True, False])
@pytest.mark.parametrize("published", [True, False])
def test_candidates_are_those_of_the_plain_reading(
    model: Any, tmp_path: Path, published: bool, from_file: bool
) -> None:
    file = str(glove(tmp_path / "glove.txt")) if from_file else "teacher"
    how = Augment(candidates=4, vectors=file, as_published=published)
    found = Proposer(model, words(), how)(SENTENCES)
    for text, places in zip(SENTENCES, found, strict=True):
        expected = by_hand(text, model, 4, published, from_file)
        assert [(text[start:end], list(some)) for start, end, some in places] == list(expected.values())
    kinds = [len(pieces_of(text[a:b])) for text, some in zip(SENTENCES, found, strict=True) for a, b, _ in some]
    assert {1, 2} <= set(kinds)


def test_the_published_lists_hold_what_ours_leave_out(model: Any) -> None:
    ours, theirs = (
        [word for text in Proposer(model, words(), Augment(candidates=30, as_published=published))(SENTENCES) for _, _, some in text for word in some]
        for published in (False, True)
    )  # fmt: skip
    assert "[SEP]" in theirs and "," in theirs and not set(ours) & {*SPECIALS, *PIECES, ",", "x", "7"}


def test_an_unknown_word_stays(model: Any, tmp_path: Path) -> None:
    """Of several pieces, without a vector: itself. Without a piece: no place."""
    how = Augment(vectors=str(glove(tmp_path / "glove.txt")), probability=0.99)
    (places,) = Proposer(model, words(), how)(["zebra fastly"])
    assert places == [Place(6, 12, ("fastly",))]
    assert copies(("zebra fastly",), [places], 0, how) == [("zebra fastly",)]


def test_a_word_beyond_the_positions_of_the_model_stays(model: Any) -> None:
    text = " ".join(["the"] * 29 + ["good", "fine", "great"])  # [CLS] and 30 words are 31 of the 32 positions
    (places,) = Proposer(model, words(), Augment(candidates=3))([text])
    assert [len(some) for _, _, some in places] == [3, 3, 1] and places[2].candidates == ("great",)


def test_the_rest_of_a_text_stays_as_it_is(model: Any) -> None:
    text = "  The  GOOD\tFilm!"
    (places,) = Proposer(model, words(), Augment())([text])
    assert [text[a:b] for a, b, _ in places] == ["GOOD", "Film"] and "good" not in places[0].candidates
    for (copy,) in copies((text,), [places], 0, Augment()):
        assert re.fullmatch(r"  The  \w+\t\w+!", copy)


# coins and draws

PLACES = [Place(0, 4, ("fine", "bad", "dull")), Place(9, 13, ("plot", "act"))]
PAIR = [Place(2, 6, ("slow", "fast", "warm"))]


def slowly(text: str, places: Sequence[Place], number: int, first: int, how: Augment, j: int) -> str:
    found = list(text)
    for w, (start, end, some) in enumerate(places):
        draw, coin = uniform(derive_seed(how.draw, "augment", number, first + w), np.array([j]), 2)[0]
        if coin < how.probability:
            found[start:end] = [some[math.floor(draw * len(some))], *[""] * (end - start - 1)]
    return "".join(found)


@pytest.mark.parametrize("number", [0, 7])
def test_copies_by_hand(number: int) -> None:
    how = Augment(copies=12, draw=3)
    expected = ["good , a film"]
    for j in range(12):
        if (copy := slowly("good , a film", PLACES, number, 0, how, j)) not in expected:
            expected.append(copy)
    found = copies(("good , a film",), [PLACES], number, how)
    assert found == [(text,) for text in expected] and len(found) > 4


def test_both_texts_of_a_pair_by_hand() -> None:
    how, texts = Augment(copies=9), ("good , a film", "a plot")
    expected = [texts]
    for j in range(9):
        copy = (slowly(texts[0], PLACES, 5, 0, how, j), slowly(texts[1], PAIR, 5, 2, how, j))
        if copy not in expected:
            expected.append(copy)
    assert copies(texts, [PLACES, PAIR], 5, how) == expected
    how = how.model_copy(update={"as_published": True})  # the second beside the last copy of the first
    lists = [[texts[0]], [texts[1]]]
    for mine, text, places, first in zip(lists, texts, (PLACES, PAIR), (0, 2), strict=True):
        for j in range(9):
            if (copy := slowly(text, places, 5, first, how, j)) not in mine:
                mine.append(copy)
    one, two = lists
    assert copies(texts, [PLACES, PAIR], 5, how) == [(a, texts[1]) for a in one] + [(one[-1], b) for b in two]
    assert len(one) > 2 and len(two) > 2


def test_a_draw_hangs_on_row_word_copy_and_number_alone() -> None:
    text, how = ("good , a film",), Augment(copies=8)
    some, more = copies(text, [PLACES], 1, how), copies(text, [PLACES], 1, how.model_copy(update={"copies": 16}))
    assert more[: len(some)] == some and len(more) > len(some)
    assert copies(text, [PLACES], 2, how) != some != copies(text, [PLACES], 1, how.model_copy(update={"draw": 1}))


def test_how_often_a_word_is_replaced() -> None:
    many = Augment(copies=1)
    other = [Place(0, 4, ("fine", "bad"))]
    found = [copies(("good",), [other], row, many)[1:] for row in range(4000)]
    said = [copy[0][0] for copy in found if copy]
    assert abs(len(said) / 4000 - 0.4) < 0.03 and abs(said.count("fine") / len(said) - 0.5) < 0.05


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


def test_a_tokenizer_that_masks_nothing_is_refused(model: Any) -> None:
    blind = words()
    blind.mask_token = None
    with pytest.raises(UserError, match="has no token that masks"):
        Proposer(model, blind, Augment())


def test_the_words_are_checked() -> None:
    with pytest.raises(ValueError, match="probability"):
        Task.model_validate({"kind": "classification", "augment": {"probability": 1.5}})
    assert Task(kind="classification").augment is None


# files of vectors


def lines(text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "v.txt").write_bytes(text.encode("latin-1"))
        return folder / "v.txt"

    return write


WRONG = {
    "": "no vectors in this file; name another, or teacher",
    "a 1 2\nb 1\n": "v.txt:2: 1 numbers, and the first line has 2; every line holds a word",
    "a 1 2\nb 1 2 3\n": "v.txt:2: 3 numbers, and the first line has 2",
    "a\nb\n": "v.txt:1: 0 numbers",
    "a 1 2\nb 1 two\n": "v.txt:2: 'two' is not a number",
    "a 1 nan\n": "v.txt:1: 'nan' is not a number",
    "a 1 2\n\n": "v.txt:2: no word and its numbers",
    "\xe9\xe9 1 2\n": "not UTF-8",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_bad_file_of_vectors_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError) as error:
        word_vectors.read(lines(text)(tmp_path))
    assert WRONG[text] in str(error.value) and "\n" not in str(error.value)


def test_vectors_by_hand(tmp_path: Path) -> None:
    found = word_vectors.read(glove(tmp_path / "v.txt"))
    for word, vector in GLOVE.items():
        expected = sorted((w for w in GLOVE if w != word), key=lambda w: -cosine(vector, GLOVE[w]))
        assert found.nearest(found.of(word), 4, word) == expected[:4]
    assert "unheard" not in found and "film" in found
    assert "film" not in word_vectors.read(glove(tmp_path / "v.txt"), most=1)
    spaced = word_vectors.read(lines("a 1 2\nat home 2 1\na 7 7\nzero 0 0\n")(tmp_path))
    assert spaced.words == ["a", "at home", "zero"] and spaced.nearest(spaced.of("a"), 9, "a") == ["at home", "zero"]
    assert spaced.of("a") == pytest.approx([1 / 5**0.5, 2 / 5**0.5])  # the first of two lines
