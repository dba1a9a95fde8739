"""Batches of packed blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch

from limbeck.batch import IGNORED
from limbeck.errors import UserError
from limbeck.recipe.data import Masking, Sampled
from limbeck.text.blocks import Blocks
from limbeck.text.feed import Batch
from limbeck.text.masking import mask_tokens
from limbeck.text.order import block_indices, derive_seed, uniform

EVALUATION = derive_seed(0, "evaluation")  # the key of its masks: one for all seeds


class Feed:
    """Blocks as batches.

    A batch holds, for b rows of T = `blocks.max_length` tokens,

    - `input_ids` int64 [b, T],
    - `attention_mask` int64 [b, T]: ones, since packed blocks have no padding,
    - `labels` int64 [b, T]: the next token (causal), or the token itself where it was chosen; `IGNORED` elsewhere,
    - `select` bool [b, T]: the tokens whose logits a logit loss looks at,
    - `blocks` int64 [b]: the number of each row's block,
    - `documents` int32 [b, T]: the number of each token's document, -1 for tokens that packing added.

    Args:
        blocks: the part of a corpus to read, `corpus.train` or `corpus.heldout`.
        masking: `data.masking`; a causal model is never masked.
        positions: `data.positions`: select the `masked` tokens, or `all` (of a causal row all but the last,
            which has no next token), or a share of them; evaluations take all of which there is a share.
        seed: of the order and of the masks.
        batch_size: rows of the whole batch, over all micro-batches and processes.
        causal: the model predicts the next token.

    Raises:
        UserError: masking without a mask token, or masked positions without masking.
    """

    def __init__(
        self,
        blocks: Blocks,
        *,
        masking: Masking,
        positions: Literal["all", "masked"] | Sampled = "all",
        seed: int = 0,
        batch_size: int = 32,
        causal: bool = False,
    ) -> None:
        self.blocks = blocks
        self.seed, self.batch_size, self.causal = seed, batch_size, causal
        self.mode = "none" if causal else masking.mode
        self.probability = masking.probability
        self.positions = "all" if isinstance(positions, Sampled) else positions
        self.share = positions.sampled if isinstance(positions, Sampled) else None
        if self.mode != "none" and blocks.special.mask is None:
            raise UserError("the tokenizer has no mask token; set data.masking.mode to none")
        if self.mode == "none" and positions == "masked":
            raise UserError("data.positions is masked, but nothing is masked; set data.positions to all")

    def indices(self, step: int) -> np.ndarray:
        """The blocks of the whole batch `step`: int64 [batch_size]."""
        return block_indices(self.seed, step, self.batch_size, len(self.blocks))

    def lengths(self, step: int) -> np.ndarray:
        """The tokens of every row of the whole batch `step`: those of a block."""
        return np.full(self.batch_size, self.blocks.max_length)

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """Batch `step` (from 0), or only the given rows of it: the same bits as in the whole."""
        indices = self.indices(step)[rows]
        if self.mode != "dynamic":
            return self.again(indices)
        numbers = np.arange(self.batch_size)[rows]
        return self._assemble(indices, derive_seed(self.seed, "masking", step), numbers, self.share)

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def masks(self) -> Any:
        """What a row that is the same in every epoch is a function of, beside its block."""
        drawn = [self.probability, self.seed] if self.mode == "static" else []
        chosen = [self.share, self.seed] if self.share else []
        return [self.mode, self.positions, self.causal, *drawn, *chosen]

    def again(self, indices: np.ndarray) -> Batch:
        """The given blocks as every epoch reads them.

        Raises:
            UserError: every epoch masks them anew.
        """
        if self.mode == "dynamic":
            raise UserError(
                "data.masking.mode: dynamic masks a text anew in every epoch, and a cache holds one; set it to static"
            )
        return self._assemble(indices, derive_seed(self.seed, "masking"), indices, self.share)

    def sample(self, indices: np.ndarray) -> Batch:
        """The given blocks for an evaluation: each is masked the same at all times and for every seed."""
        return self._assemble(np.asarray(indices), EVALUATION, np.asarray(indices))

    def fixed(self, count: int, batch_size: int | None = None) -> Iterator[Batch]:
        """`count` blocks (at most all) spread evenly over the part, `batch_size` rows at a time."""
        count, size = min(count, len(self.blocks)), batch_size or self.batch_size
        indices = np.arange(count) * len(self.blocks) // count
        for start in range(0, count, size):
            yield self.sample(indices[start : start + size])

    def _assemble(self, indices: np.ndarray, key: int, keys: np.ndarray, share: float | None = None) -> Batch:
        """Row i holds block `indices[i]`, masked by the random numbers of (key, keys[i])."""
        ids = self.blocks.rows(indices)
        inputs, labels = (ids, self._next(ids)) if self.mode == "none" else self._masked(ids, key, keys)
        everywhere = self.positions == "all" and not self.causal
        select = np.ones(ids.shape, bool) if everywhere else labels != IGNORED
        if share is not None:
            select = _some(select, share, uniform(derive_seed(key, "positions"), keys, ids.shape[1]))
            labels = np.where(select, labels, IGNORED)
        batch = {
            "input_ids": inputs,
            "attention_mask": np.ones_like(ids),
            "labels": labels,
            "select": select,
            "documents": self.blocks.documents_of(indices),
            "blocks": np.asarray(indices, np.int64),
        }
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _masked(self, ids: np.ndarray, key: int, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        special, (rows, length) = self.blocks.special, ids.shape
        assert special.mask is not None
        return mask_tokens(
            ids,
            uniform=uniform(key, keys, 3 * length).reshape(rows, length, 3),
            special_ids=special.every,
            mask_id=special.mask,
            vocabulary=special.vocabulary,
            probability=self.probability,
        )

    def _next(self, ids: np.ndarray) -> np.ndarray:
        """The next tokens; a model that is neither causal nor masked has nothing to predict."""
        labels = np.full_like(ids, IGNORED)
        if self.causal:
            labels[:, :-1] = ids[:, 1:]
        return labels


def _some(select: np.ndarray, share: float, chance: np.ndarray) -> np.ndarray:
    """About a share of what is selected `[b, T]`, by random numbers in [0, 1); of every row one at least."""
    chance = np.where(select, chance, 2.0)
    return select & ((chance < share) | (chance == chance.min(axis=1, keepdims=True)))
