"""Train the uncased WordPiece tokenizer that limbeck carries in `limbeck/data/embedded`.

A recipe for maintainers: it was run once, on the Wikipedia training shards and the embedded corpus `docs`, as
`python recipes/embedded/make_tokenizer.py --corpus enwiki/train-*.jsonl.xz --out limbeck/data/embedded`.
The trainer breaks ties and numbers the alphabet in an order that changes from run to run: a second training
gives other ids (and a few other rare characters), so the files in the repository are the tokenizer, not the
script. The text was 100 million characters of Wikipedia and 5.5 million of an earlier, less strictly filtered
state of `docs`.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from limbeck.text.docs import documents

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # ids 0 to 4
ALPHABET = 300  # characters; a word with a rarer one becomes [UNK]
MAX_LENGTH = 512


def texts(path: Path) -> Iterator[str]:
    """Yield the `text` field of every line of a `.jsonl` or `.jsonl.xz` file."""
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def first(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Yield texts until they add up to so many characters."""
    for text in texts:
        if characters <= 0:
            return
        characters -= len(text)
        yield text


def untrained() -> Tokenizer:
    """Return an empty tokenizer with BERT's rules: lower case, no accents, `##` inside words."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", continuing_subword_prefix="##"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, SPECIALS.index(name)) for name in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def train(corpus: Iterable[str], vocabulary: int) -> Tokenizer:
    """Return a tokenizer of at most `vocabulary` tokens, trained on the texts."""
    tokenizer = untrained()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=SPECIALS, limit_alphabet=ALPHABET, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the two files that `AutoTokenizer.from_pretrained` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {f"{name.strip('[]').lower()}_token": name for name in SPECIALS}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_LENGTH, **tokens}
    names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | names, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line, train, write."""
    parser = argparse.ArgumentParser(description="Train the uncased WordPiece tokenizer that limbeck carries.")
    parser.add_argument("--corpus", nargs="+", type=Path, required=True, help=".jsonl or .jsonl.xz, field `text`")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tokenizer")
    parser.add_argument("--vocabulary", type=int, default=8192, help="tokens, special tokens included")
    parser.add_argument("--characters", type=int, default=100_000_000, help="read no more of --corpus than this")
    args = parser.parse_args()
    corpus = first((text for path in args.corpus for text in texts(path)), args.characters)
    prose = (text for _, text in documents())
    tokenizer = train((text for part in (corpus, prose) for text in part), args.vocabulary)
    save(tokenizer, args.out)
    print(f"{tokenizer.get_vocab_size()} tokens in {args.out}")


if __name__ == "__main__":
    main()
