from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import SHARED
from tokenizers import processors

from limbeck.errors import UserError
from limbeck.recipe.data import Data
from limbeck.text import blocks, readers, rows, tokenise
from limbeck.text.rows import TaskCorpus, prepare_task
from limbeck.text.tokenise import Encoder, longest_first

Build = Callable[..., Any]
BERT_UNCASED, SST, STS = (SHARED / "tokenizers/bert-uncased", SHARED / "data/glue/SST-2", SHARED / "data/glue/STS-B")
needs_bert = pytest.mark.skipif(not BERT_UNCASED.is_dir(), reason="no bert-uncased tokenizer beside the project")
needs_sst = pytest.mark.skipif(not SST.is_dir(), reason="no SST-2 beside the project")
needs_sts = pytest.mark.skipif(not STS.is_dir(), reason="no STS-B beside the project")
WORDS = ("a", "b", "c", "d", "e", "f", "g", "h", "still", "wort", "play", "playing")
PAIR = {"text": "text", "pair": "pair", "label": "label"}


def quiet(_: str) -> None:
    pass


def message(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="session")
def framed(word_piece: Build) -> Build:
    """Builds BERT's tokenizers with BERT's template."""

    def build(*words: Any, segment: int = 1, **more: Any) -> Any:
        tokenizer = word_piece(*words, **more)
        template = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair=f"[CLS] $A [SEP] $B:{segment} [SEP]:{segment}",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        tokenizer.backend_tokenizer.post_processor = template
        return tokenizer

    return build


@pytest.fixture(scope="module")
def uncased() -> Any:
    from transformers import PreTrainedTokenizerFast

    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_file=str(BERT_UNCASED / "tokenizer.json"), **names)


def sentences(count: int, first: int = 0) -> list[str]:
    return [" ".join(WORDS[(i * k + k) % 12] for k in range(1 + i % 9)) + f" n{i}" for i in range(first, first + count)]


