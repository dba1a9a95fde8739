"""BERT's masking of the input (Devlin et al., 2018, section 3.1) as a pure function of random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from limbeck.batch import IGNORED

MASKED, REPLACED = (
    0.8,
    0.9,
)  # of the chosen tokens: below the first [MASK], up to the second a random token, else kept


def mask_tokens(
    ids: np.ndarray,
    *,
    uniform: np.ndarray,
    special_ids: Sequence[int],
    mask_id: int,
    vocabulary: int,
    probability: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose tokens and hide them: 80 % become [MASK], 10 % a random ordinary token, 10 % stay as they are.

    Every token that is not special is chosen with `probability`. Where a row would have none, the token with
    the least random number is chosen, so that no row is without a label.

    Args:
        ids: tokens [B, T].
        uniform: random numbers in [0, 1), [B, T, 3]: is it chosen, what happens to it, what replaces it.
        special_ids: tokens that are neither chosen nor put in place of another.
        mask_id: the id of [MASK].
        vocabulary: number of ids; a replacement is any of them that is not special.
        probability: share of the tokens that are chosen.

    Returns:
        (inputs, labels), both of the shape and type of `ids`; labels are `IGNORED` where nothing was chosen.
    """
    maskable = ~np.isin(ids, special_ids)
    chance = np.where(maskable, uniform[..., 0], 2.0)
    chosen = maskable & ((chance < probability) | (chance == chance.min(axis=1, keepdims=True)))
    fate = uniform[..., 1]
    inputs = np.where(chosen & (fate < MASKED), mask_id, ids)
    replaced = chosen & (fate >= MASKED) & (fate < REPLACED)
    inputs[replaced] = _ordinary(uniform[..., 2][replaced], special_ids, vocabulary)
    return inputs, np.where(chosen, ids, IGNORED)


def _ordinary(uniform: np.ndarray, special_ids: Sequence[int], vocabulary: int) -> np.ndarray:
    """Random ids that are not special: drawn from as many as there are, then moved past each special one."""
    specials = sorted({i for i in special_ids if i < vocabulary})
    drawn = (uniform * (vocabulary - len(specials))).astype(np.int64)
    for special in specials:
        drawn += drawn >= special
    return drawn
