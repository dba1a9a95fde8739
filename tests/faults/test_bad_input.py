"""Bad text, bad models, bad recipes, at the command line: one line with the place and the remedy, exit status 2, nothing left."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard
from kernel import VOCABULARY, answer, lay_out, recipe, tokenizer
from rows import sentence
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from limbeck.text import readers

Refused = Callable[[dict[str, Any]], str]
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("world"))


@pytest.fixture
def refused(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """What `limbeck run` says of a recipe over the given corpus or teacher; and that it leaves nothing."""
    monkeypatch.chdir(tmp_path)

    def command(words: dict[str, Any]) -> str:
        said = recipe(world, tmp_path / "runs" / "run")
        said["data"] |= {"cache": str(tmp_path / "cache")} | words.get("data", {})
        said["models"] |= words.get("models", {})
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(said), encoding="utf-8")
        status, out, log = answer(monkeypatch, capsys, "run", "mine.yaml")
        *told, line = log.splitlines()
        assert status == 2 and not out, log
        assert line.startswith("limbeck: error: ") and ";" in line and line.isprintable(), log
        assert not [it for it in told if not it.startswith(("precision ", "tokenising "))], log
        assert not (tmp_path / "runs").exists()
        assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
        return line.removeprefix("limbeck: error: ")

    return command


# text

GOOD = "".join(json.dumps({"text": sentence(i) * 3}) + "\n" for i in range(60)).encode()
BLANK = (b" " * 99 + b"\n") * (MEGABYTE // 5)
TEXTS: dict[str, tuple[bytes, str]] = {
    "binary.txt": (bytes(range(256)) * 50, "binary.txt:2: not UTF-8 (invalid start byte); convert the file"),
    "latin1.txt": ("ba be\n\nbi é bo\n".encode("latin-1"), "latin1.txt:3: not UTF-8 (invalid continuation byte); convert"),
    "utf16.txt": ("ba be\n".encode("utf-16"), "utf16.txt:1: not UTF-8 (invalid start byte); convert the file"),
    "utf16-bare.txt": ("ba be\n".encode("utf-16-le"), "utf16-bare.txt:1: a NUL character, which is no text; convert"),
    "nul.txt": (b"ba be\nbi\0bo\n", "nul.txt:2: a NUL character, which is no text; convert the file to UTF-8"),
    "blank.txt": (b"\n \n\n\t\n" * 50, "blank.txt: no text in this corpus; name one that has some"),
    "nul.jsonl": (GOOD + b'{"text": "ba\\u0000be"}\n', "nul.jsonl:61: the field 'text' holds a NUL character"),
    "broken.jsonl": (GOOD + b'{"text": "ba\n' + GOOD, "broken.jsonl:61: not JSON (Unterminated string"),
    "deep.jsonl": (GOOD + b"[" * 10**6 + b"\n", "deep.jsonl:61: not JSON (maximum recursion depth exceeded"),
    "number.jsonl": (GOOD + b'{"text": ' + b"9" * 10_000 + b"}\n", "number.jsonl:61: not JSON (Exceeds the limit"),
    "column.jsonl": (GOOD + b'{"body": "ba"}\n', "column.jsonl:61: no field 'text'; set data.field to one of: body"),
    "column.tsv": (b"body\tid\nba\t1\n", "column.tsv:1: no field 'text'; set data.field to one of: body, id"),
    "short.csv": (b"text,id\nba,1\nbe\n", "short.csv:3: 1 fields under 2 names; mend the line"),
    "cut.jsonl.gz": (gzip.compress(GOOD)[:-9], "cut.jsonl.gz: cannot be read to its end (Compressed file ended before"),
    "cut.jsonl.zst": (zstandard.compress(GOOD)[:-9], "cut.jsonl.zst: cannot be read to its end (Truncated compressed"),
    "plain.jsonl.gz": (GOOD, "plain.jsonl.gz: cannot be read to its end (Not a gzipped file"),
    "none.parquet": (b"PAR1" + bytes(100), "none.parquet: cannot be read to its end (not a whole parquet file"),
    "long.txt": (b"ba be " * (20 * MEGABYTE // 6), "long.txt:1: a line longer than 16,777,216 bytes; break it into"),
    "long.jsonl": (GOOD + b'{"text": "' + b"ba " * (6 * MEGABYTE) + b'"}', "long.jsonl:61: a line longer than 16,777,216"),
    "whole.txt": (b"ba be\n" * (3 * MEGABYTE), "whole.txt:1: a document longer than 16,777,216 bytes; set data.separator"),
    "blank.txt.gz": (gzip.compress(BLANK), "blank.txt.gz: unpacks to more than 250 times its size; unpack"),
    "blank.jsonl.zst": (zstandard.compress(BLANK), "blank.jsonl.zst: unpacks to more than 250 times its"),
    "bomb.txt.gz": (gzip.compress(b"ba " * (20 * MEGABYTE // 3)), "bomb.txt.gz: unpacks to more than 250 times its size"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_text(name: str, refused: Refused, tmp_path: Path) -> None:
    content, message = TEXTS[name]
    (tmp_path / name).write_bytes(content)
    begin = time.process_time()
    assert refused({"data": {"corpus": str(tmp_path / name)}}).startswith(f"{tmp_path}/{message}")
    assert time.process_time() - begin < 20


def test_one_line_of_50_megabytes(refused: Refused, tmp_path: Path) -> None:
    """Stopped by its size, before anything is made of it."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"ba be bi bo bu " * (50 * MEGABYTE // 15))
    assert refused({"data": {"corpus": str(path)}}).endswith("break it into documents, or raise data.longest")


