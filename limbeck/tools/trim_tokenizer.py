"""A smaller vocabulary for a tokenizer: which tokens stay, and the tokenizer with these alone.

A tokenizer is the table that its tokenizer.json is, without truncation and padding (`tokenise.serialised`). A text whose tokens all stay is read as it was before, in other numbers:

- WordPiece takes the longest token that fits, and Unigram the best-scored way through; among fewer tokens both find the same.
- BPE merges the pair of the lowest rank. What it merges inside a token, it merges when it reads that token alone, for no merge
  reaches over the token's ends. So a token stays together with all that it is merged from, and no pair of a lower rank is new.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from limbeck.errors import UserError

Table = dict[str, Any]

KINDS = ("WordPiece", "BPE", "Unigram")
BYTE = re.compile("<0x[0-9A-F]{2}>")  # a token that stands for one byte


class Tokens(NamedTuple):
    """The tokens of a tokenizer.

    Args:
        ids: token -> its number; those of the model first, each part by number.
        needed: the tokens without which some text, or the tokenizer itself, would no longer work.
        ranks: of BPE, pair -> its rank among the merges; empty elsewhere.
    """

    ids: dict[str, int]
    needed: frozenset[str]
    ranks: dict[tuple[str, str], int]


def read(table: Table) -> Tokens:
    """The tokens of a tokenizer.

    Needed are added tokens, the unknown one, those of the post-processor, the bytes, every single character in the form in
    which the vocabulary has it, and a token that holds a character whose single form it has not.

    Raises:
        UserError: a kind of tokenizer that cannot be trimmed.
    """
    model = table["model"]
    if model["type"] not in KINDS:
        raise UserError(f"a tokenizer of the kind {model['type']} cannot be trimmed; {', '.join(KINDS)} can")
    if model["type"] == "BPE" and (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")):
        raise UserError(
            "a BPE tokenizer that marks the ends or the insides of words cannot be trimmed; give another model"
        )
    ids = _of_model(model)
    known = frozenset(ids)
    prefix = model["continuing_subword_prefix"] if model["type"] == "WordPiece" else ""
    needed = {token for token in ids if _spells(token, prefix, known)} | _named(table)
    added = sorted((token["id"], token["content"]) for token in table["added_tokens"] if token["content"] not in ids)
    ids |= {content: number for number, content in added}
    ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])} if model["type"] == "BPE" else {}
    return Tokens(ids, frozenset(needed & ids.keys()), ranks)


def _of_model(model: Table) -> dict[str, int]:
    if model["type"] == "Unigram":
        return {token: number for number, (token, _) in enumerate(model["vocab"])}
    return dict(sorted(model["vocab"].items(), key=lambda item: item[1]))


def _spells(token: str, prefix: str, known: frozenset[str]) -> bool:
    """Whether a text may need the token: it is a byte or a single character, or holds one that is not there alone."""
    inside = bool(prefix) and token.startswith(prefix) and len(token) > len(prefix)
    characters = token.removeprefix(prefix) if inside else token
    forms = [prefix + c if inside or place else c for place, c in enumerate(characters)]
    return len(forms) < 2 or not known.issuperset(forms) or bool(BYTE.fullmatch(token))


def _named(table: Table) -> set[str]:
    """The tokens that a tokenizer calls by name."""
    model = table["model"]
    named = {token["content"] for token in table["added_tokens"]}
    if model["type"] != "Unigram":
        named.add(model.get("unk_token") or "")
    elif model.get("unk_id") is not None:
        named.add(model["vocab"][model["unk_id"]][0])
    for part in _processors(table["post_processor"]):
        named |= {token for special in _templates(part) for token in special["tokens"]}
        named |= {part[name][0] for name in ("cls", "sep") if name in part}
    return named


def _processors(processor: Table | None) -> Iterator[Table]:
    """The post-processors of a tokenizer, one by one."""
    if processor and processor["type"] == "Sequence":
        for part in processor["processors"]:
            yield from _processors(part)
    elif processor:
        yield processor


def _templates(processor: Table) -> list[Table]:
    return list(processor["special_tokens"].values()) if processor["type"] == "TemplateProcessing" else []


def merged(token: str, ranks: dict[tuple[str, str], int]) -> set[str]:
    """What BPE makes on its way to a token; nothing if it does not come to it.

    >>> sorted(merged("abc", {("a", "b"): 0, ("ab", "c"): 1, ("b", "c"): 2}))
    ['a', 'ab', 'abc', 'b', 'c']
    """
    symbols = list(token)
    made = set(symbols)
    while len(symbols) > 1:
        rank, place = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairwise(symbols)))
        if rank == len(ranks):
            return set()
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
        made.add(symbols[place])
    return made


def core(tokens: Tokens, size: int, also: Iterable[int] = ()) -> set[str]:
    """The tokens that stay in any case: those needed, of BPE with all that they are merged from.

    Args:
        tokens: of the tokenizer.
        size: how many are to stay.
        also: numbers of further tokens that are needed.

    Raises:
        UserError: `size` is less than that, or more than there are.
    """
    also = frozenset(also)
    kept = set(tokens.needed) | {token for token, number in tokens.ids.items() if number in also}
    for token in tuple(kept):
        kept |= _parts(token, tokens)
    if size < len(kept):
        raise UserError(
            f"--vocabulary {size}: too few; special tokens and what spells any text come to {len(kept)}, the least that works"
        )
    if size > len(tokens.ids):
        raise UserError(f"--vocabulary {size}: there are only {len(tokens.ids)} tokens; give fewer")
    return kept


def choose(tokens: Tokens, counts: Sequence[int], size: int, kept: set[str]) -> list[str]:
    """The tokens that stay, in the order of their new numbers: a core, and the most frequent; of equal ones the first.

    A token of BPE takes room with all that it is merged from; one that no longer fits is passed over for the next.

    Args:
        tokens: of the tokenizer.
        counts: how often each number was seen.
        size: how many tokens stay.
        kept: the core.

    Example:
        >>> some = Tokens({"a": 0, "b": 1, "ab": 2, "ba": 3}, frozenset("ab"), {})
        >>> choose(some, [5, 5, 1, 2], 3, {"a", "b"})
        ['a', 'b', 'ba']
    """
    kept = set(kept)
    for token in sorted(tokens.ids, key=lambda it: (-counts[tokens.ids[it]], tokens.ids[it])):
        if len(kept) == size:
            break
        more = {token, *_parts(token, tokens)} - kept
        if len(kept) + len(more) <= size:
            kept |= more
    return [token for token in tokens.ids if token in kept]


def _parts(token: str, tokens: Tokens) -> set[str]:
    return {part for part in merged(token, tokens.ranks) if part in tokens.ids} if tokens.ranks else set()


def cut(table: Table, kept: Sequence[str]) -> Table:
    """The tokenizer with these tokens alone, numbered in their order.

    Args:
        table: of the whole tokenizer; stays as it is.
        kept: as `choose` gives them.
    """
    table = json.loads(json.dumps(table))
    number, model = {token: i for i, token in enumerate(kept)}, table["model"]
    if model["type"] == "Unigram":
        unknown = model.get("unk_id")
        model["unk_id"] = None if unknown is None else number[model["vocab"][unknown][0]]
        model["vocab"] = [pair for pair in model["vocab"] if pair[0] in number]
    else:
        model["vocab"] = {token: i for token, i in number.items() if token in model["vocab"]}
    if model["type"] == "BPE":
        model["merges"] = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= model["vocab"].keys()]
    for token in table["added_tokens"]:
        token["id"] = number[token["content"]]
    table["added_tokens"].sort(key=lambda token: token["id"])
    for part in _processors(table["post_processor"]):
        for special in _templates(part):
            special["ids"] = [number[token] for token in special["tokens"]]
        for name in {"cls", "sep"} & part.keys():
            part[name][1] = number[part[name][0]]
    return table
