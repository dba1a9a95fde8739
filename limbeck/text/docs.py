"""The embedded corpus `docs`: the English prose of the documentation that every installation already has.

Docstrings are read as text from the source files of the standard library and of our own dependencies; no
package is imported for it. A corpus that is present wherever limbeck runs needs no network. It depends on the
versions of these packages (`sources`): about 4.4 MB in 3,100 documents, read in ten seconds.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from inspect import cleandoc
from itertools import groupby
from pathlib import Path

PACKAGES = ("accelerate", "datasets", "huggingface_hub", "numpy", "torch", "transformers")
SKIPPED_FOLDERS = {"dist-packages", "idlelib", "lib2to3", "site-packages", "test", "testing", "tests"}
SHORTEST = 60  # characters of a paragraph
REPEATED = 0.6  # share of word triples seen before that makes a paragraph a copy

FUNCTION_WORDS = """
a an and any are as at be been but by can do does each for from has have if in into is it its may more
must no not of on only or other same should so such than that the their them then there these they this
to used using was we what when where whether which while will with without would you your
"""
COMMON = frozenset(FUNCTION_WORDS.split())

# One scan over all triple-quoted strings, so that a closing quote is never taken for an opening one. Only a
# string that begins its line (group `line`) is documentation: a docstring, or an argument of `add_docstr`.
STRINGS = re.compile(
    r'(?P<line>^[ \t]*[rRuU]?)?(?P<quote>"""|\'\'\')(?P<text>.*?)(?<!\\)(?P=quote)', re.DOTALL | re.MULTILINE
)

