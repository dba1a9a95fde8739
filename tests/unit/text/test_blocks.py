from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.errors import UserError
from limbeck.system import store
from limbeck.text import blocks as module
from limbeck.text import tokenise
from limbeck.text.blocks import Blocks, prepare
from limbeck.text.tokenise import Special

Build = Callable[..., Any]


def quiet(_: str) -> None:
    pass


def entry_of(data: Any) -> Path:
    (entry,) = (Path(data.cache) / "tokens").iterdir()
    return entry


# --- packing, by hand ---


def test_blocks_of_a_bert(tmp_path: Path, data: Build, word_piece: Build) -> None:
    (tmp_path / "corpus" / "train.txt").write_text("a b c\n\nd playing\n\nx h\n\na")
    train = prepare(data(max_length=5), word_piece(), tell=quiet).train
    assert len(train) == 2  # eight tokens in threes: two are left over
    assert train.rows([0, 1]).tolist() == [[2, 5, 6, 7, 3], [2, 8, 17, 1, 3]]
    assert train.rows([1]).dtype == np.int64
    assert train.documents_of([1, 0]).tolist() == [[-1, 1, 1, 2, -1], [-1, 0, 0, 0, -1]]
    assert train.documents_of([0]).dtype == np.int32
    assert isinstance(train.tokens, np.memmap)
    assert train.tokens.dtype == np.uint16


def test_blocks_of_a_causal_model(tmp_path: Path, data: Build, causal: Build) -> None:
    (tmp_path / "corpus" / "train.txt").write_text("a b c\n\nd playing\n\nh")
    train = prepare(data(max_length=4), causal(), tell=quiet).train
    assert train.rows([0, 1]).tolist() == [[3, 4, 5, 1], [6, 15, 1, 10]]
    assert train.documents_of([0, 1]).tolist() == [[0, 0, 0, -1], [1, 1, -1, 2]]
    train = prepare(data(max_length=4), causal(opens=True), tell=quiet).train
    assert train.rows([0, 1, 2]).tolist() == [[0, 3, 4, 5], [1, 0, 6, 15], [1, 0, 10, 1]]
    assert train.documents_of([1]).tolist() == [[-1, -1, 1, 1]]


def test_documents_without_tokens_have_no_token() -> None:
    blocks = Blocks(np.arange(5, 11), np.array([0, 2, 2, 2, 5]), 3, Special(20, ()))
    assert blocks.documents_of([0, 1]).tolist() == [[0, 0, 3], [3, 3, 4]]


@pytest.mark.parametrize("index", [-1, 2])
def test_a_block_that_is_not_there_is_an_error(index: int) -> None:
    with pytest.raises(IndexError, match="from 0 to 1"):
        Blocks(np.arange(7), np.array([0]), 3, Special(20, ())).rows([0, index])


def test_a_large_vocabulary_takes_four_bytes(data: Build, word_piece: Build) -> None:
    words = [*"abcdefgh", *(f"w{i}" for i in range(1 << 16))]
    corpus = prepare(data(), word_piece(words), tell=quiet)
    assert corpus.train.tokens.dtype == np.uint32
    assert np.array_equal(corpus.train.rows(range(9)), prepare(data(), word_piece(), tell=quiet).train.rows(range(9)))


def test_tokenising_in_small_batches_changes_nothing(
    data: Build, word_piece: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(data(), word_piece(), tell=quiet)
    monkeypatch.setattr(module, "BATCH_DOCUMENTS", 3)
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 30)
    parts = prepare(data(cache=str(tmp_path / "other")), word_piece(), tell=quiet)
    assert np.array_equal(whole.train.tokens, parts.train.tokens)
    assert np.array_equal(whole.heldout.documents, parts.heldout.documents)
    assert whole.facts == parts.facts


# --- facts and refusals ---


def test_facts_are_for_the_manifest(data: Build, word_piece: Build, corpus: Path) -> None:
    facts = prepare(data(), word_piece(), tell=quiet).facts
    counts = {name: facts[name] for name in ("documents", "tokens", "blocks")}
    assert counts == {"documents": 40, "tokens": 400, "blocks": 66}
    assert (facts["heldout_documents"], facts["heldout_tokens"], facts["heldout_blocks"]) == (8, 80, 13)
    assert facts["corpus"] == str(corpus)
    assert len({len(facts[name]) for name in ("sha256", "heldout_sha256", "tokenizer_sha256")}) == 1
    assert facts["sources"] == {}
    assert facts["notes"] == [
        "teacher and student share one tokenizer: tokenised once",
        f"held out of {corpus}: its dev or valid files; data.heldout (0.02) is not used",
    ]


def test_training_documents_that_are_held_out_are_left_out(data: Build, word_piece: Build, corpus: Path) -> None:
    (corpus / "dev.txt").write_text((corpus / "train.txt").read_text().split("\n\n")[3] + "\n\na b c")
    facts = prepare(data(), word_piece(), tell=quiet).facts
    assert facts["documents"] == 39
    assert "1 training documents are also held out: left out of training" in facts["notes"]


