"""A model with a smaller vocabulary: its most frequent tokens, and the rows of its embedding and output that belong to them.

What it says of a text that is made of kept tokens is what it said before: its hidden states are the same, and so are the logits
of the kept tokens. Rarer words are spelled with more tokens.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from limbeck.errors import UserError
from limbeck.families import reserved_positions
from limbeck.models import pretrained
from limbeck.recipe.models import Source, source_of
from limbeck.system.files import appearing, path_of, require_free
from limbeck.text.corpora import column_names, find_files, read_documents
from limbeck.text.readers import kind_of
from limbeck.text.tables import Column, listed
from limbeck.text.tokenise import serialised
from limbeck.tools import trim_tokenizer

BATCH = 1 << 20  # characters that are read at a time


class Growth(NamedTuple):
    """Some texts under two tokenizers, before and after; words are those of the first one's pre-tokenizer.

    Attributes:
        tokens: without special ones.
        unknown: those of them that are the unknown token.
        words: all, and those whose spelling changed.
        characters: of the texts.
    """

    tokens: tuple[int, int]
    unknown: tuple[int, int]
    words: tuple[int, int]
    characters: int


class Trimmed(NamedTuple):
    """What became of a model: numbers before and after."""

    vocabulary: tuple[int, int]
    parameters: tuple[int, int]
    growth: Growth

    def lines(self) -> list[str]:
        """For people."""
        tokens, words, unknown = self.growth.tokens, self.growth.words, self.growth.unknown
        more = 100 * (tokens[1] / tokens[0] - 1) if tokens[0] else 0.0
        changed = 100 * words[1] / words[0] if words[0] else 0.0
        return [
            f"{'vocabulary':14} {self.vocabulary[0]:,} -> {self.vocabulary[1]:,} tokens",
            f"{'parameters':14} {self.parameters[0]:,} -> {self.parameters[1]:,}",
            f"{'tokens':14} {tokens[0]:,} -> {tokens[1]:,} ({more:+.1f} %), unknown {unknown[0]:,} -> {unknown[1]:,}",
            f"{'words':14} {changed:.1f} % of {words[0]:,} are spelled anew",
        ]


def trim(model: str, out: str | Path, size: int, corpora: Sequence[str], fields: Sequence[str] = ("text",)) -> Trimmed:
    """Writes a model with a smaller vocabulary, whole or not at all; `AutoModel...from_pretrained` loads it.

    Args:
        model: a folder, `embedded` or a Hub id (`org/name@revision`).
        out: the folder that is made.
        size: how many tokens stay, special tokens included.
        corpora: texts in which tokens are counted, in the words of `data.corpus`.
        fields: columns that hold text, by name, or by number from 0 where a file has no line of names; a corpus is read for
            those of them that it has.

    Raises:
        UserError: no usable model, a tokenizer that cannot be trimmed, no text, no such size, or `out` is there already.

    Example:
        >>> trim("bert", "bert-8000", 8000, ["train.tsv"], ["sentence"]).vocabulary   # doctest: +SKIP
        (30522, 8000)
    """
    place = path_of(out)
    require_free(place)
    source = source_of(model)
    config, tokenizer = pretrained.config_of(source), pretrained.tokenizer_of(source)
    before = reader(tokenizer)
    there = trim_tokenizer.read(json.loads(before.to_str()))
    if (highest := max(there.ids.values())) >= config.vocab_size:
        raise UserError(
            f"{model}: the tokenizer has a token {highest}, and the model {config.vocab_size} rows; mend it"
        )
    core = trim_tokenizer.core(there, size, _named(config))
    whole = pretrained.model_of(source, getattr(config, "dtype", None) or torch.float32, config=config)
    kept = trim_tokenizer.choose(there, count(before, texts(corpora, fields), config.vocab_size), size, core)
    sizes = [whole.num_parameters()]
    keep_rows(whole, [there.ids[token] for token in kept])
    sizes.append(whole.num_parameters())
    with appearing(place) as folder:
        whole.save_pretrained(folder)
        _save_tokenizer(tokenizer, kept, folder)
        after = reader(pretrained.tokenizer_of(Source(source=str(folder))))
        if after.get_vocab() != {token: i for i, token in enumerate(kept)}:
            raise UserError(
                f"{model}: a tokenizer of the class {type(tokenizer).__name__} cannot be trimmed; save it as a plain tokenizer.json"
            )
        found = Trimmed((len(there.ids), size), (sizes[0], sizes[1]), growth(before, after, texts(corpora, fields)))
        (folder / "README.md").write_text(_card(model, corpora, found), encoding="utf-8")
    return found


def reader(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A tokenizer as limbeck reads texts with it: nothing is cut or padded, and `[MASK]` in a text is text."""
    found = Tokenizer.from_str(serialised(tokenizer))
    found.encode_special_tokens = True
    return found


def texts(corpora: Sequence[str], fields: Sequence[str]) -> Iterator[str]:
    """The texts of several corpora, of each those of the columns that it has.

    Raises:
        UserError: a corpus cannot be read, or has no text or none of the columns.
    """
    for spec in corpora:
        for field in _columns(spec, fields):
            yield from (text for _, text in read_documents(spec, field=field))


def _columns(spec: str, fields: Sequence[str]) -> Sequence[Column]:
    """Those of the columns that a corpus has, by name or else by number; of running text one, which is not looked at."""
    files = find_files(spec)
    running = spec == "docs" or any((kind_of(file) or "")[0] == ".txt" for file in files[:1])
    names = [] if running else column_names(spec, {})
    found: list[Column] = [field for field in fields if field in names]
    numbers = [int(field) for field in fields if field.isdecimal()]
    if names and not found and numbers:
        names = column_names(spec, {"field": numbers[0]})
        found = [number for number in numbers if number in names]
    if names and not found:
        raise UserError(f"{spec}: no column {' or '.join(fields)}; set --field to one of: {listed(names)}")
    return found or fields[:1]