def test_the_limit_is_a_key_of_the_recipe(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD)
    longest = max(map(len, GOOD.splitlines()))
    line = refused({"data": {"corpus": str(path), "longest": longest - 60, "heldout": 0.2}})
    assert "bytes; break it into documents, or raise data.longest" in line
    path = tmp_path / "a.txt"
    path.write_bytes(b"ba be " * 100)
    assert "a line longer than 599 bytes" in refused({"data": {"corpus": str(path), "longest": 599}})
    assert "longer" not in refused({"data": {"corpus": str(path), "longest": 600}})


def test_a_parquet_that_unpacks_to_much_is_refused_unread(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["ba " * (20 * MEGABYTE // 3)]}), path, compression="zstd")
    assert path.stat().st_size < MEGABYTE
    assert f"{path}: unpacks to more than 250 times its size; write it without" in refused(
        {"data": {"corpus": str(path)}}
    )


def test_a_small_file_may_pack_well(tmp_path: Path) -> None:
    """A kilobyte of the same word is no bomb: the limit is of what is large as well."""
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"ba be\n\n" * MEGABYTE))
    assert readers.RATIO * path.stat().st_size < 7 * MEGABYTE
    from limbeck.text.corpora import read_documents

    assert sum(1 for _ in read_documents(str(path))) == MEGABYTE


@pytest.mark.parametrize("size", [1, 3, 7, 1 << 20])
def test_lines_are_those_of_the_file(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is read at a time."""
    raw = "\n\nä\r\n\n" + "b" * 20 + "\n" + "c\n" * 5 + "end"
    (tmp_path / "a.txt").write_text(raw, newline="")
    monkeypatch.setattr(readers, "CHUNK", size)
    found = list(readers._chunks(tmp_path / "a.txt", "", 1000))
    assert "".join(text for _, text in found) == raw
    for first, text in found:
        assert first == 1 + "".join(t for f, t in found if f < first).count("\n")
        assert text.endswith("\n") or text == found[-1][1]


@pytest.mark.parametrize(
    "word",
    [
        "~nobody-is-here/x",
        "x" * 5000,
        "a/" + "x" * 300,
        "a\0b",
        "/root/\nx",
        "hub:",
        "hub:x",
        "hub:../x",
        "hub:a/b/c",
        "hub:/a/b",
    ],
)
@pytest.mark.parametrize("place", ["data.corpus", "models.teacher", "data.cache", "out"])
def test_places_that_are_none(
    place: str,
    word: str,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Refused, but for a folder that can be made."""
    if place in ("data.cache", "out") and word.startswith(("hub:", "/root")):
        pytest.skip("a folder like others")
    monkeypatch.chdir(tmp_path)
    said = recipe(world, tmp_path / "run")
    table, _, last = place.rpartition(".")
    (said[table] if table else said)[last] = word
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(said), encoding="utf-8")
    status, out, log = answer(monkeypatch, capsys, "check", "mine.yaml")
    assert (status, out, len(log.splitlines())) == (2, "", 1), log
    assert ";" in log and len(log) < 600


# models


def tokenizer_without(*names: str) -> PreTrainedTokenizerFast:
    """That of the teacher, which says nothing of some of its special tokens."""
    known = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    kept = {name: token for name, token in known.items() if name not in names}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer, **kept)