FENCE = re.compile(r"^[ \t]*(```|~~~).*?(^[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
HEADS = (  # what opens an item: dropped, the text behind it kept
    re.compile(r"^(?:[-*+•]|\(?(?:\d{1,2}|[a-z])[.)])(?:\s+|$)"),  # `- ...`, `1. ...`, `(a) ...`
    re.compile(r"^:[a-z]+\b[^:`]*:(?:\s+|$)|^@\w+\s+\w+:?(?:\s+|$)"),  # `:param x: ...`, `@param x: ...`
    re.compile(r"^[`*]*[\w.]*[`*]*(?:\s*\(.*?\)+|\s*\[.*?\])?(?:\s*:|\s+--?)(?:\s+|$)"),  # `x (int): ...`
)
DROPPED = re.compile(  # lines without prose: `x : int, optional`, rules, headings, directives
    r"[\w*., `]+\s:\s.*|([=\-~^+*#_|.\"'])\1{2,}.*|#+ .*|\.\. [\w:-]+::(?: \S*)?|<[^>]*>"
)
MARKUP = [
    (re.compile(r"!\[[^\]]*\]\([^)]*\)"), ""),  # image
    (re.compile(r"\[([^\]]+)\]\([^)\s]*\)"), r"\1"),  # markdown link
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`__?"), r"\1"),  # reST link with its target
    (re.compile(r"(?::[\w+-]+)?:[\w+-]+:`[~!]?([^`<]+?)(?:\s*<[^`>]*>)?`"), r"\1"),  # reST role
    (re.compile(r"\[?`+~?([^`]+)`+(?:__?\b)?\]?"), r"\1"),  # code words, also `[`Name`]`
    (re.compile(r"(?<!\w)(\*{1,3})(?=\S)([^*\n]+?)(?<=\S)\1(?!\w)"), r"\2"),  # emphasis
    (re.compile(r"\s*\[(?:#?\w{1,12}|\d+(?:,\s*\d+)*)\]_?(?=[\s.,;:)]|$)"), ""),  # footnote
    (re.compile(r"</?(?:a|b|br|code|div|em|i|img|p|pre|small|span|sub|sup|Tip)\b[^>]*>"), ""),  # HTML tags
    (re.compile(r"^(?:[.#>]+|\.\.\s+[\w-]+::)\s+"), ""),
    (re.compile(r"\s+"), " "),
    (re.compile(r" (?=[.,;:)](?: |$))"), ""),
]
UNWANTED = re.compile(r"://|www\.|>>>|`|::|[{}\\|<>=\[\]@$^]|\w\(\w+,|\.\. |:\w+:|(?<!\S):\w")
SENTENCES = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
WORDS = re.compile(r"[^\W\d_]+(?:'[a-z]+)?")
NAME = re.compile(r"[A-Z\d_/*]|\w\.\w|\w\(")
PUNCTUATION = ".,;:!?()'\""


def documents() -> list[tuple[str, str]]:
    """Return the corpus as `(name, text)`, one document per source file that has prose of its own.

    The order is fixed: packages by name, the standard library first, files by path. A paragraph most of
    which occurred before, apart from names and numbers, is dropped: model families share their documentation.
    Example: `documents()[0][0]` is a path such as `python/abc.py`.
    """
    seen: set[tuple[str, ...]] = set()
    kept: list[tuple[str, str]] = []
    for name, blocks in _sources():
        text = "\n\n".join(_unseen(blocks, seen))
        if text:
            kept.append((name, text))
    return kept


def sources() -> dict[str, str]:
    """Return the version of every package whose documentation is read, for the manifest of a run."""
    versions = {package: metadata.version(package) for package in PACKAGES}
    return {"python": sys.version.split()[0]} | versions


def prose(docstring: str) -> list[str]:
    """Return the paragraphs of English prose of one docstring, free of code, tables and markup."""
    return [text for chunk in _chunks(docstring) if (text := _sentences(_plain(chunk))) and is_prose(text)]


def is_prose(text: str) -> bool:
    """Tell English prose from signatures, tables and code.

    English spends every second or third word on articles, prepositions, pronouns and auxiliaries, wherever
    it comes from; lists of names and code hardly use them. So a paragraph is prose if it is long enough, ends
    like a sentence, consists of letters, spaces and little else, and at least a fifth of its words (and no
    fewer than four) are such function words.
    """
    if len(text) < SHORTEST or text[-1] not in ".!?:":
        return False
    words = WORDS.findall(text.lower())
    common = sum(word in COMMON for word in words)
    plain = sum(map(str.isalpha, text)) + text.count(" ")
    return common >= max(4, len(words) / 5) and plain >= 0.92 * len(text)


def _sources() -> Iterator[tuple[str, list[str]]]:
    """Yield `(name, paragraphs)` of every source file and every topic of the language reference."""
    yield from _folder("python", Path(sysconfig.get_path("stdlib")))
    yield from _topics()
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)  # looks for a top-level package without importing it
        for place in (spec.submodule_search_locations or []) if spec else []:
            yield from _folder(package, Path(place))


def _folder(package: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    known: set[str] = set()
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        if SKIPPED_FOLDERS.intersection(parts):
            continue
        source = path.read_text(encoding="utf-8", errors="replace")
        new = [text for text in dict.fromkeys(docstrings(source)) if text not in known]
        known.update(new)
        yield "/".join((package, *parts)), [paragraph for text in new for paragraph in prose(text)]


def _topics() -> Iterator[tuple[str, list[str]]]:
    from pydoc_data.topics import topics

    for topic in sorted(topics):
        yield f"python/topics/{topic}", prose(topics[topic])


def docstrings(source: str) -> Iterator[str]:
    """Yield the text of every triple-quoted string of a source file that begins its own line.

    A syntax tree would find the same strings in seven times the time (and miss those given to `add_docstr`).
    """
    for match in STRINGS.finditer(source):
        if match["line"] is not None and len(match["text"]) >= SHORTEST:
            yield match["text"].replace("\\\n", "")


def _chunks(docstring: str) -> Iterator[str]:
    """Yield the paragraphs, list items and parameter descriptions of a docstring, each on one line."""
    for block in re.split(r"\n\s*\n", FENCE.sub("", cleandoc(docstring))):
        lines = block.split("\n")
        if not any(line.lstrip().startswith((">>>", "... ", "$ ", "% ")) for line in lines):
            yield from _items(lines)


def _items(lines: list[str]) -> Iterator[str]:
    """Split a block where an item starts or the indentation changes; join the lines of each part."""
    part: list[str] = []
    depth, opened = 0, False
    for line in lines:
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        body = _body(text)
        head, dropped = body != text, bool(DROPPED.fullmatch(text))
        if head or dropped or (indent != depth and not (opened and indent > depth)):
            yield " ".join(part)
            part = []
        if not dropped:
            part.append(body)
        depth, opened = indent, head
    yield " ".join(part)


def _body(text: str) -> str:
    """Return a line without what opens an item: a bullet, then a parameter's name and type."""
    for pattern in HEADS:
        text = pattern.sub("", text, count=1)
    return text


def _plain(text: str) -> str:
    """Strip the markup of reST, Markdown and HTML; keep the words."""
    for pattern, replacement in MARKUP:
        text = pattern.sub(replacement, text)
    return text.strip()


def _sentences(text: str) -> str:
    """Drop the sentences that hold an address or a piece of code."""
    return " ".join(part for part in SENTENCES.split(text) if not UNWANTED.search(part))


def _unseen(paragraphs: list[str], seen: set[tuple[str, ...]]) -> Iterator[str]:
    """Yield the paragraphs most of whose word triples are new, and remember the triples of those."""
    for text in paragraphs:
        triples = _triples(text)
        if len(triples & seen) < REPEATED * len(triples):
            seen |= triples
            yield text


def _triples(text: str) -> set[tuple[str, ...]]:
    """Return every three successive words; any run of names and numbers counts as the one word `#`."""
    marked = ("#" if NAME.search(word) else word.strip(PUNCTUATION) for word in text.split())
    words = [word for word, _ in groupby(marked) if word]
    return set(zip(words, words[1:], words[2:], strict=False))
