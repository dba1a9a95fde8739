"""Words of our own are explained, and every page of the docs leads to their explanation where it uses one first."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
GLOSSARY = DOCS / "glossary.md"
OWN = ("still", "lesson", "term", "tap", "readout", "actor", "arm")
NOUN = {
    "still": r"(?<=\ba )still\b|(?<=\bone )still\b|(?<=\b[Tt]he )still\b|(?<=\bwithout )still\b|\bstills\b",
    "arm": r"\barms?\b",
}
LINKED = "\1"
PAGES = [it for it in sorted(DOCS.rglob("*.md")) if it != GLOSSARY and it.parent.name != "losses"]
NO_PROSE = r"<!-- map[\s\S]*?<!-- end -->|```[\s\S]*?```|(?m:^    .*$)|`[^`]*`|(?m:^#.*$)|!\[[^\]]*\]\([^)]*\)"


def rows() -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in GLOSSARY.read_text(encoding="utf-8").splitlines()]
    return {line[0]: line[1:] for line in lines if len(line) > 1}


@pytest.mark.parametrize("word", OWN)
def test_a_word_of_our_own_is_one_sentence_and_the_nearest_of_the_field(word: str) -> None:
    meaning, nearest = rows()[word]
    assert meaning[0].isupper() and re.search(rf"\b{word}\b", meaning) and meaning.endswith(".")
    assert meaning.count(". ") == 0 and nearest


@pytest.mark.parametrize("page", PAGES, ids=lambda it: it.name)
def test_the_first_use_is_a_link(page: Path) -> None:
    place = re.escape(os.path.relpath(GLOSSARY, page.parent))
    text = re.sub(NO_PROSE, "", page.read_text(encoding="utf-8"))
    text = re.sub(rf"\[([^\]]*)\]\({place}\)", r"\1" + LINKED, text)
    text = re.sub(r"\[[^\]]*\]\([^)]*\)|\bin terms of\b", "", text)
    for word in OWN:
        first = re.search(NOUN.get(word, rf"\b[{word[0].upper()}{word[0]}]{word[1:]}s?\b"), text)
        assert not first or text[first.end() :].startswith(LINKED), f"{page.name}: link {word} to the glossary"