def _batches(some: Iterable[str]) -> Iterator[list[str]]:
    """Texts, about BATCH characters at a time."""
    batch, size = list[str](), 0
    for text in some:
        batch.append(text)
        size += len(text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(tokenizer: Tokenizer, batch: list[str]) -> list[Encoding]:
    return tokenizer.encode_batch(batch, add_special_tokens=False)


def count(tokenizer: Tokenizer, some: Iterable[str], rows: int) -> list[int]:
    """How often each of `rows` tokens stands in texts."""
    total = np.zeros(rows, np.int64)
    for batch in _batches(some):
        for encoding in _encoded(tokenizer, batch):
            total += np.bincount(np.array(encoding.ids, np.int64), minlength=rows)
    return total.tolist()


def growth(before: Tokenizer, after: Tokenizer, some: Iterable[str]) -> Growth:
    """What the second tokenizer, trimmed from the first, makes of texts.

    Args:
        before, after: as `reader` gives them.
        some: the texts.
    """
    left = after.get_vocab()
    gone = np.array([number for token, number in before.get_vocab().items() if token not in left], np.int64)
    unknown = [_unknown(tokenizer) for tokenizer in (before, after)]
    tokens, lost, words, characters = np.zeros(2, int), np.zeros(2, int), np.zeros(2, int), 0
    for batch in _batches(some):
        characters += sum(map(len, batch))
        both = [_encoded(tokenizer, batch) for tokenizer in (before, after)]
        for place, encodings in enumerate(both):
            tokens[place] += sum(len(encoding.ids) for encoding in encodings)
            lost[place] += sum(number == unknown[place] for encoding in encodings for number in encoding.ids)
        for encoding in both[0]:
            of = np.array([-1 if word is None else word for word in encoding.word_ids], np.int64)
            words += len(np.unique(of)), len(np.unique(of[np.isin(encoding.ids, gone)]))
    first, second, third = ((int(pair[0]), int(pair[1])) for pair in (tokens, lost, words))
    return Growth(first, second, third, characters)


def _unknown(tokenizer: Tokenizer) -> int | None:
    """The number of the unknown token."""
    model = json.loads(tokenizer.to_str())["model"]
    return model.get("unk_id") if model["type"] == "Unigram" else tokenizer.token_to_id(model.get("unk_token") or "")


@torch.no_grad()
def keep_rows(model: PreTrainedModel, rows: Sequence[int]) -> None:
    """Leaves a model these rows of everything that is as long as its vocabulary, and numbers tokens anew, in place.

    Which tensors these are is found out, not known: those that grow in a model with one more token.

    Args:
        model: of any family; tied tensors stay tied.
        rows: the numbers of the tokens that are kept, in their new order.

    Example:
        >>> keep_rows(model, [0, 100, 101, 102, 103, 1996])   # doctest: +SKIP
        >>> model.get_input_embeddings().weight.shape[0]   # doctest: +SKIP
        6
    """
    config = copy.deepcopy(model.config)
    config.vocab_size += 1
    with torch.device("meta"):
        larger = dict(_tensors(type(model)(config)))
    chosen, done = torch.tensor(list(rows)), set[int]()
    for name, tensor in _tensors(model):
        if tensor.shape != larger[name].shape and id(tensor) not in done:
            done.add(id(tensor))
            tensor.data = tensor.data[chosen.to(tensor.device)]
    model.config.vocab_size = len(rows)
    for settings in (model.config, getattr(model, "generation_config", None)):
        _renumber(settings, {old: new for new, old in enumerate(rows)})
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.num_embeddings = module.weight.shape[0]
            if module.weight.shape[0] == len(rows) and module.padding_idx is not None:
                module.padding_idx = model.config.pad_token_id
        elif isinstance(module, nn.Linear):
            module.out_features = module.weight.shape[0]


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _settings(config: Any) -> dict[str, int | list[int]]:
    """The numbers of tokens that a config names: of padding, of the end of a text (one or several), ..."""
    named = config.to_dict() if config else {}
    return {word: value for word, value in named.items() if word.endswith("_token_id") and value is not None}


def _renumber(config: Any, number: dict[int, int]) -> None:
    """Gives the tokens that a config names their new numbers; None to one that there never was."""
    for word, value in _settings(config).items():
        several = isinstance(value, list)
        new = [number[each] for each in value if each in number] if several else number.get(value)
        setattr(config, word, new)


def _named(config: PretrainedConfig) -> set[int]:
    """The numbers that must stay: those that the config names, and where positions begin behind padding all before it."""
    named = set(range(reserved_positions(config)))
    for value in _settings(config).values():
        named |= set(value) if isinstance(value, list) else {value}
    return named


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, kept: Sequence[str], folder: Path) -> None:
    """Its settings as they are, and its table with these tokens alone."""
    tokenizer.save_pretrained(folder)
    for path in (folder / name for name in type(tokenizer).vocab_files_names.values()):
        path.unlink(missing_ok=True)  # the same tokens in an older form: vocab.txt, merges.txt
    table = trim_tokenizer.cut(json.loads(serialised(tokenizer)), kept)
    (folder / "tokenizer.json").write_text(json.dumps(table, ensure_ascii=False, indent=1), encoding="utf-8")


def _card(model: str, corpora: Sequence[str], found: Trimmed) -> str:
    numbers = "\n".join(found.lines())
    return f"# {model} with {found.vocabulary[1]:,} tokens\n\nTrimmed by limbeck; tokens counted in {', '.join(corpora)}.\n\n```\n{numbers}\n```\n"
