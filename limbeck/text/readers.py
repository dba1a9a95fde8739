"""Readers of one file, or of one data set of the Hub, document by document or row by row."""

from __future__ import annotations

import gzip
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, cast

from limbeck.errors import Interrupted, UserError
from limbeck.system import hub
from limbeck.text.tables import TABLES, Column, Wanted, table_records

Document = tuple[str, str]  # (name, text)
Row = dict[str, Any]  # key of the recipe -> value

KINDS = (".txt", ".jsonl", ".json", ".parquet", *TABLES)
PACKINGS = (".gz", ".xz", ".zst")
SUPPORTED = ".txt, .tsv, .csv, .jsonl, .json (one object per line), each also as .gz, .xz or .zst, and .parquet"
EMPTY_LINE = "\n\n"  # as a separator it also stands for a line of white space
BLANK = re.compile(r"^[^\S\n]+$", re.MULTILINE)
CHUNK = 1 << 20  # bytes that are read at a time
LARGE, RATIO = 1 << 24, 250  # a file may unpack to LARGE bytes, or to so many times its size: no text packs better
HUB_NAME = re.compile(r"hub:(?P<id>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[^@]+))?(@(?P<revision>.+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")


def kind_of(path: Path) -> tuple[str, str] | None:
    """(".jsonl", ".xz") of `a.jsonl.xz`; None where the ending is not supported."""
    path = Path(path.name.lower())
    packed = path.suffix in PACKINGS
    kind, packing = (path.with_suffix("").suffix, path.suffix) if packed else (path.suffix, "")
    return (kind, packing) if kind in KINDS and not (kind == ".parquet" and packed) else None


def read_file(path: Path, wanted: Wanted, separator: str) -> Iterator[Document]:
    """The documents of a file of a supported kind, of columns the `field` that is wanted: (`NAME:LINE`, text).

    Raises:
        UserError: damaged, not UTF-8, not JSON, too long, or without the field; it names file and line.
    """
    kind, packing = cast("tuple[str, str]", kind_of(path))
    if kind == ".txt":
        with _to_its_end(path):
            yield from _read_txt(path, packing, separator, wanted.longest)
    else:
        yield from ((name, row["field"]) for name, row in read_table(path, wanted))


def read_table(path: Path, wanted: Wanted) -> Iterator[tuple[str, Row]]:
    """The rows of a file that has columns: (`NAME:LINE`, what is wanted of it).

    Raises:
        UserError: damaged, not UTF-8, broken or too long rows, or without the columns; it names file and line.
    """
    with _to_its_end(path):
        for number, row in _records(path, wanted):
            yield f"{path.name}:{number}", wanted.pick(row, f"{path}:{number}")


def columns_of(path: Path, wanted: Wanted) -> list[Column]:
    """All columns of a file: those of its first row, asked for or not."""
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        return list(pq.read_schema(path).names)
    return next((list(row) for _, row in _records(path, wanted)), [])


def _records(path: Path, wanted: Wanted) -> Iterator[tuple[int, Any]]:
    """(its number, a row as it is): whole rows, but of a .parquet only what is wanted."""
    kind, packing = cast("tuple[str, str]", kind_of(path))
    if kind == ".txt":
        raise UserError(f"{path}: running text has no columns; name a file that ends in .tsv, .csv, .jsonl or .parquet")
    if kind in TABLES:
        return table_records(_chunks(path, packing, wanted.longest), kind, path, wanted)
    wanted.by_name(str(path))
    return _parquet_records(path, wanted) if kind == ".parquet" else _json_records(path, packing, wanted.longest)


@contextmanager
def _to_its_end(path: Path) -> Iterator[None]:
    """One clear line for a file that is damaged or cut short."""
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read to its end ({why}); mend or replace the file") from error


def _open(path: Path, packing: str) -> IO[bytes]:
    if packing == ".zst":
        import pyarrow as pa  # notices a file that was cut short, which the module zstandard does not

        return BufferedReader(cast("Any", pa.input_stream(str(path), compression="zstd")))
    return cast("IO[bytes]", {"": open, ".gz": gzip.open, ".xz": lzma.open}[packing](path, "rb"))


def _chunks(path: Path, packing: str, longest: int) -> Iterator[tuple[int, str]]:
    """(number of its first line, whole lines of text), about CHUNK bytes at a time."""
    first = 1
    for raw in _whole_lines(path, packing, longest):
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            line = first + raw.count(b"\n", 0, error.start)
            raise UserError(f"{path}:{line}: not UTF-8 ({error.reason}); convert the file") from None
        if (place := text.find("\0")) >= 0:
            line = first + text.count("\n", 0, place)
            raise UserError(f"{path}:{line}: a NUL character, which is no text; convert the file to UTF-8")
        yield first, text.removeprefix("\ufeff") if first == 1 else text
        first += raw.count(b"\n")


def _whole_lines(path: Path, packing: str, longest: int) -> Iterator[bytes]:
    """The bytes of a file, cut behind newlines.

    Raises:
        UserError: a line is too long, or the file unpacks to more than text does.
    """
    line, read, begun = 1, 0, 0  # the line that has begun, bytes of the file, bytes of that line
    pending: list[bytes] = []
    most = _most(path) if packing else None
    with _open(path, packing) as file:
        while block := file.read(CHUNK):
            read += len(block)
            if most is not None and read > most:
                raise UserError(f"{path}: unpacks to more than {RATIO} times its size; unpack it, if that is right")
            lines, newline, rest = block.rpartition(b"\n")
            begun = len(rest) + (0 if newline else begun)
            if newline:
                yield b"".join([*pending, lines, newline])
                line, pending = line + lines.count(b"\n") + 1, []
            pending.append(rest)
            if begun > longest:
                raise UserError(
                    f"{path}:{line}: a line longer than {longest:,} bytes; break it into documents, or raise data.longest"
                )
    if begun:
        yield b"".join(pending)