@pytest.mark.parametrize(("part", "remedy"), [("train", "give more text"), ("dev", "raise data.heldout")])
def test_less_text_than_a_block_is_an_error(
    data: Build, word_piece: Build, corpus: Path, part: str, remedy: str
) -> None:
    (corpus / f"{part}.txt").write_text("a b playing")
    with pytest.raises(UserError, match=rf"has 3 tokens, fewer than the 6 of one block.*max_length \(8\).*{remedy}"):
        prepare(data(), word_piece(), tell=quiet)


@pytest.mark.parametrize(("share", "word"), [(1e-9, "hold out"), (1 - 1e-9, "train on")])
def test_a_share_that_leaves_a_side_empty_is_an_error(
    data: Build, word_piece: Build, corpus: Path, share: float, word: str
) -> None:
    with pytest.raises(UserError, match=f"no document to {word} with data.heldout at"):
        prepare(data(corpus=f"{corpus}/train.txt", heldout=share), word_piece(), tell=quiet)


def test_training_text_that_is_all_held_out_is_an_error(data: Build, word_piece: Build, corpus: Path) -> None:
    with pytest.raises(UserError, match="every training document is also held out"):
        prepare(data(corpus=f"{corpus}/train.txt", heldout=f"{corpus}/train.txt"), word_piece(), tell=quiet)


def test_a_failure_leaves_nothing_behind(data: Build, word_piece: Build, corpus: Path) -> None:
    table = data(corpus=f"{corpus}/train.txt", heldout=0.5)
    with pytest.raises(UserError, match=r"train.txt:1: the tokenizers of teacher and student disagree at token 0"):
        prepare(table, word_piece(), word_piece("hgfedcba"), tell=quiet)
    assert list((Path(table.cache) / "tokens").iterdir()) == []


# --- the cache ---


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one with every batch of documents that is tokenised."""
    calls: list[Any] = []
    encode = tokenise.encode
    monkeypatch.setattr(tokenise, "encode", lambda *words: calls.append(words) or encode(*words))
    return calls


def test_the_second_time_nothing_is_tokenised(data: Build, word_piece: Build, encoded: list[Any]) -> None:
    first = prepare(data(), word_piece(), tell=quiet)
    assert len(encoded) == 1
    second = prepare(data(max_length=6), word_piece(), word_piece(), tell=quiet)  # another block length: the same entry
    assert len(encoded) == 1
    assert np.array_equal(first.train.tokens, second.train.tokens)
    assert second.facts | {"max_length": 8, "blocks": 66, "heldout_blocks": 13} == first.facts


def test_what_matters_makes_another_entry(
    data: Build, word_piece: Build, causal: Build, corpus: Path, encoded: list[Any]
) -> None:
    def entries(table: Any, *tokenizers: Any) -> int:
        prepare(table, *tokenizers, tell=quiet)
        return len(list((Path(data().cache) / "tokens").iterdir()))

    assert entries(data(), word_piece()) == 1
    assert entries(data(), causal()) == 2
    assert entries(data(), word_piece(), word_piece(["a", *"bcdefgh", "still"])) == 3
    assert entries(data(separator="\n"), word_piece()) == 4
    assert entries(data(max_bytes=300), word_piece()) == 5
    (corpus / "train.txt").write_text((corpus / "train.txt").read_text().replace("n7", "n8"))
    assert entries(data(), word_piece()) == 6


@pytest.mark.parametrize("name", ["train.bin", "heldout.bin", "train.idx.npy", "facts.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_noticed_and_mended(
    data: Build, word_piece: Build, encoded: list[Any], name: str, damage: str
) -> None:
    before = prepare(data(), word_piece(), tell=quiet)
    rows = before.train.rows(range(66)).copy()
    path = entry_of(data()) / name
    raw = bytearray(path.read_bytes())
    path.unlink()
    raw[len(raw) // 2] ^= 1
    if damage != "remove":
        path.write_bytes(raw if damage == "flip" else raw[:-1])
    told: list[str] = []
    after = prepare(data(), word_piece(), tell=told.append)
    assert any("damaged" in line for line in told)
    assert len(encoded) == 2
    assert np.array_equal(after.train.rows(range(66)), rows)
    assert after.facts == before.facts


def test_another_process_that_was_faster_wins(data: Build, word_piece: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def late(new: Path, folder: Path) -> None:
        folder.mkdir()
        for path in new.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        rename(new, folder)

    monkeypatch.setattr(store.os, "rename", late)
    assert len(prepare(data(), word_piece(), tell=quiet).train) == 66
    assert entry_of(data()).is_dir()


def test_a_cache_that_cannot_be_written_is_an_error(data: Build, word_piece: Build, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\); set data.cache"):
        prepare(data(cache=str(tmp_path / "file")), word_piece(), tell=quiet)


def test_the_place_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LIMBECK_CACHE", raising=False)
    assert store.cache_folder() == Path.home() / ".cache/limbeck"
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    assert store.cache_folder() == tmp_path
    assert store.cache_folder("here") == Path("here")
