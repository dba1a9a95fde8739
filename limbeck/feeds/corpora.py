"""Where text lies, and which of its documents are held out.

A corpus is named by one word: `docs`, `hub:ID[:CONFIG][@REVISION]`, or the path of a file, folder or glob; several are
joined by ` + `.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from limbeck.errors import UserError
from limbeck.feeds.readers import SUPPORTED, Document, hub_commit, hub_name, kind_of, read_file, read_hub

if TYPE_CHECKING:
    from limbeck.material import Data

Split = Literal["train", "heldout"]

PAPERS = re.compile(r"\.|source|readme|licen[cs]e|notice", re.IGNORECASE)  # beside the text, and hidden files
PARTS = {
    "train": re.compile(r"train", re.IGNORECASE),
    "heldout": re.compile(r"(dev|val|valid|validation)(?![a-z])", re.IGNORECASE),
    "test": re.compile(r"test(?![a-z])", re.IGNORECASE),
}


def find_files(spec: str, split: Split = "train") -> list[Path]:
    """The files of a corpus, sorted; none for `docs` and `hub:`.

    In a folder, files named train* are the training part, and dev*, val*, valid* and validation* the held-out
    part; test* is left alone. Without a train*, every other supported file is training text, but for README,
    LICENSE and SOURCE.

    Raises:
        UserError: nothing there, or nothing there that can be read.
    """
    if spec == "docs" or spec.startswith("hub:"):
        return []
    path = Path(spec).expanduser()
    if path.is_dir():
        return _in_folder(path, split)
    if split == "heldout":
        return []
    found = [path] if path.is_file() else sorted(map(Path, glob(str(path), recursive=True)))
    files = [file for file in found if file.is_file()]
    if not files:
        remedy = "name a file, a folder, a glob, docs, or a data set of the Hub as hub:ID"
        raise UserError(f"{spec}: no such file or folder; {remedy}")
    for file in files:
        if kind_of(file) is None:
            raise UserError(f"{file}: its ending is not supported; supported are {SUPPORTED}")
    return files


def _in_folder(folder: Path, split: Split) -> list[Path]:
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and kind_of(p) and not PAPERS.match(p.name)]
    named = {part: [p for p in files if begins.match(p.name)] for part, begins in PARTS.items()}
    if split == "heldout":
        return named["heldout"]
    train = named["train"] or [p for p in files if p not in named["heldout"] and p not in named["test"]]
    if not train:
        raise UserError(f"{folder}: no training text in this folder; put files in it that end in {SUPPORTED}")
    return train


def read_documents(
    spec: str,
    *,
    field: str = "text",
    separator: str = "\n\n",
    max_bytes: int | None = None,
    split: Split = "train",
) -> Iterator[Document]:
    """The documents of a corpus in a fixed order: (name such as `train-00.jsonl.xz:17`, text); no empty ones.

    Args:
        spec: the corpus, in the words of this module's first lines.
        field: the column that holds the text in .jsonl, .parquet and Hub data sets.
        separator: what stands between the documents of a .txt file.
        max_bytes: stop after the document that brings the text to so many bytes of UTF-8.
        split: the part of a folder to read.

    Raises:
        UserError: missing, damaged or empty, with file and line.
    """
    size = 0
    for name, text in _all_documents(spec, field, separator, split):
        if not text.strip():
            continue
        yield name, text
        size += len(text.encode())
        if max_bytes is not None and size >= max_bytes:
            return
    if not size:
        raise UserError(f"{spec}: no text in this corpus; name one that has some")


def _all_documents(spec: str, field: str, separator: str, split: Split) -> Iterator[Document]:
    if spec == "docs":
        from limbeck.feeds import docs

        yield from docs.documents()
    elif spec.startswith("hub:"):
        yield from read_hub(spec, field)
    for path in find_files(spec, split):
        yield from read_file(path, field, separator)


def fingerprint(spec: str, split: Split = "train") -> list[str]:
    """What the content of a corpus is a function of.

    Files: their bytes. The Hub: a commit. `docs`: the versions of its sources and the code that reads them,
    because reading them at every start would take seconds.
    """
    if spec == "docs":
        from limbeck.feeds import docs

        versions = [f"{name} {version}" for name, version in docs.sources().items()]
        return ["docs", *versions, file_sha256(Path(docs.__file__))]
    if spec.startswith("hub:"):
        name, config, _ = hub_name(spec)
        return ["hub", name, config or "", hub_commit(spec)]
    return [word for path in find_files(spec, split) for word in (*(kind_of(path) or ()), file_sha256(path))]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def heldout_source(data: Data) -> tuple[str, Split] | None:
    """Where the held-out documents are read from; None where they are drawn from the corpus by their hash.

    A corpus named by `data.heldout` comes first, then the dev* or valid* files of the corpus's own folder.
    """
    spec = data.heldout if isinstance(data.heldout, str) else data.corpus
    if find_files(spec, "heldout"):
        return spec, "heldout"
    return (spec, "train") if isinstance(data.heldout, str) else None


def each(data: Data) -> list[Data]:
    """One `Data` for every corpus that `data.corpus` joins by ` + `."""
    return [data.model_copy(update={"corpus": spec.strip()}) for spec in data.corpus.split(" + ")]


def separate(data: Data) -> Iterator[tuple[str, str, str]]:
    """Every document once, as (part, name, text): first what separate held-out corpora hold, then corpus by corpus.

    The part is `heldout`, `train`, or `both`: training text that is word for word a document of a separate
    held-out corpus and must not be trained on. Drawn by hash, all copies of a text fall on the same side.
    """
    sources = {one.corpus: heldout_source(one) for one in each(data)}
    separate_ones: list[tuple[str, Split]] = list(dict.fromkeys(source for source in sources.values() if source))
    heldout: set[bytes] = set()
    for spec, split in separate_ones:
        for name, text in read_documents(spec, field=data.field, separator=data.separator, split=split):
            heldout.add(_digest(text))
            yield "heldout", name, text
    for corpus, source in sources.items():
        share = float(data.heldout) if source is None else 0.0
        for name, text in read_documents(corpus, field=data.field, separator=data.separator, max_bytes=data.max_bytes):
            digest = _digest(text)
            drawn = int.from_bytes(digest[:8], "big") < share * 2**64
            yield "both" if digest in heldout else "heldout" if drawn else "train", name, text


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