def _most(path: Path) -> int:
    """Bytes that a packed file of text may unpack to."""
    return max(LARGE, RATIO * path.stat().st_size)


def _read_txt(path: Path, packing: str, separator: str, longest: int) -> Iterator[Document]:
    if not separator:
        raise UserError(f"{path}: the separator of documents is empty; set data.separator")
    separator = separator.replace("\r\n", "\n")
    line, rest = 1, ""
    for _, text in _chunks(path, packing, longest):
        text = text.replace("\r\n", "\n")
        text = BLANK.sub("", text) if separator == EMPTY_LINE else text
        *documents, rest = (rest + text).split(separator)
        for document in documents:
            yield _txt_document(path, line, document, longest)
            line += document.count("\n") + separator.count("\n")
        _require_short(path, line, rest, longest)
    yield _txt_document(path, line, rest, longest)


def _require_short(path: Path, line: int, document: str, longest: int) -> None:
    if len(document) > longest:
        raise UserError(
            f"{path}:{line}: a document longer than {longest:,} bytes; set data.separator to what stands between two of "
            "them, or raise data.longest"
        )


def _txt_document(path: Path, line: int, text: str, longest: int) -> Document:
    _require_short(path, line, text, longest)
    blank = len(text) - len(text.lstrip())
    return f"{path.name}:{line + text.count(chr(10), 0, blank)}", text.strip()


def _json_records(path: Path, packing: str, longest: int) -> Iterator[tuple[int, Any]]:
    for first, text in _chunks(path, packing, longest):
        for number, line in enumerate(text.split("\n"), first):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number}: not JSON ({error}); write one object per line") from None


def _parquet_records(path: Path, wanted: Wanted) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted.check(names, str(path))
            columns = [str(column) for column in wanted.columns.values() if column in names]
            groups = range(file.metadata.num_row_groups)
            if sum(file.metadata.row_group(group).total_byte_size for group in groups) > _most(path):
                raise UserError(f"{path}: unpacks to more than {RATIO} times its size; write it without compression")
            batches = file.iter_batches(batch_size=256, columns=columns)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
    except (pa.ArrowException, ValueError) as error:
        raise EOFError(f"not a whole parquet file: {error}") from error


def hub_name(spec: str) -> tuple[str, str | None, str | None]:
    """(id, config, revision) of `hub:ID[:CONFIG][@REVISION]`."""
    match = HUB_NAME.fullmatch(spec)
    if match is None:
        raise UserError(
            f"{spec}: not the name of a data set; write hub:ID[:CONFIG][@REVISION] with an ID such as wikimedia/wikipedia"
        )
    if Path(match["id"]).exists():  # the library would read it in place of the Hub's
        raise UserError(f"{spec}: {match['id']} is also a folder here; name it without hub:, or start elsewhere")
    return match["id"], match["config"], match["revision"]


@contextmanager
def _reaching_hub(spec: str) -> Iterator[None]:
    """One clear line for whatever the Hub's libraries raise when a set is missing or the network is down."""
    try:
        yield
    except (UserError, Interrupted):
        raise
    except Exception as error:
        raise _out_of_reach(spec, hub.sentence(error)) from error


def hub_commit(spec: str) -> str:
    """The commit that a Hub data set's revision stands for, one for the whole process; a full commit needs no network.

    Raises:
        UserError: the Hub has no such set, or does not answer.
    """
    name, _, revision = hub_name(spec)
    if revision and COMMIT.fullmatch(revision):
        return revision
    answer = hub.data_set(name, revision)
    if answer.commit is None:
        raise _out_of_reach(spec, answer.why)
    return answer.commit


def unasked(spec: str) -> str | None:
    """Why the Hub could not be asked for a data set; None where it has it.

    Raises:
        UserError: it has no such set, or must not be asked.
    """
    name, _, revision = hub_name(spec)
    if revision and COMMIT.fullmatch(revision):
        return None
    answer = hub.data_set(name, revision)
    if answer.final:
        raise _out_of_reach(spec, answer.why)
    return answer.why or None


def _out_of_reach(spec: str, why: str) -> UserError:
    return UserError(f"{spec}: cannot be read from the Hub ({why}); check the name and the network, or name a file")


def read_hub(spec: str, wanted: Wanted) -> Iterator[Document]:
    """The `train` split of a Hub data set, streamed: (`ID:ROW`, text).

    Raises:
        UserError: no such set, no network, or rows without the field.
    """
    yield from ((name, row["field"]) for name, row in read_hub_table(spec, wanted))


def read_hub_table(spec: str, wanted: Wanted) -> Iterator[tuple[str, Row]]:
    """The rows of the `train` split of a Hub data set, streamed: (`ID:ROW`, what is wanted of it).

    Raises:
        UserError: no such set, no network, or rows without the columns.
    """
    name, _, _ = hub_name(spec)
    for number, row in enumerate(_hub_records(spec, wanted), 1):
        yield f"{name}:{number}", wanted.pick(row, f"{spec}:{number}")


def hub_columns(spec: str, wanted: Wanted) -> list[Column]:
    """All columns of a Hub data set: those of its first row."""
    return next((list(row) for row in _hub_records(spec, wanted)), [])


def _hub_records(spec: str, wanted: Wanted) -> Iterator[Any]:
    import datasets

    wanted.by_name(spec)
    name, config, _ = hub_name(spec)
    with _reaching_hub(spec):
        yield from datasets.load_dataset(name, config, split="train", streaming=True, revision=hub_commit(spec))
