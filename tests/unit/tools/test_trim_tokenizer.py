"""Which tokens stay, and that the tokenizer with these alone reads what is made of them as before."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import pytest
from spelling import STRANGE, TOKENIZERS, sentences
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from limbeck.errors import UserError
from limbeck.text.tokenise import serialised
from limbeck.tools import trim_tokenizer


def table(tokenizer: Tokenizer) -> trim_tokenizer.Table:
    return json.loads(tokenizer.to_str())


def trimmed(tokenizer: Tokenizer, counts: Sequence[int], size: int) -> Tokenizer:
    """A tokenizer of so many tokens; the library accepts it, and numbers it in the order of the old numbers."""
    there = trim_tokenizer.read(table(tokenizer))
    kept = trim_tokenizer.choose(there, counts, size, trim_tokenizer.core(there, size))
    made = Tokenizer.from_str(json.dumps(trim_tokenizer.cut(table(tokenizer), kept)))
    assert made.get_vocab() == {token: i for i, token in enumerate(kept)} and len(kept) == size
    return made


def spelled(tokenizer: Tokenizer, text: str) -> list[str | None]:
    """The tokens; one that is not known by its name, not by the text that it stands for."""
    return [tokenizer.id_to_token(number) for number in tokenizer.encode(text, add_special_tokens=False).ids]


def all_splits() -> Tokenizer:
    """BPE as it is made from tiktoken's files: a merge for every pair of tokens that gives a token, whole words first."""
    words = ["abcd", "ab", "cd", "bc", "abc", "bcd", "d", "c", "b", "a", "da", "dab", "abab"]
    order = sorted(dict.fromkeys(words), key=lambda word: (len(word), word))
    ids = {word: i for i, word in enumerate(order)}
    merges = [(word[:i], word[i:]) for word in order for i in range(1, len(word)) if {word[:i], word[i:]} <= ids.keys()]
    made = Tokenizer(models.BPE(ids, merges, ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


@pytest.mark.parametrize("kind", [*TOKENIZERS, "all splits"])
def test_texts_of_kept_tokens_are_read_as_before(kind: str) -> None:
    """Over many choices of tokens that no corpus would make."""
    made = all_splits() if kind == "all splits" else Tokenizer.from_str(serialised(TOKENIZERS[kind]()))
    dice, total = random.Random(kind), made.get_vocab_size()
    letters = ["".join(dice.choices("abcd", k=dice.randint(1, 9))) for _ in range(60)]
    some = (
        letters
        if kind == "all splits"
        else [*sentences(60, seed=4), *(line[:5] for line in sentences(60, seed=5)), *STRANGE]
    )
    there, same, other = trim_tokenizer.read(table(made)), 0, 0
    least = next(size for size in range(total + 1) if _works(there, size))
    for _ in range(12):
        counts = [dice.randint(0, 3) for _ in range(total)]
        small = trimmed(made, counts, dice.randint(least, total - 1))
        left = small.get_vocab()
        for text in some:
            before, after = spelled(made, text), spelled(small, text)
            if left.keys() >= set(before):
                assert after == before
                same += 1
            else:
                assert after != before
                other += 1
    assert same > 20 and other > 20


def _works(there: trim_tokenizer.Tokens, size: int) -> bool:
    try:
        return bool(trim_tokenizer.core(there, size))
    except UserError:
        return False


def test_a_token_stays_with_what_it_is_merged_from() -> None:
    merges = [("a", "b"), ("c", "d"), ("ab", "cd"), ("b", "c")]
    ids = {token: i for i, token in enumerate(["a", "b", "c", "d", "ab", "cd", "abcd", "bc"])}
    made = Tokenizer(models.BPE(ids, merges))
    rare = [0, 0, 0, 0, 0, 0, 9, 1]  # "abcd" is frequent, "ab" and "cd" were never seen alone
    assert trimmed(made, rare, 7).get_vocab().keys() == {"a", "b", "c", "d", "ab", "cd", "abcd"}
    assert trimmed(made, rare, 5).get_vocab().keys() == {"a", "b", "c", "d", "bc"}  # where it finds no room, the next
    assert spelled(trimmed(made, rare, 7), "abcdbc") == ["abcd", "b", "c"]


def test_the_most_frequent_stay_and_of_equal_ones_the_first() -> None:
    ids = {token: i for i, token in enumerate(["[UNK]", "a", "##a", "b", "##b", "ab", "aa", "##bb", "ba"])}
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    assert list(
        trim_tokenizer.choose(trim_tokenizer.read(table(made)), [0, 0, 0, 0, 0, 2, 1, 5, 2], 7, set(list(ids)[:5]))
    ) == [
        *list(ids)[:5],
        "ab",
        "##bb",
    ]


def test_a_character_that_has_no_token_of_its_own_stays_in_its_tokens() -> None:
    ids = {token: i for i, token in enumerate(["[UNK]", "a", "##a", "b", "##b", "ab", "##ba", "aé"])}
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    there = trim_tokenizer.read(table(made))
    assert there.needed == {"[UNK]", "a", "##a", "b", "##b", "aé"}
    assert spelled(trimmed(made, [0] * 8, 6), "aé ab é") == ["aé", "a", "##b", "[UNK]"]


def test_processors_and_the_unknown_token_get_new_numbers() -> None:
    made = Tokenizer(models.Unigram([("</s>", 0.0), ("xy", -1.0), ("x", -2.0), ("y", -2.0), ("<unk>", -9.0)], unk_id=4))
    made.add_special_tokens(["</s>", "<unk>", "<far>"])
    made.post_processor = processors.Sequence(
        [processors.BertProcessing(("<far>", 5), ("<unk>", 4)), processors.RobertaProcessing(("<far>", 5), ("</s>", 0))]
    )
    small = trimmed(made, [0] * 6, 5)
    assert small.get_vocab() == {"</s>": 0, "x": 1, "y": 2, "<unk>": 3, "<far>": 4}
    parts = table(small)["post_processor"]["processors"]
    assert [(part["sep"], part["cls"]) for part in parts] == [
        (["<far>", 4], ["<unk>", 3]),
        (["<far>", 4], ["</s>", 0]),
    ]
    assert small.encode("xyz", add_special_tokens=False).ids == [1, 2, 3]


def test_kinds_that_cannot_be_trimmed() -> None:
    with pytest.raises(UserError, match="kind WordLevel cannot be trimmed; WordPiece, BPE, Unigram can"):
        trim_tokenizer.read(table(Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))))
    marked = Tokenizer(models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>"))
    with pytest.raises(UserError, match="marks the ends or the insides of words"):
        trim_tokenizer.read(table(marked))
