from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import UserError
from limbeck.system.files import file_sha256
from limbeck.text import docs, readers
from limbeck.text.corpora import find_files, fingerprint, read_documents

TEXTS = ["one spirit", "zwei Geister\nund Ärger", "three \u2028 stills"]
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}
FILES = [f"{kind}{packing}" for kind in (".txt", ".jsonl", ".json") for packing in PACK] + [".parquet"]


def write(path: Path, texts: list[str], field: str = "text") -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"id": list(range(len(texts))), field: texts}), path)
        return path
    plain = ".txt" in path.suffixes
    content = "\n\n".join(texts) if plain else "".join(json.dumps({"id": 1, field: text}) + "\n" for text in texts)
    path.write_bytes(PACK[path.suffix if path.suffix in PACK else ""](content.encode()))
    return path


def texts_of(spec: Path | str, **words: Any) -> list[str]:
    return [text for _, text in read_documents(str(spec), **words)]


def message(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- files that are right ---


@pytest.mark.parametrize("ending", FILES)
def test_every_format_gives_the_texts_back(tmp_path: Path, ending: str) -> None:
    assert texts_of(write(tmp_path / f"a{ending}", TEXTS)) == TEXTS
    assert texts_of(write(tmp_path / f"b{ending}", TEXTS, "body" if "txt" not in ending else ""), field="body") == TEXTS


def test_documents_are_named_by_file_and_line(tmp_path: Path) -> None:
    names = [name for name, _ in read_documents(str(write(tmp_path / "a.jsonl.xz", ["x", " ", "y"])))]
    assert names == ["a.jsonl.xz:1", "a.jsonl.xz:3"]
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n\r\n\r\nthree\r\n\r\nfour\r\n")
    assert list(read_documents(str(tmp_path / "b.txt"))) == [
        ("b.txt:1", "one\ntwo"),
        ("b.txt:6", "three"),
        ("b.txt:8", "four"),
    ]
    names = [name for name, _ in read_documents(str(write(tmp_path / "c.parquet", ["x", "", "y"])))]
    assert names == ["c.parquet:1", "c.parquet:3"]


@given(
    st.lists(st.text("ab\n|é", max_size=9), min_size=1, max_size=9),
    st.sampled_from(["\n\n", "|", "\n|\n", "||"]),
    st.integers(1, 20),
)
@settings(deadline=None, max_examples=80)
def test_streamed_splitting_is_splitting(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], separator: str, chunk: int
) -> None:
    path = tmp_path_factory.mktemp("split") / "a.txt"
    content = "x" + separator.join(parts)
    path.write_bytes(content.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "CHUNK", chunk)
        found = list(read_documents(str(path), separator=separator))
    assert [text for _, text in found] == [part.strip() for part in content.split(separator) if part.strip()]
    lines = content.split("\n")
    for name, text in found:
        assert text.split("\n")[0] in lines[int(name.partition(":")[2]) - 1]


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
def test_a_line_of_white_space_separates_like_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(readers, "CHUNK", chunk)
    path = tmp_path / "wiki.train.txt"
    path.write_bytes(b" \n = One = \n \n text one\n  indented\n\t\r\n = Two = \n   ")
    assert list(read_documents(str(path))) == [
        ("wiki.train.txt:2", "= One ="),
        ("wiki.train.txt:4", "text one\n  indented"),
        ("wiki.train.txt:7", "= Two ="),
    ]
    assert texts_of(path, separator="\n = ") == ["One = \n \n text one\n  indented", "Two ="]


