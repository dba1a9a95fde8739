"""BERT's tokenizer over a small vocabulary, for the tests of augmentation."""

from __future__ import annotations

from typing import Any

import transformers as tf
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WHOLE = (
    "film",
    "good",
    "great",
    "fine",
    "dull",
    "bad",
    "plot",
    "story",
    "actor",
    "funny",
    "act",
    "slow",
    "fast",
    "warm",
)
PIECES = ("##ing", "##ly", "##s", "##ed", "##or")
OTHERS = ("the", "is", "a", "not", ",", ".", "'", "t", "x", "7", "[", "]", "mask")
VOCABULARY = (*SPECIALS, *WHOLE, *PIECES, *OTHERS)


def words() -> tf.PreTrainedTokenizerFast:
    """BERT's tokenizer over a small vocabulary: lower case, punctuation apart, pieces."""
    backend: Any = Tokenizer(models.WordPiece({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(list(SPECIALS))
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name.lower()[1:-1]}_token": name for name in SPECIALS}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return tf.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=32, model_input_names=inputs, **names)