def no_mask(folder: Path) -> None:
    for path in folder.glob("tok*"):
        path.unlink()
    tokenizer_without("mask_token").save_pretrained(folder)


def no_unknown(folder: Path) -> None:
    """A vocabulary that lacks the token for what it lacks."""
    words = {f"w{number}": number for number in range(VOCABULARY - 5)}
    backend = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    for path in folder.glob("tok*"):
        path.unlink()
    names = {"cls_token": "w1", "sep_token": "w2", "mask_token": "w3", "pad_token": "w0"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)


def linked_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to("../elsewhere.safetensors")


def indexed_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    index = {"weight_map": {"bert.embeddings.word_embeddings.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def config(**words: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | words))

    return change


MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a link out of the folder": (linked_out, "model.safetensors: leads out of its folder, to "),
    "an index out of the folder": (indexed_out, "'../elsewhere.safetensors' is no file of the folder; mend the index"),
    "ten million layers": (config(num_hidden_layers=10**7), "num_hidden_layers of config.json is 10000000, and no size"),
    "no width": (config(hidden_size=0), "hidden_size of config.json is 0, and no size from 1 to 1,000,000; mend it"),
    "no mask token": (no_mask, "no mask token, and the text is masked; take a tokenizer that has one, or set data.masking.mode"),
    "no unknown token": (no_unknown, "the tokenizer cannot read this text (WordPiece error: Missing [UNK] token"),
}  # fmt: skip


@pytest.mark.parametrize("what", MODELS)
def test_models(what: str, world: Path, refused: Refused, tmp_path: Path) -> None:
    damage, message = MODELS[what]
    shutil.copytree(world / "teacher", tmp_path / "teacher")
    damage(tmp_path / "teacher")
    assert message in refused({"models": {"teacher": str(tmp_path / "teacher")}})


def test_the_hubs_own_cache_may_be_named_as_a_folder(world: Path, tmp_path: Path) -> None:
    """Its snapshots are links to the blobs beside them."""
    from limbeck.models import pretrained as of_limbeck
    from limbeck.recipe.models import Source

    root = tmp_path / "models--org--name"
    (root / "snapshots" / "abc").mkdir(parents=True)
    shutil.copytree(world / "teacher", root / "blobs")
    for path in (root / "blobs").iterdir():
        (root / "snapshots" / "abc" / path.name).symlink_to(os.path.relpath(path, root / "snapshots" / "abc"))
    assert of_limbeck.config_of(Source(source=str(root / "snapshots" / "abc"))).num_hidden_layers == 4


# recipes

WORDS = {
    "bomb": "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(f"{n}: &{n} [{', '.join([f'*{m}'] * 9)}]\n" for m, n in zip("abcdefgh", "bcdefghi", strict=True)),
    "endless": "settings: &a {multi: *a}",
    "long": "question: " + "x" * (1 << 18),
    "odd": "question: !!binary AAAA",
    "truth": "name: !!bool perhaps",
    "number": "name: !!int ''",
    "time": "name: !!timestamp soon",
    "half": 'question: "\\ud800"',
}  # fmt: skip


@pytest.mark.parametrize("what", WORDS)
def test_recipes(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(WORDS[what], encoding="utf-8")
    begin = time.process_time()
    status, out, log = answer(monkeypatch, capsys, "run", "mine.yaml")
    assert (status, out, len(log.splitlines())) == (2, "", 1)
    assert log.startswith("limbeck: error: mine.yaml: ") and ";" in log and len(log) < 400
    assert time.process_time() - begin < 5
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_table_may_be_merged_into_several(tmp_path: Path) -> None:
    """YAML's own way to say a word anew is not a word that stands twice."""
    from limbeck.recipe.load import load

    (tmp_path / "mine.yaml").write_text(
        "models: {teacher: embedded}\n"
        "settings:\n"
        "  a: {terms: [&one {loss: mse, tap: hidden, weight: 1}]}\n"
        "  b: {terms: [&two {<<: *one, weight: 2}]}\n"
        "  c: {terms: [{<<: *two, weight: 3}]}\n"
    )
    found = load(str(tmp_path / "mine.yaml")).settings
    assert [found[name].terms[0].weight for name in "abc"] == [1, 2, 3]
