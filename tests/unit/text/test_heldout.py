from __future__ import annotations

from pathlib import Path
from typing import Any

from test_corpora import write

from limbeck.recipe.data import Data
from limbeck.text.heldout import heldout_source, separate


def table(**words: Any) -> Data:
    return Data.model_validate(words)


def parts(data: Data) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"train": [], "heldout": [], "both": []}
    for part, _, text in separate(data):
        found[part].append(text)
    return found


def test_a_share_is_held_out_by_text(tmp_path: Path) -> None:
    texts = [f"text {i % 500}" for i in range(1000)]
    first = parts(table(corpus=str(write(tmp_path / "a.jsonl", texts)), heldout=0.2))
    assert not {*first["train"]} & {*first["heldout"]}
    assert len(first["train"]) + len(first["heldout"]) == 1000
    assert 70 < len({*first["heldout"]}) < 130
    second = parts(table(corpus=str(write(tmp_path / "b.jsonl", texts[::-1])), heldout=0.2))
    assert {*first["heldout"]} == {*second["heldout"]}
    assert {*first["heldout"]} < {*parts(table(corpus=str(tmp_path / "a.jsonl"), heldout=0.4))["heldout"]}


def test_a_corpus_held_out_is_never_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ["one", "two", "three"])
    write(tmp_path / "b.txt", ["two", "four"])
    found = parts(table(corpus=str(tmp_path / "a.jsonl"), heldout=str(tmp_path / "b.txt")))
    assert found == {"train": ["one", "three"], "heldout": ["two", "four"], "both": ["two"]}


def test_dev_files_of_the_folder_are_the_held_out_part(tmp_path: Path) -> None:
    write(tmp_path / "train.txt", ["one", "two"])
    write(tmp_path / "valid.jsonl", ["three"])
    data = table(corpus=str(tmp_path), heldout=0.5)
    assert parts(data) == {"train": ["one", "two"], "heldout": ["three"], "both": []}
    own = table(corpus=str(tmp_path), heldout=str(write(tmp_path / "other.txt", ["four"])))
    assert heldout_source(own) == (str(tmp_path / "other.txt"), "train")
    assert heldout_source(table(corpus="docs", heldout=str(tmp_path))) == (str(tmp_path), "heldout")


def test_max_bytes_is_for_training_text(tmp_path: Path) -> None:
    write(tmp_path / "train.txt", ["one", "two"])
    write(tmp_path / "dev.txt", ["three", "four"])
    data = table(corpus=str(tmp_path), max_bytes=3)
    assert parts(data) == {"train": ["one"], "heldout": ["three", "four"], "both": []}


def test_a_share_of_the_training_text_lies_within_a_larger_one(tmp_path: Path) -> None:
    """Whatever is trained on, the same text is held out; copies of a text are in or out together."""
    spec = str(write(tmp_path / "a.jsonl", [f"text {i % 500}" for i in range(1000)]))
    found = {share: _all_parts(table(corpus=spec, heldout=0.2, train_share=share)) for share in (0.1, 0.4, 1.0)}
    few, some, every = (set(it["train"]) for it in found.values())
    assert few < some < every and 20 < len(few) < 62 and 120 < len(some) < 200
    assert len({tuple(it["heldout"]) for it in found.values()}) == 1
    assert sorted(found[0.1]["train"] + found[0.1]["aside"]) == sorted(found[1.0]["train"])
    assert all(found[0.1]["train"].count(text) == 2 for text in few)


def _all_parts(data: Data) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"train": [], "heldout": [], "both": [], "aside": []}
    for part, _, text in separate(data):
        found[part].append(text)
    return found


def test_joined_corpora_are_separated_each_by_its_own_rule(tmp_path: Path) -> None:
    """Held-out documents come once, and what one corpus holds out is not trained on in another."""
    own, other = tmp_path / "own", tmp_path / "other.txt"
    own.mkdir()
    (own / "train.txt").write_text("a\n\nb")
    (own / "dev.txt").write_text("c\n\nd")
    other.write_text("c\n\n" + "\n\n".join(f"e{i}" for i in range(50)))
    found = parts(table(corpus=f"{own} + {other}", heldout=0.2))
    assert found["heldout"][:2] == ["c", "d"]
    assert len(found["heldout"]) == len({*found["heldout"]}) > 2
    assert found["both"] == ["c"]
    assert not {*found["train"]} & {*found["heldout"]}
    third = write(tmp_path / "held.txt", ["e1", "z"])
    found = parts(table(corpus=f"{own} + {other}", heldout=str(third)))
    assert (found["heldout"], found["both"]) == (["e1", "z"], ["e1"])
