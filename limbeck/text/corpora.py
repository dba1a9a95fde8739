"""Where text lies, and how it is read.

A corpus is named by one word: `docs`, `hub:ID[:CONFIG][@REVISION]`, or the path of a file, folder or glob; several are
joined by ` + `.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from glob import glob
from pathlib import Path
from typing import Literal, TypeVar

from limbeck.errors import UserError
from limbeck.system.files import file_sha256, path_of
from limbeck.system.progress import doing
from limbeck.text.readers import (
    SUPPORTED,
    Document,
    Row,
    columns_of,
    hub_columns,
    hub_commit,
    hub_name,
    kind_of,
    read_file,
    read_hub,
    read_hub_table,
    read_table,
)
from limbeck.text.tables import LONGEST, Column, Wanted

T = TypeVar("T")
Split = Literal["train", "heldout"]

READ_SINCE = {".txt": ".txt, 2"}  # kinds of files that were read otherwise before: 2, lines of white space separate
PAPERS = re.compile(r"\.|source|readme|licen[cs]e|notice", re.IGNORECASE)  # beside the text, and hidden files
PARTS = {
    "train": re.compile(r"(.*[^a-z])?train", re.IGNORECASE),
    "heldout": re.compile(r"(.*[^a-z])?(dev|val|valid|validation)(?![a-z])", re.IGNORECASE),
    "test": re.compile(r"(.*[^a-z])?test(?![a-z])", re.IGNORECASE),
}
ROLES = {"train": "training", "heldout": "held out", "test": "test"}
LISTED = 8  # files that an error names
TRAINING = f"put a file such as train.txt into it; supported are {SUPPORTED}"


def find_files(spec: str, split: Split = "train") -> list[Path]:
    """The files of a corpus, sorted; none for `docs` and `hub:`.

    In a folder, files with a word train* in their names (`train-00.jsonl`, `sts-train.tsv`) are the training part, and those
    with dev, val, valid or validation the held-out part; test is left alone. Without a train*, every other supported file is
    training text, but for README, LICENSE and SOURCE.

    Raises:
        UserError: nothing there, or nothing there that can be read.
    """
    if spec == "docs" or spec.startswith("hub:"):
        return []
    try:
        path = path_of(spec)
        if path.is_dir():
            return _in_folder(path, split)
        if split == "heldout":
            return []
        found = [path] if path.is_file() else sorted(map(Path, glob(str(path), recursive=True)))
        files = [file for file in found if file.is_file()]
    except OSError as error:
        raise UserError(f"{spec}: cannot be looked at ({error.strerror}); name another") from None
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
        raise UserError(f"{folder}: no training text in this folder ({_roles(folder, named)}); {TRAINING}")
    return train


def _roles(folder: Path, named: Mapping[str, list[Path]]) -> str:
    """What each file of a folder is taken for: `dev.txt: held out, a.pdf: its ending is not supported`."""
    called = {path: ROLES[part] for part, paths in named.items() for path in paths}
    there = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".")]
    said = [f"{p.name}: {called.get(p) or _passed_over(p)}" for p in there[:LISTED]]
    more = [f"and {len(there) - LISTED:,} more"] if len(there) > LISTED else []
    return ", ".join([*said, *more]) or "it is empty"


def _passed_over(path: Path) -> str:
    """Why a file of a folder is no text."""
    if path.is_dir():
        return "a folder, which is not searched"
    return "its ending is not supported" if kind_of(path) is None else "describes the text"


def read_documents(
    spec: str,
    *,
    field: Column = "text",
    separator: str = "\n\n",
    max_bytes: int | None = None,
    split: Split = "train",
    longest: int = LONGEST,
) -> Iterator[Document]:
    """The documents of a corpus in a fixed order: (name such as `train-00.jsonl.xz:17`, text); no empty ones.

    Args:
        spec: the corpus, in the words of this module's first lines.
        field: the column that holds the text where there are columns, by name or number.
        separator: what stands between the documents of a .txt file; two line ends stand for lines of white space too.
        max_bytes: stop after the document that brings the text to so many bytes of UTF-8.
        split: the part of a folder to read.
        longest: bytes of a document, and of a line of a file; a longer one is an error.

    Raises:
        UserError: missing, damaged or empty, with file and line.
    """
    yield from _some(
        _all_documents(spec, Wanted({"field": field}, "data", longest), separator, split), spec, max_bytes, str
    )


def read_rows(
    spec: str,
    columns: Mapping[str, Column],
    split: Split = "train",
    max_bytes: int | None = None,
    longest: int = LONGEST,
) -> Iterator[tuple[str, Row]]:
    """The rows of a corpus in a fixed order: (name such as `train.tsv:17`, row); none without text.

    A row has `text` str, `pair` str or None, and `label`: the value as it stands in the file, None where the column
    is missing, null or empty.

    Args:
        spec: the corpus, in the words of this module's first lines.
        columns: `text`, and where there is one `pair` and `label` -> column, as `Task.columns` says them.
        split: the part of a folder to read.
        max_bytes: stop after the row that brings the text to so many bytes of UTF-8.
        longest: bytes of a text, and of a line of a file; a longer one is an error.

    Raises:
        UserError: missing, damaged or empty, or without the columns; with file and line.
    """
    yield from _some(_all_rows(spec, Wanted(columns, "data.task", longest), split), spec, max_bytes, row_text)


def without_text(spec: str, split: Split, columns: Mapping[str, Column], longest: int = LONGEST) -> str | None:
    """The name of the first row that `read_rows` leaves out, for it has no text; None where there is none."""
    rows = _all_rows(spec, Wanted(columns, "data.task", longest), split)
    return next((name for name, row in rows if not row_text(row).strip()), None)


def row_text(row: Row) -> str:
    """All that is read of a row."""
    return row["text"] + (row["pair"] or "")


def column_names(spec: str, columns: Mapping[str, Column]) -> list[Column]:
    """All columns of a corpus: those of the first row of its training part."""
    wanted = Wanted(columns, "data.task")
    if spec.startswith("hub:"):
        return hub_columns(spec, wanted)
    return columns_of(find_files(spec)[0], wanted)


def _some(
    items: Iterator[tuple[str, T]], spec: str, max_bytes: int | None, text: Callable[[T], str]
) -> Iterator[tuple[str, T]]:
    """The items that have text, up to a number of bytes of it; none at all is an error."""
    size = 0
    for name, item in items:
        if not text(item).strip():
            continue
        yield name, item
        size += len(text(item).encode())
        if max_bytes is not None and size >= max_bytes:
            return
    if not size:
        raise UserError(f"{spec}: no text in this corpus; name one that has some")


def _all_rows(spec: str, wanted: Wanted, split: Split) -> Iterator[tuple[str, Row]]:
    if spec == "docs":
        raise UserError("docs: running text has no columns; name a corpus of rows in data.corpus")
    files = (read_table(path, wanted) for path in find_files(spec, split))
    for rows in (read_hub_table(spec, wanted),) if spec.startswith("hub:") else files:
        for name, row in rows:
            yield name, {"text": row["text"], "pair": row.get("pair"), "label": row.get("label")}


def _all_documents(spec: str, wanted: Wanted, separator: str, split: Split) -> Iterator[Document]:
    if spec == "docs":
        from limbeck.text import docs

        with doing("gathering the texts of docs"):
            found = docs.documents()
        yield from found
    elif spec.startswith("hub:"):
        yield from read_hub(spec, wanted)
    for path in find_files(spec, split):
        yield from read_file(path, wanted, separator)


def fingerprint(spec: str, split: Split = "train") -> list[str]:
    """What the content of a corpus is a function of.

    Files: their bytes. The Hub: a commit. `docs`: the versions of its sources and the code that reads them,
    because reading them at every start would take seconds.
    """
    if spec == "docs":
        from limbeck.text import docs

        versions = [f"{name} {version}" for name, version in docs.sources().items()]
        return ["docs", *versions, file_sha256(Path(docs.__file__))]
    if spec.startswith("hub:"):
        name, config, _ = hub_name(spec)
        return ["hub", name, config or "", hub_commit(spec)]
    found = [(*(kind_of(path) or ()), _read_sha256(path)) for path in find_files(spec, split)]
    return [READ_SINCE.get(word, word) for words in found for word in words]


def _read_sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend or replace the file") from None