def lay_out(folder: Path, train: Sequence[Sequence[object]], dev: Sequence[Sequence[object]], names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, lines in (("train", train), ("dev", dev)):
        text = "".join("\t".join(map(str, line)) + "\n" for line in [names.split(), *lines])
        (folder / f"{name}.tsv").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def single(tmp_path: Path) -> Callable[..., Data]:
    """A task of 40 texts of three classes, and 8 held out; words given replace those of `data`, `task` adds to its words."""
    rows = [(text, i % 3) for i, text in enumerate(sentences(48))]
    folder = lay_out(tmp_path / "single", rows[:40], rows[40:], "sentence label")
    return table(folder, tmp_path, {"kind": "classification"})


@pytest.fixture
def paired(tmp_path: Path) -> Callable[..., Data]:
    """A task of 30 pairs with scores, and 10 held out."""
    rows = [(a, b, i / 4) for i, (a, b) in enumerate(zip(sentences(40), sentences(40, 7), strict=True))]
    folder = lay_out(tmp_path / "paired", rows[:30], rows[30:], "text pair label")
    return table(folder, tmp_path, {"kind": "regression", **PAIR})


def table(folder: Path, tmp_path: Path, task: dict[str, Any]) -> Callable[..., Data]:
    def build(**words: Any) -> Data:
        words["task"] = task | words.get("task", {})
        return Data.model_validate({"corpus": str(folder), "cache": str(tmp_path / "cache"), "max_length": 8} | words)

    return build


def expected(tokenizer: Any, texts: list[str], pairs: list[str] | None, length: int) -> tuple[Any, Any]:
    """The ids and the segments that transformers gives."""
    found = tokenizer(texts, pairs, truncation=True, max_length=length, return_token_type_ids=True)
    return found["input_ids"], found["token_type_ids"]


def listed(rows: Sequence[np.ndarray]) -> list[list[int]]:
    return [row.tolist() for row in rows]


def entry_of(data: Any) -> Path:
    (entry,) = (Path(data.cache) / "tasks").iterdir()
    return entry


# --- tokens and segments are those of transformers ---


def test_single_texts(single: Build, framed: Build) -> None:
    corpus = prepare_task(single(), framed(), tell=quiet)
    ids, types = expected(framed(), sentences(48), None, 8)
    assert listed(corpus.train.rows(range(40))) == ids[:40]
    assert listed(corpus.heldout.rows(range(8))) == ids[40:]
    assert listed(corpus.train.segments(range(40))) == types[:40]
    assert corpus.train.rows([3])[0].dtype == corpus.train.segments([3])[0].dtype == np.int64
    assert type(corpus.train.rows([3])[0]) is np.ndarray
    assert isinstance(corpus.train.tokens, np.memmap)
    assert corpus.train.tokens.dtype == np.uint16
    assert corpus.train.labels(range(40)).tolist() == [i % 3 for i in range(40)]
    assert corpus.train.labels([0]).dtype == np.int64
    assert (len(corpus.train), len(corpus.heldout), corpus.train.max_length) == (40, 8, 8)
    assert corpus.classes == ("0", "1", "2")


def test_pairs(paired: Build, framed: Build) -> None:
    for length in (5, 8, 11, 99):
        corpus = prepare_task(paired(max_length=length), framed(), tell=quiet)
        ids, types = expected(framed(), sentences(40), sentences(40, 7), length)
        assert listed(corpus.train.rows(range(30))) == ids[:30]
        assert listed(corpus.train.segments(range(30))) == types[:30]
        assert listed(corpus.heldout.segments(range(10))) == types[30:]
    assert corpus.train.labels(range(4)).tolist() == [0, 0.25, 0.5, 0.75]
    assert corpus.train.labels([0]).dtype == np.float32
    assert corpus.classes == ()


@given(
    st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), min_size=1, max_size=5),
    st.integers(5, 20),
    st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_truncation_is_that_of_transformers(
    framed: Build, lengths: list[tuple[int, int]], length: int, left: bool
) -> None:
    tokenizer = framed()
    tokenizer.truncation_side = "left" if left else "right"
    texts, pairs = (
        [" ".join(itertools.islice(itertools.cycle(WORDS), n)) for n in ns] for ns in zip(*lengths, strict=True)
    )
    for second in (pairs, None):
        found = Encoder(tokenizer).rows([""] * len(texts), texts, second, length)
        ids, types = expected(tokenizer, texts, second, length)
        assert [(one.ids, one.types) for one in found] == list(zip(ids, types, strict=True))
        whole = [len(row) for row in tokenizer(texts, second)["input_ids"]]
        assert [one.cut for one in found] == [size > length for size in whole]


def test_two_long_texts_are_cut_in_no_time(framed: Build) -> None:
    """The library's own truncation pairs all tokens that it cuts off: at this length hundreds of millions."""
    (row,) = Encoder(framed()).rows(["x"], ["a " * 20_000], ["b " * 20_000], 5)
    assert row == ([2, 5, 3, 6, 3], [0, 0, 0, 1, 1], True)
    assert longest_first(20_000, 20_000, 2) == (1, 1)