def test_the_key_of_running_text_knows_how_it_is_separated(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.jsonl").write_text("{}")
    digests = [file_sha256(tmp_path / name) for name in ("a.txt", "a.jsonl")]
    assert fingerprint(str(tmp_path / "a.txt")) == [".txt, 2", "", digests[0]], "no entry of an older reader is opened"
    assert fingerprint(str(tmp_path / "a.jsonl")) == [".jsonl", "", digests[1]], "older entries stay"


def test_a_folder_without_training_text_says_what_each_file_is(tmp_path: Path) -> None:
    folder(tmp_path, "dev.txt", "test.tsv", "notes.pdf", "README.txt", ".hidden")
    (tmp_path / "more").mkdir()
    said = message(lambda: find_files(str(tmp_path)))
    assert said.startswith(
        f"{tmp_path}: no training text in this folder (README.txt: describes the text, dev.txt: held out, more: a folder, "
        "which is not searched, notes.pdf: its ending is not supported, test.tsv: test); put a file such as train.txt into it"
    )
    folder(tmp_path, *(f"z{number}.pdf" for number in range(20)))
    assert "supported, and 17 more); put" in message(lambda: find_files(str(tmp_path)))
    (tmp_path / "empty").mkdir()
    assert "(it is empty); put" in message(lambda: find_files(str(tmp_path / "empty")))


def test_nulls_are_empty_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": null}\n\n{"text": "x"}')
    assert list(read_documents(str(tmp_path / "a.jsonl"))) == [("a.jsonl:3", "x")]


def test_max_bytes_stops_after_the_document_that_reaches_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["äää", "bb", "c"])
    assert texts_of(path, max_bytes=6) == ["äää"]
    assert texts_of(path, max_bytes=7) == ["äää", "bb"]


def test_zst_of_several_frames_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(b"one\n\n") + zstandard.compress(b"two"))
    assert texts_of(tmp_path / "a.txt.zst") == ["one", "two"]


# --- which files ---


def folder(path: Path, *names: str) -> Path:
    path.mkdir(exist_ok=True)
    for name in names:
        (path / name).write_text("x")
    return path


def test_a_folder_has_parts(tmp_path: Path) -> None:
    names = [
        "train-1.txt",
        "train-0.jsonl.xz",
        "test.txt",
        "dev.txt",
        "valid_1.txt",
        "val.txt",
        "other.txt",
        "t.pdf",
    ]
    spec = str(folder(tmp_path, *names))
    assert [p.name for p in find_files(spec)] == ["train-0.jsonl.xz", "train-1.txt"]
    assert [p.name for p in find_files(spec, "heldout")] == ["dev.txt", "val.txt", "valid_1.txt"]


def test_without_a_train_file_all_others_are_text(tmp_path: Path) -> None:
    names = [
        "b.txt",
        "a.jsonl",
        "testament.txt",
        "test.txt",
        "dev.txt",
        "README.txt",
        "SOURCE.txt",
        "LICENSE-2.txt",
    ]
    spec = str(folder(tmp_path, *names, ".hidden.txt", "c.pdf"))
    assert [p.name for p in find_files(spec)] == ["a.jsonl", "b.txt", "testament.txt"]


def test_a_glob_is_sorted_and_takes_what_it_matches(tmp_path: Path) -> None:
    folder(tmp_path, "b.txt", "a.txt", "c.jsonl")
    assert [p.name for p in find_files(f"{tmp_path}/*.txt")] == ["a.txt", "b.txt"]
    assert f"{tmp_path}/d.pdf" in message(lambda: find_files(str(folder(tmp_path, "d.pdf") / "*")))


@pytest.mark.parametrize("name", ["nowhere", "nowhere/*.txt", "empty", "a.pdf", "a.parquet.gz"])
def test_what_cannot_be_found_is_named(tmp_path: Path, name: str) -> None:
    folder(tmp_path, "a.pdf", "a.parquet.gz")
    folder(tmp_path / "empty", "README.txt", "test.txt", "x.pdf")
    text = message(lambda: texts_of(tmp_path / name))
    assert str(tmp_path / name) in text
    assert ";" in text  # a remedy


# --- files that are wrong ---

BAD_LINES = {
    '{"text": "x"': "not JSON",
    '["x"]': "not an object",
    '"x"': "not an object",
    '{"title": "x", "body": "y"}': "one of: title, body",
    '{"text": 3}': "int",
    '{"text": "\\ud800"}': "surrogate",
}


