"""Tiny tokenizers and a tiny corpus for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from limbeck.recipe.data import Data

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("a", "b", "c", "d", "e", "f", "g", "h", "still", "wort", "play", "##ing", "playing")
Build = Callable[..., PreTrainedTokenizerFast]


@pytest.fixture(scope="session")
def word_piece() -> Build:
    """Builds BERT-like tokenizers: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, the words from 5."""

    def build(words: Sequence[str] = WORDS, **special: str) -> PreTrainedTokenizerFast:
        vocabulary = {word: i for i, word in enumerate((*SPECIALS, *words))}
        backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
        backend.add_special_tokens(list(SPECIALS))
        names = {f"{name.lower()[1:-1]}_token": name for name in SPECIALS}
        return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=8, **(names | special))

    return build


@pytest.fixture(scope="session")
def causal() -> Build:
    """Builds causal tokenizers: <s> 0, </s> 1, <unk> 2, words from 3; with `opens`, <s> stands in front."""

    def build(opens: bool = False) -> PreTrainedTokenizerFast:
        vocabulary = {word: i for i, word in enumerate(("<s>", "</s>", "<unk>", *WORDS))}
        backend = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
        if opens:
            template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
            backend.post_processor = template  # pyright: ignore[reportAttributeAccessIssue]
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=8, **names)

    return build


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with 40 training documents of 10 tokens and 8 held-out ones."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    texts = [" ".join(WORDS[(i * k + i // 8 + k) % 8] for k in range(9)) + f" n{i}" for i in range(48)]
    (folder / "train.txt").write_text("\n\n".join(texts[:40]), encoding="utf-8")
    (folder / "dev.txt").write_text("\n\n".join(texts[40:]), encoding="utf-8")
    return folder


@pytest.fixture
def data(corpus: Path, tmp_path: Path) -> Callable[..., Data]:
    """The recipe's table `data` for `corpus`, with a cache of its own; words given replace those."""

    def table(**words: Any) -> Data:
        defaults = {"corpus": str(corpus), "cache": str(tmp_path / "cache"), "max_length": 8}
        return Data.model_validate(defaults | words)

    return table
