"""Rows of tables: lines become fields, fields get the names of their columns, and a recipe's keys pick among them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.errors import UserError

Column = str | int
Record = dict[Column, Any]  # a row as it stands in its file: column -> value

TABLES = (".tsv", ".csv")  # kinds whose columns also have numbers
LONGEST = 1 << 24  # bytes of one document, and of one line of a file; data.longest
FIELD_LIMIT = 1 << 26  # characters of one quoted field; a quote that is left open would read on to the end
SHOWN, SHOWN_CHARACTERS = 20, 40  # how many columns an error lists, and how much of each name
NO_TEXT = {"half a surrogate pair": re.compile("[\ud800-\udfff]"), "a NUL character": re.compile("\0")}


@dataclass(frozen=True)
class Wanted:
    """The columns that a recipe asks for.

    Args:
        columns: key of the recipe -> the column's name, or its number (from 0) where a file has no line of names.
        table: the recipe's table in which those keys stand: `data` or `data.task`.
        longest: bytes of a text; a longer one is an error.
    """

    columns: Mapping[str, Column]
    table: str
    longest: int = LONGEST

    @property
    def numbered(self) -> bool:
        """Columns are asked for by number: files have no line of names."""
        return any(isinstance(column, int) for column in self.columns.values())

    def by_name(self, where: str) -> None:
        """Asserts that columns are asked for by name, in files whose rows have no numbered columns."""
        for word, column in self.columns.items():
            if isinstance(column, int):
                kinds = " and ".join(TABLES)
                raise UserError(
                    f"{where}: column {column}: only {kinds} have numbered ones; name it in {self.table}.{word}"
                )

    def check(self, names: Sequence[Column], where: str) -> None:
        """Asserts that the columns are there, each once; a label may be missing."""
        for word, column in self.columns.items():
            if names.count(column) > 1:
                raise UserError(
                    f"{where}: the name '{column}' stands over {names.count(column)} columns; rename all but one"
                )
            if column not in names and word != "label":
                raise self._missing(word, column, names, where)

    def pick(self, row: Any, where: str) -> dict[str, Any]:
        """Key of the recipe -> its text; `label` is the value as it is, None where it is missing or empty.

        Raises:
            UserError: not a row with these columns, or a column that holds no text.
        """
        if not isinstance(row, dict):
            first = next(iter(self.columns.items()), ("field", ""))
            raise UserError(f"{where}: not an object with the {self._noun} '{first[1]}'; write one object per line")
        picked = {}
        for word, column in self.columns.items():
            if word == "label":
                picked[word] = _label(row.get(column))
            elif column not in row:
                raise self._missing(word, column, list(row), where)
            else:
                picked[word] = self._text(row[column], word, where)
        return picked

    def _text(self, text: Any, word: str, where: str) -> str:
        """A null is an empty text."""
        text = "" if text is None else text
        what = f"the {self._noun} '{self.columns[word]}' holds"
        if not isinstance(text, str):
            raise UserError(f"{where}: {what} no text but a {type(text).__name__}; set {self.table}.{word}")
        for part, found in NO_TEXT.items():
            if found.search(text):
                raise UserError(f"{where}: {what} {part}, which is no text; mend the row")
        if len(text) > self.longest:
            raise UserError(
                f"{where}: {what} more than {self.longest:,} bytes; break it into documents, or raise data.longest"
            )
        return text

    def _missing(self, word: str, column: Column, names: Sequence[Column], where: str) -> UserError:
        return UserError(
            f"{where}: no {self._noun} '{column}'; set {self.table}.{word} to one of: {listed(names)}"
            if isinstance(column, str)
            else f"{where}: no column {column} (from 0); set {self.table}.{word} to one of: {listed(names)}"
        )

    @property
    def _noun(self) -> str:
        return "field" if self.table == "data" else "column"


def _label(value: Any) -> Any:
    value = value.strip() if isinstance(value, str) else value
    return None if value == "" else value


def listed(names: Sequence[Column]) -> str:
    """Columns as an error names them: `id, text`, or `0 to 6`.

    >>> listed([0, 1, 2])
    '0 to 2'
    """
    if names and all(isinstance(name, int) for name in names):
        return f"0 to {len(names) - 1}"
    cut = [name if len(name) <= SHOWN_CHARACTERS else f"{name[:SHOWN_CHARACTERS]}..." for name in map(str, names)]
    return ", ".join(cut[:SHOWN]) + (", ..." if len(cut) > SHOWN else "")


def table_records(
    chunks: Iterable[tuple[int, str]], kind: str, path: object, wanted: Wanted
) -> Iterator[tuple[int, Record]]:
    """The rows of a .tsv or .csv as (number of its first line, row); without numbers, the first line has the names.

    Args:
        chunks: (number of its first line, whole lines of text).
        kind: `.tsv` (GLUE's: tabs, quotes are text) or `.csv` (RFC 4180: commas, quoted texts may hold lines).
        path: named in errors.
        wanted: the columns that must be there; its numbers say that there is no line of names.

    Raises:
        UserError: an open quote, too few or too many fields, no such column; with file and line.
    """
    rows = _split_tsv(_lines(chunks)) if kind == ".tsv" else _split_csv(_lines(chunks), path)
    if wanted.numbered:
        for number, fields in rows:
            yield number, dict(enumerate(fields))
        return
    names: list[str] = []
    for number, fields in rows:
        if not names:
            names = [name.strip() for name in fields]
            wanted.check(names, f"{path}:{number}")
        elif len(fields) != len(names):
            hint = (
                "a tab parts two fields, and quotes are text" if kind == ".tsv" else "quote a text that holds a comma"
            )
            raise UserError(f"{path}:{number}: {len(fields)} fields under {len(names)} names; mend the line ({hint})")
        else:
            yield number, dict(zip(names, fields, strict=True))


def _lines(chunks: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """(its number, a line without its newline)."""
    for first, text in chunks:
        yield from enumerate(text.removesuffix("\n").split("\n"), first)


def _split_tsv(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    for number, line in lines:
        if line.strip(" \r"):
            yield number, line.removesuffix("\r").split("\t")


def _split_csv(lines: Iterable[tuple[int, str]], path: object) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(max(csv.field_size_limit(), FIELD_LIMIT))
    reader = csv.reader((f"{line}\n" for _, line in lines), strict=True)
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            remedy = "quote it as RFC 4180 says: a quote inside a quoted text is doubled"
            raise UserError(f"{path}:{number}: not a row of a .csv ({error}); {remedy}") from None
        if len(fields) > 1 or "".join(fields).strip():
            yield number, fields