@pytest.mark.parametrize(("line", "words"), BAD_LINES.items())
@pytest.mark.parametrize("packing", PACK)
def test_a_bad_line_is_named(tmp_path: Path, line: str, words: str, packing: str) -> None:
    path = tmp_path / f"a.jsonl{packing}"
    path.write_bytes(PACK[packing](f'{{"text": "x"}}\n\n{line}\n'.encode()))
    text = message(lambda: texts_of(path))
    assert f"{path}:3: " in text
    assert words in text


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_what_is_not_utf8_is_named_by_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"text": "x"}\n{"text": "x"}\n\xff\xfe\n')
    text = message(lambda: texts_of(tmp_path / name))
    assert f"{tmp_path / name}:3: not UTF-8" in text


@pytest.mark.parametrize("packing", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "other"])
def test_a_damaged_file_is_named(tmp_path: Path, packing: str, damage: str) -> None:
    whole = PACK[packing](json.dumps({"text": "wort " * 500}).encode())
    flipped = bytes([*whole[:20], whole[20] ^ 255, *whole[21:]])
    path = tmp_path / f"a.jsonl{packing}"
    path.write_bytes({"cut": whole[:-9], "flipped": flipped, "other": b"plain text"}[damage])
    if (packing, damage) == (
        ".zst",
        "flipped",
    ):  # a frame without checksum may not show it: not this reader's matter
        return
    assert f"{path}: cannot be read" in message(lambda: texts_of(path))


def test_parquet_that_is_none_or_lacks_the_field(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    assert f"{tmp_path / 'a.parquet'}: " in message(lambda: texts_of(tmp_path / "a.parquet"))
    cut = tmp_path / "c.parquet"
    whole = write(cut, ["wort " * 999, *TEXTS]).read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    cut.write_bytes(bytes(footer) + whole[footer:])
    assert f"{cut}: cannot be read" in message(lambda: texts_of(cut))
    path = write(tmp_path / "b.parquet", TEXTS, "body")
    assert "no field 'text'; set data.field to one of: id, body" in message(lambda: texts_of(path))
    assert f"{path}:1: the field 'id' holds no text but a int" in message(lambda: texts_of(path, field="id"))


@pytest.mark.parametrize("ending", FILES)
def test_an_empty_corpus_is_an_error(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a{ending}", [" "])
    assert f"{path}: no text" in message(lambda: texts_of(path))


def test_an_empty_separator_is_an_error(tmp_path: Path) -> None:
    assert "data.separator" in message(lambda: texts_of(write(tmp_path / "a.txt", TEXTS), separator=""))


# --- the embedded corpus and the Hub ---


def test_docs_are_read_by_their_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "documents", lambda: [("python/abc.py", "some prose")])
    assert list(read_documents("docs")) == [("python/abc.py", "some prose")]
    before = fingerprint("docs")
    monkeypatch.setattr(docs, "sources", lambda: {"python": "4"})
    assert fingerprint("docs") != before


def test_a_hub_set_is_streamed_at_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    asked: list[Any] = []

    class Info:
        sha = "c0ffee"

    def load(*words: Any, **more: Any) -> list[dict[str, str]]:
        asked.append((words, more))
        return [{"story": "x"}, {"story": "y"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, revision, timeout: Info())
    spec = "hub:org/name:part@v1"
    assert list(read_documents(spec, field="story")) == [("org/name:1", "x"), ("org/name:2", "y")]
    assert asked == [(("org/name", "part"), {"split": "train", "streaming": True, "revision": "c0ffee"})]
    assert fingerprint(spec) == ["hub", "org/name", "part", "c0ffee"]
    assert "one of: story" in message(lambda: texts_of(spec))


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("401 Client Error.\n\nRepository Not Found for url: ...")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    assert "hub:org/name: cannot be read from the Hub (401 Client Error)" in message(lambda: texts_of("hub:org/name"))
    assert "hub:ID" in message(lambda: texts_of("hub:"))


def test_a_full_commit_needs_no_network() -> None:
    assert fingerprint(f"hub:org/name@{'a1' * 20}")[-1] == "a1" * 20
