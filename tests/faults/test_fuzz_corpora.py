"""Mutated files of text: each is tokenised, or refused in one line that names the file, and leaves nothing in the cache."""

from __future__ import annotations

import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from kernel import tokenizer
from mutants import ODD, halves, of_bytes, refusal
from rows import framed, sentence

from limbeck.recipe.data import Data
from limbeck.text.blocks import prepare
from limbeck.text.rows import prepare_task

FEW, ALL = 200, 2000
PARTS = [pytest.param(range(FEW), id="few"), pytest.param(range(FEW, ALL), id="all", marks=pytest.mark.slow)]
KINDS = (".txt", ".jsonl", ".tsv", ".csv", ".parquet")
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda raw: gzip.compress(raw, mtime=0),
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}
TASK = {"kind": "classification", "text": "text", "label": "label"}


def rows(draw: Random) -> list[dict[str, Any]]:
    """Some rows, of which some are odd."""
    found: list[dict[str, Any]] = [
        {"text": sentence(i) * 3, "label": ("bad", "good")[i % 2], "n": i} for i in range(40)
    ]
    for _ in range(draw.choice((0, 0, 1, 3))):
        draw.choice(found)[draw.choice(("text", "label", "n"))] = draw.choice(ODD)
    return found


def raw(kind: str, draw: Random) -> bytes:
    """A file of the kind that is sound, but for odd values."""
    table = rows(draw)
    if kind == ".txt":
        return "\n\n".join(str(row["text"]) for row in table).encode("utf-8", "surrogatepass")
    if kind == ".jsonl":
        return "".join(json.dumps(row, default=str) + "\n" for row in table).encode()
    if kind == ".parquet":
        columns: dict[str, Any] = {name: [str(row[name])[:400] for row in table] for name in ("text", "label")}
        if draw.random() < 0.2:
            columns["label"] = [draw.choice((1, None, 2.5)) for _ in table]
        sink = io.BytesIO()
        how = draw.choice(("none", "snappy", "zstd", "gzip"))
        pq.write_table(pa.table(columns), sink, compression=how, row_group_size=16, use_dictionary=draw.random() < 0.5)
        return sink.getvalue()
    between = {".tsv": "\t", ".csv": ","}[kind]
    return "".join(
        f"{row['text']}{between}{row['label']}\n" for row in [{"text": "text", "label": "label"}, *table]
    ).encode()


def mutant(number: int) -> tuple[str, bytes, bool]:
    """The ending of a file, its bytes, and whether its rows are a task."""
    draw = Random(number)
    kind = KINDS[number % len(KINDS)]
    packing = "" if kind == ".parquet" else draw.choice(("", "", ".gz", ".xz", ".zst"))
    plain, where = raw(kind, draw), draw.choice(("rows alone", "text", "file"))
    packed = PACK[packing](of_bytes(plain, draw) if where == "text" else plain)
    return kind + packing, of_bytes(packed, draw) if where == "file" else packed, kind != ".txt" and draw.random() < 0.5


@pytest.mark.parametrize("numbers", PARTS)
def test_text_is_read_or_refused(numbers: range, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused = 0
    for number in numbers:
        ending, content, is_task = mutant(number)
        path, cache = tmp_path / f"corpus{ending}", tmp_path / "cache" / str(number)
        path.write_bytes(content)
        said = {"corpus": str(path), "cache": str(cache), "heldout": 0.3, "max_length": 8}
        data = Data.model_validate(said | ({"task": TASK} if is_task else {}))
        try:
            line = refusal(lambda data=data, is_task=is_task: read(data, is_task))
            assert not line or "corpus" in line or "data." in line, line
            assert halves(cache) == []
        except BaseException as error:
            error.add_note(f"mutant({number}), a {ending}: {content[:500]!r}")
            raise
        refused += bool(line)
        path.unlink()
    assert 0.2 < refused / len(numbers) < 0.95, "else nothing is tried"
    assert capfd.readouterr() == ("", "")


def read(data: Data, is_task: bool) -> None:
    """Tokenises it, and reads all of it."""
    corpus = prepare_task(data, framed(), tell=_quiet) if is_task else prepare(data, tokenizer(), tell=_quiet)
    for part in (corpus.train, corpus.heldout):
        part.rows(range(len(part)))


def _quiet(line: str) -> None:
    pass
