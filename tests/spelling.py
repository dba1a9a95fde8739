"""Small tokenizers of every kind that can be trimmed, trained on invented words, and models that read them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from families import CAUSAL, CONFIGS
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

FAMILIES = {
    "bert": "wordpiece",
    "electra": "wordpiece",
    "distilbert": "wordpiece",
    "roberta": "roberta",
    "modernbert": "bytes",
    "gpt2": "bytes",
    "llama": "bytes",
    "qwen3": "unigram",
}


def sentences(count: int = 300, seed: int = 0) -> list[str]:
    """Lines of words, a few of which are frequent."""
    made = random.Random(7)
    syllables = [a + b for a in "bdfglmnprst" for b in ("a", "e", "i", "o", "un", "er")]
    words = ["".join(made.choices(syllables, k=made.randint(1, 4))) for _ in range(400)]
    dice = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(len(words))]
    return [" ".join(dice.choices(words, weights, k=dice.randint(3, 12))) for _ in range(count)]


STRANGE = ["[MASK] ba", "Été à Zürich, 漢字 ☃!", "x" * 120, "", "   ", "ba\tde\n\nfi", "qqqq zzz 0123", "�‍"]


def wordpiece() -> tf.PreTrainedTokenizerFast:
    """As BERT's: padding first, then tokens that nobody uses, then the other special tokens."""
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trained.train_from_iterator(sentences(), trainers.WordPieceTrainer(vocab_size=400, show_progress=False))
    learnt = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    first, *others = names.values()
    order = [first, *(f"[unused{i}]" for i in range(10)), *others, *learnt]
    made = Tokenizer(models.WordPiece({token: i for i, token in enumerate(order)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    template = {"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] $B:1 [SEP]:1"}
    made.post_processor = processors.TemplateProcessing(
        **template, special_tokens=[(token, order.index(token)) for token in ("[CLS]", "[SEP]")]
    )
    return tf.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def roberta() -> tf.PreTrainedTokenizerFast:
    """As RoBERTa's: byte-level BPE, padding is 1, the mask comes last and is no token of the model."""
    made = _bytes(["<s>", "<pad>", "</s>", "<unk>"])
    made.add_special_tokens(["<mask>"])
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = {"bos": "<s>", "cls": "<s>", "pad": "<pad>", "eos": "</s>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, **{f"{name}_token": token for name, token in names.items()}
    )


def bytes_() -> tf.PreTrainedTokenizerFast:
    """As GPT-2's or Llama 3's: byte-level BPE, special tokens come last; a text begins with one."""
    made = _bytes([])
    made.add_special_tokens(["<|begin|>", "<|end|>", "<|pad|>", "<|mask|>"])
    begin = made.token_to_id("<|begin|>")
    made.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin|> $A", pair="<|begin|> $A $B:1", special_tokens=[("<|begin|>", begin)]
            ),
        ]
    )
    names = {"bos": "<|begin|>", "eos": "<|end|>", "pad": "<|pad|>", "mask": "<|mask|>"}
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, **{f"{name}_token": token for name, token in names.items()}
    )


def _bytes(special: list[str]) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        sentences(),
        trainers.BpeTrainer(
            vocab_size=600, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
        ),
    )
    return made


def unigram() -> tf.PreTrainedTokenizerFast:
    """As T5's or XLM-R's, with the unknown token in the middle."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    made.train_from_iterator(
        sentences(),
        trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", bos_token="</s>", unk_token="<unk>"
    )


TOKENIZERS = {"wordpiece": wordpiece, "roberta": roberta, "bytes": bytes_, "unigram": unigram}


def lay_out(name: str, folder: Path, spare: int = 3, **more: Any) -> Path:
    """A random model of a family and its tokenizer; the embedding has some rows that are no token's."""
    tokenizer = TOKENIZERS[FAMILIES[name]]()
    config = CONFIGS[name]()
    config.vocab_size = len(tokenizer) + spare
    for role in ("pad", "bos", "eos", "cls", "sep", "mask"):
        if getattr(config, f"{role}_token_id", None) is not None:
            setattr(config, f"{role}_token_id", getattr(tokenizer, f"{role}_token_id"))
    for word, value in more.items():
        setattr(config, word, value)
    kind = tf.AutoModelForCausalLM if name in CAUSAL else tf.AutoModelForMaskedLM
    torch.manual_seed(3)
    model = kind.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
