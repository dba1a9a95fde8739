"""Data augmentation: a slow, plain reading of the published algorithm, coins and draws, files of vectors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from augmenting import PIECES, SPECIALS, VOCABULARY, words
from kernel import bert

from limbeck.errors import UserError
from limbeck.recipe.data import Augment
from limbeck.system.seeds import derive_seed
from limbeck.text.augment import word_vectors
from limbeck.text.augment.copies import Place, copies
from limbeck.text.augment.proposals import STOP, Proposer
from limbeck.text.order import uniform

GLOVE = {"filming": (1, 0.2, 0), "film": (1, 0.1, 0), "story": (0.9, 0.5, 0.1), "badly": (-1, 0, 0.3), "bad": (-1, 0.1, 0.2),
         "dull": (-0.8, 0.4, 0.5), "good": (0.1, 1, 0), "the": (0, 0, 1), "plots": (0.5, 0.5, 0.5)}  # fmt: skip
SENTENCES = (
    "the film is good .",
    "filming the story badly , is not a fast act",
    "a dull plot 7 , actors acted [mask] x",
    "warmly funny isn ' t bad",
    "zebra plots fastly",
    "the is a .",
    "good good good good filming",
)


def glove(path: Path) -> Path:
    lines = [" ".join([word, *map(str, vector)]) for word, vector in GLOVE.items()]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model() -> Any:
    return bert(16, 2, seed=3).eval()


# the published algorithm, read slowly


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def pieces_of(word: str) -> list[str]:
    """The longest token of the vocabulary first, again and again."""
    found: list[str] = []
    while word:
        mark = "##" if found else ""
        cut = next((n for n in range(len(word), 0, -1) if mark + word[:n] in VOCABULARY), 0)
        if not cut:
            return ["[UNK]"]
        found.append(mark + word[:cut])
        word = word[cut:]
    return found


@torch.no_grad()
def ranked(model: Any, tokens: list[list[str]], number: int) -> list[str]:
    """Every token, the most probable first, where word `number` is masked: one text alone, without padding."""
    plain = [piece for word in tokens for piece in word]
    place = 1 + sum(map(len, tokens[:number]))
    first = ["[CLS]", *plain, "[SEP]"]
    first[place] = "[MASK]"
    ids = [VOCABULARY.index(token) for token in [*first, *plain, "[SEP]"]]
    types = [0] * len(first) + [1] * (len(plain) + 1)
    logits = model(torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits[0, place, : len(VOCABULARY)]
    return [VOCABULARY[i] for i in torch.argsort(logits, descending=True).tolist()]


def by_hand(text: str, model: Any, count: int, published: bool, from_file: bool) -> dict[int, tuple[str, list[str]]]:
    """Place of a word among the words -> (the word, what may stand there)."""
    said = re.findall(r"[a-z0-9]+|[^a-z0-9\s]", text.lower())
    tokens = [pieces_of(word) for word in said]
    found: dict[int, tuple[str, list[str]]] = {}
    for number, (word, pieces) in enumerate(zip(said, tokens, strict=True)):
        if re.search("[^a-z]", word) or word in STOP or (pieces == ["[UNK]"] and not published):
            continue
        if len(pieces) == 1 and published:
            some = [token for token in ranked(model, tokens, number)[:count] if not token.startswith("##")]
        elif len(pieces) == 1:
            some = [t for t in ranked(model, tokens, number) if t.isalpha() and len(t) > 1 and t != word][:count]
        elif from_file:
            others = sorted(GLOVE, key=lambda w: -cosine(GLOVE[word], GLOVE[w])) if word in GLOVE else []
            some = [other for other in others if other != word][:count]
        else:
            rows = model.get_input_embeddings().weight.tolist()
            mine = [rows[VOCABULARY.index(piece)] for piece in pieces]
            query = [sum(column) / len(mine) for column in zip(*mine, strict=True)]
            whole = [w for w in VOCABULARY if w.isalpha() and len(w) > 1]
            some = sorted(whole, key=lambda w: -cosine(query, rows[VOCABULARY.index(w)]))[:count]
        found[number] = (word, some or [word])
    return found


@pytest.mark.parametrize("from_file", [True, False])
@pytest.mark.parametrize("published", [True, False])
def test_candidates_are_those_of_the_plain_reading(
    model: Any, tmp_path: Path, published: bool, from_file: bool
) -> None:
    file = str(glove(tmp_path / "glove.txt")) if from_file else "teacher"
    how = Augment(candidates=4, vectors=file, as_published=published)
    found = Proposer(model, words(), how)(SENTENCES)
    for text, places in zip(SENTENCES, found, strict=True):
        expected = by_hand(text, model, 4, published, from_file)
        assert [(text[start:end], list(some)) for start, end, some in places] == list(expected.values())
    kinds = [len(pieces_of(text[a:b])) for text, some in zip(SENTENCES, found, strict=True) for a, b, _ in some]
    assert {1, 2} <= set(kinds)


def test_the_published_lists_hold_what_ours_leave_out(model: Any) -> None:
    ours, theirs = (
        [word for text in Proposer(model, words(), Augment(candidates=30, as_published=published))(SENTENCES) for _, _, some in text for word in some]
        for published in (False, True)
    )  # fmt: skip
    assert "[SEP]" in theirs and "," in theirs and not set(ours) & {*SPECIALS, *PIECES, ",", "x", "7"}


def test_an_unknown_word_stays(model: Any, tmp_path: Path) -> None:
    """Of several tokens, without a vector: itself. Without a token: no place."""
    how = Augment(vectors=str(glove(tmp_path / "glove.txt")), probability=0.99)
    (places,) = Proposer(model, words(), how)(["zebra fastly"])
    assert places == [Place(6, 12, ("fastly",))]
    assert copies(("zebra fastly",), [places], 0, how) == [("zebra fastly",)]


def test_a_word_beyond_the_positions_of_the_model_stays(model: Any) -> None:
    text = " ".join(["the"] * 29 + ["good", "fine", "great"])  # [CLS] and 30 words are 31 of the 32 positions
    (places,) = Proposer(model, words(), Augment(candidates=3))([text])
    assert [len(some) for _, _, some in places] == [3, 3, 1] and places[2].candidates == ("great",)


def test_the_rest_of_a_text_stays_as_it_is(model: Any) -> None:
    text = "  The  GOOD\tFilm!"
    (places,) = Proposer(model, words(), Augment())([text])
    assert [text[a:b] for a, b, _ in places] == ["GOOD", "Film"] and "good" not in places[0].candidates
    for (copy,) in copies((text,), [places], 0, Augment()):
        assert re.fullmatch(r"  The  \w+\t\w+!", copy)


# coins and draws

PLACES = [Place(0, 4, ("fine", "bad", "dull")), Place(9, 13, ("plot", "act"))]
PAIR = [Place(2, 6, ("slow", "fast", "warm"))]


def slowly(text: str, places: Sequence[Place], number: int, first: int, how: Augment, j: int) -> str:
    found = list(text)
    for w, (start, end, some) in enumerate(places):
        draw, coin = uniform(derive_seed(how.draw, "augment", number, first + w), np.array([j]), 2)[0]
        if coin < how.probability:
            found[start:end] = [some[math.floor(draw * len(some))], *[""] * (end - start - 1)]
    return "".join(found)


@pytest.mark.parametrize("number", [0, 7])
def test_copies_by_hand(number: int) -> None:
    how = Augment(copies=12, draw=3)
    expected = ["good , a film"]
    for j in range(12):
        if (copy := slowly("good , a film", PLACES, number, 0, how, j)) not in expected:
            expected.append(copy)
    found = copies(("good , a film",), [PLACES], number, how)
    assert found == [(text,) for text in expected] and len(found) > 4


def test_both_texts_of_a_pair_by_hand() -> None:
    how, texts = Augment(copies=9), ("good , a film", "a plot")
    expected = [texts]
    for j in range(9):
        copy = (slowly(texts[0], PLACES, 5, 0, how, j), slowly(texts[1], PAIR, 5, 2, how, j))
        if copy not in expected:
            expected.append(copy)
    assert copies(texts, [PLACES, PAIR], 5, how) == expected
    how = how.model_copy(update={"as_published": True})  # the second beside the last copy of the first
    lists = [[texts[0]], [texts[1]]]
    for mine, text, places, first in zip(lists, texts, (PLACES, PAIR), (0, 2), strict=True):
        for j in range(9):
            if (copy := slowly(text, places, 5, first, how, j)) not in mine:
                mine.append(copy)
    one, two = lists
    assert copies(texts, [PLACES, PAIR], 5, how) == [(a, texts[1]) for a in one] + [(one[-1], b) for b in two]
    assert len(one) > 2 and len(two) > 2


def test_a_draw_hangs_on_row_word_copy_and_number_alone() -> None:
    text, how = ("good , a film",), Augment(copies=8)
    some, more = copies(text, [PLACES], 1, how), copies(text, [PLACES], 1, how.model_copy(update={"copies": 16}))
    assert more[: len(some)] == some and len(more) > len(some)
    assert copies(text, [PLACES], 2, how) != some != copies(text, [PLACES], 1, how.model_copy(update={"draw": 1}))


def test_how_often_a_word_is_replaced() -> None:
    many = Augment(copies=1)
    other = [Place(0, 4, ("fine", "bad"))]
    found = [copies(("good",), [other], row, many)[1:] for row in range(4000)]
    said = [copy[0][0] for copy in found if copy]
    assert abs(len(said) / 4000 - 0.4) < 0.03 and abs(said.count("fine") / len(said) - 0.5) < 0.05


def test_a_tokenizer_that_masks_nothing_is_refused(model: Any) -> None:
    blind = words()
    blind.mask_token = None
    with pytest.raises(UserError, match="has no token that masks"):
        Proposer(model, blind, Augment())


# files of vectors


def lines(text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "v.txt").write_bytes(text.encode("latin-1"))
        return folder / "v.txt"

    return write


WRONG = {
    "": "no vectors in this file; name another, or teacher",
    "a 1 2\nb 1\n": "v.txt:2: 1 numbers, and the first line has 2; every line holds a word",
    "a 1 2\nb 1 2 3\n": "v.txt:2: 3 numbers, and the first line has 2",
    "a\nb\n": "v.txt:1: 0 numbers",
    "a 1 2\nb 1 two\n": "v.txt:2: 'two' is not a number",
    "a 1 nan\n": "v.txt:1: 'nan' is not a number",
    "a 1 2\n\n": "v.txt:2: no word and its numbers",
    "\xe9\xe9 1 2\n": "not UTF-8",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_bad_file_of_vectors_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError) as error:
        word_vectors.read(lines(text)(tmp_path))
    assert WRONG[text] in str(error.value) and "\n" not in str(error.value)


def test_vectors_by_hand(tmp_path: Path) -> None:
    found = word_vectors.read(glove(tmp_path / "v.txt"))
    for word, vector in GLOVE.items():
        expected = sorted((w for w in GLOVE if w != word), key=lambda w: -cosine(vector, GLOVE[w]))
        assert found.nearest(found.of(word), 4, word) == expected[:4]
    assert "unheard" not in found and "film" in found
    assert "film" not in word_vectors.read(glove(tmp_path / "v.txt"), most=1)
    spaced = word_vectors.read(lines("a 1 2\nat home 2 1\na 7 7\nzero 0 0\n")(tmp_path))
    assert spaced.words == ["a", "at home", "zero"] and spaced.nearest(spaced.of("a"), 9, "a") == ["at home", "zero"]
    assert spaced.of("a") == pytest.approx([1 / 5**0.5, 2 / 5**0.5])  # the first of two lines