@needs_bert
@needs_sst
@pytest.mark.parametrize("length", [16, 64])
def test_sst2(tmp_path: Path, uncased: Any, length: int) -> None:
    lines = [line.split("\t") for line in (SST / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    path = lay_out(tmp_path / "sst", lines[:700], lines[700:], "sentence label")
    task = {"kind": "classification", "classes": ["1", "0"]}
    corpus = prepare_task(table(path, tmp_path, task)(max_length=length), uncased, tell=quiet)
    ids, _ = expected(uncased, [text for text, _ in lines], None, length)
    assert listed(corpus.train.rows(range(700))) == ids[:700]
    assert listed(corpus.heldout.rows(range(172))) == ids[700:]
    assert corpus.heldout.labels(range(172)).tolist() == [1 - int(label) for _, label in lines[700:]]


@needs_bert
@needs_sts
def test_stsb_has_no_line_of_names(tmp_path: Path, uncased: Any) -> None:
    task = {"kind": "regression", "text": 5, "pair": 6, "label": 4}
    words = {"heldout": str(STS / "sts-test.tsv"), "max_length": 24}
    corpus = prepare_task(table(STS / "sts-dev.tsv", tmp_path, task)(**words), uncased, tell=quiet)
    for part, name in ((corpus.train, "sts-dev.tsv"), (corpus.heldout, "sts-test.tsv")):
        lines = [line.split("\t") for line in (STS / name).read_text(encoding="utf-8").split("\n") if line]
        heldout = {(line[5], line[6]) for line in lines} if name == "sts-test.tsv" else set()
        if name == "sts-dev.tsv":
            other = [
                line.split("\t") for line in (STS / "sts-test.tsv").read_text(encoding="utf-8").split("\n") if line
            ]
            heldout = {(line[5], line[6]) for line in other}
            lines = [line for line in lines if (line[5], line[6]) not in heldout]
        ids, types = expected(uncased, [line[5] for line in lines], [line[6] for line in lines], 24)
        everything = range(len(lines))
        assert len(part) == len(lines)
        assert listed(part.rows(everything)) == ids
        assert listed(part.segments(everything)) == types
        assert np.array_equal(part.labels(everything), np.array([float(line[4]) for line in lines], np.float32))


# --- what a tokenizer puts in, and what stands in a text ---


def test_special_tokens_in_a_text_are_text(framed: Build, word_piece: Build) -> None:
    (row,) = Encoder(framed()).rows(["x"], ["a [MASK] [SEP] b"], None, 20)
    assert row.ids[0] == 2 and row.ids[-1] == 3
    assert not {2, 3, 4} & {*row.ids[1:-1]}
    assert row.ids[1:-1] == Encoder(word_piece())(["x"], ["a [MASK] [SEP] b"])[0]


@needs_bert
def test_special_tokens_in_a_text_are_text_to_bert(uncased: Any) -> None:
    (row,) = Encoder(uncased).rows(["x"], ["good [MASK]"], ["bad [SEP] x"], 40)
    assert row.ids == uncased("good [MASK]", "bad [SEP] x", split_special_tokens=True)["input_ids"]
    assert row.ids.count(uncased.sep_token_id) == 2


def test_a_causal_tokenizer_is_left_to_its_template(single: Build, causal: Build) -> None:
    for opens in (False, True):
        corpus = prepare_task(single(), causal(opens=opens), tell=quiet)
        assert listed(corpus.train.rows(range(40))) == expected(causal(opens=opens), sentences(40), None, 8)[0]


def test_a_row_without_tokens_is_an_error(tmp_path: Path, framed: Build, word_piece: Build) -> None:
    def blind(build: Build) -> Any:
        from tokenizers import normalizers

        tokenizer = build()
        tokenizer.backend_tokenizer.normalizer = normalizers.Replace("?", "")
        return tokenizer

    path = lay_out(tmp_path / "a", [("a", 0), ("b", 1), ("?", 0)], [("c", 0)], "sentence label")
    data = table(path, tmp_path, {"kind": "classification"})
    assert listed(prepare_task(data(), blind(framed), tell=quiet).train.rows([2])) == [[2, 3]]
    expected = "train.tsv:4: the tokenizer leaves nothing of this row's text; remove the row"
    assert message(lambda: prepare_task(data(), blind(word_piece), tell=quiet)) == expected


def test_no_room_for_text_is_an_error(paired: Build, single: Build, framed: Build) -> None:
    assert prepare_task(single(max_length=4), framed(), tell=quiet).train.max_length == 4
    expected = "data.max_length (4) has no room for text beside the 3 special tokens of a row; raise it"
    assert message(lambda: prepare_task(paired(max_length=4), framed(), tell=quiet)) == expected


def test_tokenizers_that_disagree(single: Build, paired: Build, framed: Build, word_piece: Build) -> None:
    other = framed([word for word in WORDS if word != "playing"] + ["##ing", "playing"])
    said = message(lambda: prepare_task(single(max_length=64), framed(WORDS), other, tell=quiet))
    assert "the tokenizers of teacher and student disagree at token" in said
    assert "teacher 'playing' (id 16), student 'playing' (id 17); give both the same tokenizer" in said
    said = message(lambda: prepare_task(single(), framed(), word_piece(), tell=quiet))
    assert said.startswith(
        "dev.tsv:2: the tokenizers of teacher and student disagree at token 0 (from 0): teacher '[CLS]'"
    )
    said = message(lambda: prepare_task(paired(), framed(), framed(segment=0), tell=quiet))
    assert said == (
        "dev.tsv:2: the tokenizers of teacher and student number the segments differently; "
        "give both the same tokenizer (models.student.tokenizer)"
    )
    longer = framed([*WORDS, "unused"])
    told: list[str] = []
    corpus = prepare_task(single(), framed(WORDS), longer, tell=told.append)
    assert tokenise.COMPARED in told and tokenise.COMPARED in corpus.facts["notes"]


# --- classes ---


def test_classes_of_a_corpus(tmp_path: Path, framed: Build) -> None:
    path = lay_out(
        tmp_path / "a", [("a", "yes"), ("b", ""), ("c", "no"), ("d", "yes")], [("e", "no"), ("f", "")], "sentence label"
    )
    data = table(path, tmp_path, {"kind": "classification"})

    def labels(corpus: TaskCorpus) -> tuple[tuple[str, ...], list[int], list[int]]:
        return corpus.classes, *(part.labels(range(len(part))).tolist() for part in (corpus.train, corpus.heldout))

    first = prepare_task(data(), framed(), tell=quiet)
    assert labels(first) == (("no", "yes"), [1, -100, 0, 1], [0, -100])
    assert first.facts["classes"] == ["no", "yes"]
    assert (first.facts["labelled"], first.facts["heldout_labelled"]) == (3, 1)
    assert first.facts["notes"][-2:] == ["1 of 4 training rows have no label", "1 of 2 held-out rows have no label"]
    given = prepare_task(data(), framed(), classes=("yes", "no"), tell=quiet)
    assert labels(given) == (("yes", "no"), [0, -100, 1, 0], [1, -100])
    own = prepare_task(data(task={"classes": ["x", "no", "yes"]}), framed(), classes=("yes", "no"), tell=quiet)
    assert labels(own) == (("x", "no", "yes"), [2, -100, 1, 2], [1, -100])
    assert labels(prepare_task(data(), framed(), classes=("LABEL_0", "LABEL_1"), tell=quiet)) == labels(first)
    assert entry_of(data()).is_dir()  # one entry for all of them
    said = message(lambda: prepare_task(data(), framed(), classes=("good", "bad"), tell=quiet))
    assert said.startswith("train.tsv:2: the label 'yes' is not among the classes good, bad; name the labels")


def test_a_class_that_only_held_out_rows_have(tmp_path: Path, framed: Build) -> None:
    path = lay_out(tmp_path / "a", [("a", 0), ("b", 1)], [("e", 0), ("f", 2)], "sentence label")
    data = table(path, tmp_path, {"kind": "classification"})
    said = message(lambda: prepare_task(data(), framed(), tell=quiet))
    assert said.startswith("dev.tsv:3: the label '2' is not among the classes 0, 1; name")


def test_a_wrong_column_of_labels(single: Build, framed: Build, tmp_path: Path) -> None:
    said = message(lambda: prepare_task(single(task={"label": "labels"}), framed(), tell=quiet))
    assert said == (
        f"{single().corpus}: no row has a label in the column 'labels'; "
        "set data.task.label to one of: sentence, label; or to null where nothing is labelled"
    )
    assert list((tmp_path / "cache/tasks").iterdir()) == []
    said = message(lambda: prepare_task(single(task={"text": 0, "label": 5}), framed(), tell=quiet))
    assert "set data.task.label to one of: 0 to 1;" in said
    said = message(
        lambda: prepare_task(
            single(task={"kind": "regression", "text": "label", "label": "sentence"}), framed(), tell=quiet
        )
    )
    assert said.startswith("dev.tsv:2: the label ") and "no finite number" in said


def test_rows_that_are_meant_to_have_no_label(single: Build, framed: Build) -> None:
    data = single(task={"label": None})
    corpus = prepare_task(data, framed(), classes=("x", "y"), tell=quiet)
    assert corpus.classes == ("x", "y")
    assert (corpus.train.labels(range(40)) == -100).all()
    assert corpus.facts["labelled"] == 0
    assert not any("label" in note for note in corpus.facts["notes"])
    assert message(lambda: prepare_task(data, framed(), tell=quiet)).startswith("no row is labelled")


def test_scores_that_are_missing(tmp_path: Path, framed: Build) -> None:
    path = lay_out(tmp_path / "a", [("a", 0.1), ("b", ""), ("c", -2)], [("e", "")], "sentence label")
    corpus = prepare_task(table(path, tmp_path, {"kind": "regression"})(), framed(), tell=quiet)
    assert corpus.train.labels(range(3)).tolist() == [np.float32(0.1), -100, -2]
    assert corpus.heldout.labels([0]).tolist() == [-100]


def test_too_many_classes(single: Build, framed: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MOST", 2)
    remedy = "set data.task.label to another column, or data.task.kind to regression"
    expected = f"dev.tsv:4: more than 2 classes in the column of labels; {remedy}"
    assert message(lambda: prepare_task(single(), framed(), tell=quiet)) == expected


# --- facts ---


def test_facts_are_those_of_blocks_and_more(single: Build, framed: Build, data: Build) -> None:
    told: list[str] = []
    corpus = prepare_task(single(), framed(), tell=told.append)
    more = {"classes", "labelled", "heldout_labelled", "truncated", "heldout_truncated"}
    assert corpus.facts.keys() == blocks.prepare(data(), framed(), tell=quiet).facts.keys() | more
    ids = expected(framed(), sentences(48), None, 8)[0]
    assert {name: corpus.facts[name] for name in ("documents", "heldout_documents", "blocks", "heldout_blocks")} == {
        "documents": 40,
        "heldout_documents": 8,
        "blocks": 40,
        "heldout_blocks": 8,
    }
    assert (corpus.facts["tokens"], corpus.facts["heldout_tokens"]) == (
        sum(map(len, ids[:40])),
        sum(map(len, ids[40:])),
    )
    long = [len(row) > 8 for row in framed()(sentences(48))["input_ids"]]
    cut = corpus.facts["truncated"], corpus.facts["heldout_truncated"]
    assert cut == (sum(long[:40]), sum(long[40:])) and all(cut)
    assert corpus.facts["notes"] == [
        tokenise.SHARED,
        f"held out of {single().corpus}: its dev or valid files; data.heldout (0.02) is not used",
        f"longer than data.max_length (8), and cut to it: {cut[0]} rows to train on, {cut[1]} held-out rows",
    ]
    assert told[1:3] == [
        f"to train on: 40 rows, {sum(map(len, ids[:40]))} tokens",
        f"held out: 8 rows, {sum(map(len, ids[40:]))} tokens",
    ]


def test_the_hash_covers_texts_pairs_and_labels(tmp_path: Path, framed: Build) -> None:
    seen = set()
    for i, row in enumerate([("a", "b", 1), ("a", "b", 2), ("a", "c", 1), ("b", "a", 1)]):
        path = lay_out(tmp_path / f"t{i}", [row], [("x", "y", 1)], "text pair label")
        corpus = prepare_task(table(path, tmp_path, {"kind": "regression", **PAIR})(), framed(), tell=quiet)
        seen.add(corpus.facts["sha256"])
        assert corpus.facts["heldout_sha256"] not in seen
    assert len(seen) == 4


def test_training_rows_that_are_held_out_are_left_out(tmp_path: Path, framed: Build) -> None:
    train = [("a", "b", 0), ("a", "c", 1), ("b", "a", 1)]
    path = lay_out(tmp_path / "t", train, [("a", "c", 0)], "text pair label")
    data = table(path, tmp_path, {"kind": "classification", **PAIR})
    corpus = prepare_task(data(), framed(), tell=quiet)
    assert corpus.train.labels(range(2)).tolist() == [0, 1]
    assert "1 training rows are also held out: left out of training" in corpus.facts["notes"]
    all_of_it = data(corpus=f"{path}/train.tsv", heldout=f"{path}/train.tsv")
    assert "every training row is also held out" in message(lambda: prepare_task(all_of_it, framed(), tell=quiet))


@pytest.mark.parametrize(("share", "word"), [(1e-9, "hold out"), (1 - 1e-9, "train on")])
def test_a_share_that_leaves_a_side_empty(single: Build, framed: Build, share: float, word: str) -> None:
    data = single(corpus=f"{single().corpus}/train.tsv", heldout=share)
    said = message(lambda: prepare_task(data, framed(), tell=quiet))
    assert f"no row to {word} with data.heldout at {share}" in said and "give more rows" in said


def test_tokenising_in_small_batches_changes_nothing(
    single: Build, framed: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare_task(single(), framed(), tell=quiet)
    monkeypatch.setattr(blocks, "BATCH_DOCUMENTS", 3)
    monkeypatch.setattr(blocks, "BATCH_CHARACTERS", 30)
    parts = prepare_task(single(cache=str(tmp_path / "other")), framed(), tell=quiet)
    assert listed(whole.train.rows(range(40))) == listed(parts.train.rows(range(40)))
    assert whole.facts == parts.facts


def test_a_large_vocabulary_takes_four_bytes(single: Build, framed: Build) -> None:
    words = [*WORDS, *(f"w{i}" for i in range(1 << 16))]
    corpus = prepare_task(single(), framed(words), tell=quiet)
    assert corpus.train.tokens.dtype == np.uint32
    assert listed(corpus.train.rows([7])) == [expected(framed(words), sentences(8), None, 8)[0][7]]


@pytest.mark.parametrize("index", [-1, 40])
def test_a_row_that_is_not_there_is_an_error(single: Build, framed: Build, index: int) -> None:
    train = prepare_task(single(), framed(), tell=quiet).train
    for ask in (train.rows, train.segments, train.labels):
        with pytest.raises(IndexError, match="from 0 to 39"):
            ask([0, index])


# --- the cache ---


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one with every batch of rows that is tokenised."""
    calls: list[Any] = []
    encode = tokenise.encode_rows
    monkeypatch.setattr(tokenise, "encode_rows", lambda *words: calls.append(words) or encode(*words))
    return calls


def test_the_second_time_nothing_is_tokenised(single: Build, framed: Build, encoded: list[Any]) -> None:
    first = prepare_task(single(), framed(), tell=quiet)
    second = prepare_task(single(), framed(), framed(), tell=quiet)
    assert len(encoded) == 1
    assert listed(first.train.rows(range(40))) == listed(second.train.rows(range(40)))
    assert first.facts == second.facts


def test_what_matters_makes_another_entry(single: Build, framed: Build, causal: Build) -> None:
    def entries(data: Any, *tokenizers: Any) -> int:
        prepare_task(data, *tokenizers, tell=quiet)
        return len(list((Path(data.cache) / "tasks").iterdir()))

    assert entries(single(), framed()) == 1
    assert entries(single(task={"classes": ["2", "1", "0"]}), framed()) == 1
    assert entries(single(max_length=9), framed()) == 2
    assert entries(single(task={"kind": "regression"}), framed()) == 3
    assert entries(single(max_bytes=300), framed()) == 4
    assert entries(single(), causal()) == 5
    assert entries(single(task={"label": None, "kind": "regression"}), framed()) == 6
    left = framed()
    left.truncation_side = "left"
    assert entries(single(), left) == 7
    path = Path(single().corpus) / "train.tsv"
    path.write_text(path.read_text().replace("n7\t1", "n7\t2"))
    assert entries(single(), framed()) == 8
    assert entries(single(corpus=f"{path}", heldout=0.3), framed()) == 9


FILES = [f"{part}.{kind}" for part in ("train", "heldout") for kind in ("bin", "types.bin", "idx.npy", "labels.npy")]


@pytest.mark.parametrize("name", [*FILES, "facts.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_noticed_and_mended(single: Build, framed: Build, encoded: list[Any], name: str, damage: str) -> None:
    before = prepare_task(single(), framed(), tell=quiet)
    rows, labels = listed(before.train.rows(range(40))), before.train.labels(range(40))
    path = entry_of(single()) / name
    raw = bytearray(path.read_bytes())
    path.unlink()
    raw[len(raw) // 2] ^= 1
    if damage != "remove":
        path.write_bytes(raw if damage == "flip" else raw[:-1])
    told: list[str] = []
    after = prepare_task(single(), framed(), tell=told.append)
    assert any("damaged" in line for line in told)
    assert len(encoded) == 2
    assert listed(after.train.rows(range(40))) == rows
    assert np.array_equal(after.train.labels(range(40)), labels)
    assert after.facts == before.facts


KILLED = """
import os, signal, sys
from limbeck.text import rows
from limbeck.recipe.data import Data
from transformers import AutoTokenizer

add, count = rows._RowPart.add, 0
def late(self, *words):
    global count
    count += 1
    if count == 30:
        self.types.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, *words)
rows._RowPart.add = late
rows.prepare_task(Data.model_validate_json(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[2]), tell=lambda _: None)
"""


@pytest.mark.slow
def test_a_writer_that_was_killed_leaves_no_entry(single: Build, framed: Build, tmp_path: Path) -> None:
    framed().save_pretrained(tmp_path / "tokenizer")
    command = [sys.executable, "-c", KILLED, single().model_dump_json(), str(tmp_path / "tokenizer")]
    root = Path(rows.__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    (left,) = (Path(single().cache) / "tasks").iterdir()
    assert left.name.endswith(".tmp")
    told: list[str] = []
    corpus = prepare_task(single(), framed(), tell=told.append)
    assert len(corpus.train) == 40
    assert any(line.startswith("tokenising") for line in told)
    assert not left.exists(), "nobody alive fills it"
    assert entry_of(single()).is_dir()


def test_a_cache_that_cannot_be_written_is_an_error(single: Build, framed: Build, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    data = single(cache=str(tmp_path / "file"))
    assert "cannot be written (Not a directory); set data.cache" in message(lambda: prepare_task(data, framed()))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, framed: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the rows: the peak of what Python and numpy hold grows by some bytes a row."""
    import tracemalloc

    monkeypatch.setattr(readers, "CHUNK", 10_000)
    peaks = []
    for count in (3_000, 30_000):
        rows = [(f"a b c d e f g h {i}", i % 2) for i in range(count)]
        path = lay_out(tmp_path / f"n{count}", rows, [("x", 0)], "sentence label")
        data = table(path, tmp_path, {"kind": "classification"})(max_length=16)
        prepare_task(single_row(tmp_path), framed(), tell=quiet)  # imports
        del rows
        tracemalloc.start()
        prepare_task(data, framed(), tell=quiet)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 27_000 * 64


def single_row(tmp_path: Path) -> Data:
    path = lay_out(tmp_path / "one", [("a", 0), ("b", 1)], [("c", 0)], "sentence label")
    return table(path, tmp_path, {"kind": "classification"})()
