from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from limbeck.errors import UserError
from limbeck.text import tokenise
from limbeck.text.tokenise import Encoder, Special, serialised, special_of

Build = Callable[..., Any]
WORDS = ("a", "b", "c", "d", "e", "f", "g", "h", "still", "wort", "play", "##ing")


@pytest.fixture
def pieces(word_piece: Build) -> Any:
    """A tokenizer that knows `playing` only as `play` and `##ing`."""
    return word_piece(WORDS)


def test_special_tokens_of_a_bert(word_piece: Build) -> None:
    special = special_of(word_piece())
    assert special == Special(vocabulary=18, every=(0, 1, 2, 3, 4), mask=4, frame=(2, 3))
    assert special.added == (2, 3)


def test_special_tokens_of_causal_models(causal: Build) -> None:
    assert special_of(causal()) == Special(vocabulary=16, every=(0, 1, 2), after=(1,))
    assert special_of(causal(opens=True)) == Special(vocabulary=16, every=(0, 1, 2), before=(0,), after=(1,))


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="Slow is not a fast tokenizer; give"):
        special_of(Slow())


def test_truncation_and_padding_are_no_difference_and_have_no_effect(word_piece: Build) -> None:
    other = word_piece()
    other.backend_tokenizer.enable_truncation(3)
    other.backend_tokenizer.enable_padding(length=9)
    assert serialised(other) == serialised(word_piece())
    assert Encoder(other)(["x"], ["a b c d e f g h a b"]) == [[5, 6, 7, 8, 9, 10, 11, 12, 5, 6]]
    assert other.backend_tokenizer.truncation["max_length"] == 3


def test_one_tokenizer_is_run_once(monkeypatch: pytest.MonkeyPatch, word_piece: Build) -> None:
    calls = []
    encode = tokenise.encode
    monkeypatch.setattr(tokenise, "encode", lambda *words: calls.append(words) or encode(*words))
    encoder = Encoder(word_piece(), word_piece())
    assert encoder(["x", "y"], ["a still", "playing"]) == [[5, 13], [17]]
    assert len(calls) == 1
    assert encoder.note == "teacher and student share one tokenizer: tokenised once"
    assert len(encoder.hashes) == 1


def test_two_that_agree_on_the_text_are_both_run(
    monkeypatch: pytest.MonkeyPatch, word_piece: Build, pieces: Any
) -> None:
    calls = []
    encode = tokenise.encode
    monkeypatch.setattr(tokenise, "encode", lambda *words: calls.append(words) or encode(*words))
    encoder = Encoder(word_piece(), pieces)
    assert serialised(word_piece()) != serialised(pieces)
    assert encoder(["x"], ["a still"]) == [[5, 13]]
    assert len(calls) == 2
    assert "differ on disk" in encoder.note
    assert len(encoder.hashes) == 2


def test_a_difference_names_document_position_and_both_tokens(word_piece: Build, pieces: Any) -> None:
    with pytest.raises(UserError) as caught:
        Encoder(word_piece(), pieces)(["a.txt:1", "a.txt:7"], ["a b", "a b playing c"])
    assert str(caught.value) == (
        "a.txt:7: the tokenizers of teacher and student disagree at token 2 (from 0): "
        "teacher 'playing' (id 17), student 'play' (id 15); "
        "give both the same tokenizer (models.student.tokenizer)"
    )


def test_a_text_that_ends_early_is_a_difference_too(word_piece: Build) -> None:
    def whitespace(pattern: str) -> object:
        from tokenizers import Regex, pre_tokenizers

        tokenizer = word_piece()
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "removed")
        return tokenizer

    with pytest.raises(UserError, match=r"teacher 'c' \(id 7\), student nothing"):
        Encoder(whitespace(" +"), whitespace(" +c?"))(["x"], ["a b c"])


def test_other_special_tokens_are_a_difference(word_piece: Build, causal: Build) -> None:
    with pytest.raises(UserError, match=r"special tokens \(mask\): the teacher's tokenizer has 4, the student's 0"):
        Encoder(word_piece(), word_piece(mask_token="[PAD]"))
    with pytest.raises(UserError, match=r"special tokens \(frame\)"):
        Encoder(word_piece(), causal())


def test_more_words_than_the_text_uses_do_not_matter(word_piece: Build) -> None:
    longer = word_piece([*WORDS, *(f"[unused{i}]" for i in range(9))])
    assert Encoder(word_piece(), longer)(["x"], ["a"]) == [[5]]
