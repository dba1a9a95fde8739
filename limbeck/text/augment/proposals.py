"""What may stand in the place of the words of a text, as TinyBERT augments its data (arXiv 1909.10351, algorithm 1).

A word is replaced where it is made of letters and is no stop word: one of a single token by what a masked language model says
in its place, one of several tokens by the words of the nearest vectors.

M candidates, B queries, T tokens, H width, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from limbeck.errors import UserError
from limbeck.families import reserved_positions
from limbeck.models import fingerprint
from limbeck.models.taps import Tapped
from limbeck.recipe.data import Augment
from limbeck.system.files import json_sha256, path_of
from limbeck.system.progress import Done, uncounted
from limbeck.text.augment import word_vectors
from limbeck.text.augment.copies import Place
from limbeck.text.tokenise import serialised

LAYOUT = 1  # of what is said; a new number leaves older candidates unread
QUERIES = 64  # masked texts that the model reads at a time
PLACES = ("_name_or_path", "transformers_version", "architectures")  # of a config: where it was read, by what
SPARE = 8  # more than M that are asked for: other spellings of the word itself are not candidates
STOP = frozenset((files("limbeck") / "data" / "stopwords.txt").read_text(encoding="utf-8").split())


class Word(NamedTuple):
    """A word of a text and its tokens."""

    start: int
    end: int
    said: str  # as the tokenizer reads it
    ids: tuple[int, ...]
    place: int  # of its first token among those of the row


class Proposer:
    """Says which words of a text may be replaced, and by what.

    Args:
        model: a masked language model.
        tokenizer: its own, a fast one.
        how: `candidates` M, `vectors`, `as_published`.
        autocast: dtype of matrix products where it is not the parameters'.

    Raises:
        UserError: the tokenizer is not a fast one, or has no token that masks.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, how: Augment, autocast: torch.dtype | None = None
    ) -> None:
        self.model, self.how, self.autocast = model.eval(), how, autocast
        self.tapped = Tapped(model)
        self.backend = Tokenizer.from_str(serialised(tokenizer))
        self.backend.encode_special_tokens = True  # "[MASK]" in a text is text
        if tokenizer.mask_token_id is None:
            raise UserError(
                "data.task.augment.model: its tokenizer has no token that masks; name a masked language model"
            )
        self.mask, self.unknown, self.pad = tokenizer.mask_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id or 0
        self.types = "token_type_ids" in tokenizer.model_input_names
        self.room = getattr(model.config, "max_position_embeddings", 1 << 30) - reserved_positions(model.config)
        self.hash = hashlib.sha256(serialised(tokenizer).encode()).hexdigest()
        self._known: dict[tuple[int, ...] | str, tuple[str, ...]] = {}

    @property
    def identity(self) -> list[Any]:
        """All that candidates are a function of beside the text, as JSON: no place where anything lies."""
        config = {name: value for name, value in self.model.config.to_dict().items() if name not in PLACES}
        tensors = [*self.model.named_parameters(), *self.model.named_buffers()]
        file = None if self.how.vectors == "teacher" else word_vectors.sha256(path_of(self.how.vectors))
        said = [self.how.candidates, self.how.as_published, file, QUERIES, json_sha256(sorted(STOP)), LAYOUT]
        return [fingerprint.digest(tensors), json_sha256(config), self.hash, str(self.autocast), *said]

    def __call__(self, texts: Sequence[str], done: Done = uncounted) -> list[list[Place]]:
        """The replaceable words of every text, in their order, each with its candidates, the best first.

        `done` receives how many of the words that the model is asked for it has answered.
        """
        encodings, words, asked = self._asked(texts)
        said: dict[tuple[int, int], tuple[str, ...]] = {}
        for start in range(0, len(asked), QUERIES):
            done(start, len(asked))
            some = asked[start : start + QUERIES]
            for (row, w), found in zip(some, self._predicted([(encodings[row], w) for row, w in some]), strict=True):
                said[row, w.start] = found
        return [
            [
                Place(
                    w.start,
                    w.end,
                    (said[row, w.start] if len(w.ids) == 1 else self._near(w)) or (text[w.start : w.end],),
                )
                for w in some
            ]
            for row, (text, some) in enumerate(zip(texts, words, strict=True))
        ]

    def _asked(self, texts: Sequence[str]) -> tuple[list[Encoding], list[list[Word]], list[tuple[int, Word]]]:
        """Every text twice as tokens, its replaceable words, and of which the model is asked: (text, word), short texts first."""
        encodings = self.backend.encode_batch([(text, text) for text in texts])
        words = [[w for w in self._words(*pair) if self._valid(w)] for pair in zip(texts, encodings, strict=True)]
        asked = [(row, w) for row, some in enumerate(words) for w in some if len(w.ids) == 1]
        return encodings, words, sorted(asked, key=lambda one: len(encodings[one[0]].ids))

    def reads(self, texts: Sequence[str]) -> tuple[int, int]:
        """How many masked texts the model reads for some texts, and how many tokens, padding included."""
        encodings, _, asked = self._asked(texts)
        lengths = [min(len(encodings[row].ids), self.room) for row, _ in asked]
        parts = [lengths[start : start + QUERIES] for start in range(0, len(lengths), QUERIES)]
        return len(lengths), sum(len(part) * max(part) for part in parts)

    def _words(self, text: str, encoding: Encoding) -> Iterator[Word]:
        """The words of the first of two texts."""
        tokens: dict[int, list[int]] = {}
        for place, (segment, word) in enumerate(zip(encoding.sequence_ids, encoding.word_ids, strict=True)):
            if segment == 0 and word is not None:
                tokens.setdefault(word, []).append(place)
        for places in tokens.values():
            start, end = encoding.offsets[places[0]][0], encoding.offsets[places[-1]][1]
            start += len(text[start:end]) - len(text[start:end].lstrip())  # some tokenizers count the space before
            normal = self.backend.normalizer
            said = normal.normalize_str(text[start:end]) if normal else text[start:end]
            yield Word(start, end, said, tuple(encoding.ids[place] for place in places), places[0])

    def _valid(self, word: Word) -> bool:
        """Letters alone, no stop word; by default also one that the model knows."""
        if self.how.as_published:
            return word.said.isalpha() and word.said.isascii() and word.said.lower() not in STOP
        return word.said.isalpha() and word.said.casefold() not in STOP and self.unknown not in word.ids

    @torch.inference_mode()
    def _predicted(self, queries: Sequence[tuple[Encoding, Word]]) -> list[tuple[str, ...]]:
        """What the model says in place of words, each masked in the first of the two equal texts that it reads."""
        lengths = [min(len(encoding.ids), self.room) for encoding, _ in queries]
        ids, types, attended = (np.full((len(queries), max(lengths)), fill) for fill in (self.pad, 0, 0))
        for row, ((encoding, word), length) in enumerate(zip(queries, lengths, strict=True)):
            ids[row, :length], types[row, :length] = encoding.ids[:length], encoding.type_ids[:length]
            attended[row, :length] = 1
            if word.place < length:
                ids[row, word.place] = self.mask
        batch = {"input_ids": ids, "attention_mask": attended} | ({"token_type_ids": types} if self.types else {})
        device = self.model.device
        places = torch.tensor([min(word.place, max(lengths) - 1) for _, word in queries], device=device)
        with torch.autocast(device.type, self.autocast or torch.float32, enabled=self.autocast is not None):
            features = self.tapped({name: torch.from_numpy(it).to(device) for name, it in batch.items()}).features
            logits_BV = self.tapped.head(features[torch.arange(len(queries), device=device), places])
        found = self._best(logits_BV.float()[:, : len(self.tokens)], queries)
        return [some if word.place < self.room else () for some, (_, word) in zip(found, queries, strict=True)]

    def _best(self, logits_BV: Tensor, queries: Sequence[tuple[Encoding, Word]]) -> list[tuple[str, ...]]:
        """The words of the largest logits; as published, those that stand alone among the M largest of all tokens."""
        if self.how.as_published:
            rows = logits_BV.topk(min(self.how.candidates, logits_BV.shape[1])).indices.tolist()
            return [tuple(self.tokens[i] for i in row if not self.tokens[i].startswith("##")) for row in rows]
        whole = torch.tensor(self.whole, device=logits_BV.device)
        rows = whole[logits_BV[:, whole].topk(min(self.how.candidates + SPARE, len(whole))).indices].tolist()
        return [
            self._others((self.tokens[i] for i in row), word.said) for row, (_, word) in zip(rows, queries, strict=True)
        ]

    def _others(self, words: Iterator[str], said: str) -> tuple[str, ...]:
        """The first M words that are not that one."""
        return tuple([word for word in words if word.casefold() != said.casefold()][: self.how.candidates])

    def _near(self, word: Word) -> tuple[str, ...]:
        """The words of the nearest vectors; of the model's own the query is the mean of its tokens'."""
        key = word.ids if self.how.vectors == "teacher" else word.said
        if key not in self._known:
            self._known[key] = ()
            if isinstance(key, tuple):
                query = self.embeddings[list(key)].mean(0)
                self._known[key] = tuple(self.vectors.nearest(query, self.how.candidates, word.said))
            elif word.said in self.vectors:
                query = self.vectors.of(word.said)
                self._known[key] = tuple(self.vectors.nearest(query, self.how.candidates, word.said))
        return self._known[key]

    @cached_property
    def vectors(self) -> word_vectors.Vectors:
        """Those of the file, or those of the model's whole words."""
        if self.how.vectors != "teacher":
            return word_vectors.read(path_of(self.how.vectors))
        return word_vectors.Vectors([self.tokens[i] for i in self.whole], self.embeddings[self.whole])

    @cached_property
    def embeddings(self) -> np.ndarray:
        """The model's token embeddings: float32 `[V, H]`."""
        embedding: Any = self.model.get_input_embeddings()
        return embedding.weight.detach().float().cpu().numpy()

    @cached_property
    def tokens(self) -> list[str]:
        """Every token of the vocabulary as text."""
        size = 1 + max(self.backend.get_vocab().values())
        return [it.strip() for it in self.backend.decode_batch([[i] for i in range(size)], skip_special_tokens=False)]

    @cached_property
    def whole(self) -> list[int]:
        """The whole words of the vocabulary: two letters or more, nothing else, and a single token behind another word."""
        some = [i for i, token in enumerate(self.tokens) if token.isalpha() and len(token) > 1]
        read = self.backend.encode_batch([f"a {self.tokens[i]}" for i in some], add_special_tokens=False)
        lasts = [[i for i, word in zip(one.ids, one.word_ids, strict=True) if word == one.word_ids[-1]] for one in read]
        return [i for i, last in zip(some, lasts, strict=True) if last == [i]]
