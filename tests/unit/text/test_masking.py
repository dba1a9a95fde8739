from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.text.masking import mask_tokens

SPECIAL, MASK, VOCABULARY = (0, 100, 101, 102, 103), 103, 1000


def masked(ids: np.ndarray, seed: int = 0, probability: float = 0.15, **words: Any) -> tuple[np.ndarray, np.ndarray]:
    return mask_tokens(
        ids,
        uniform=np.random.default_rng(seed).random((*ids.shape, 3)),
        **({"special_ids": SPECIAL, "mask_id": MASK, "vocabulary": VOCABULARY, "probability": probability} | words),
    )


def test_shares_are_berts() -> None:
    ids = np.full((400, 128), 500)
    inputs, labels = masked(ids)
    chosen = labels != -100
    assert abs(chosen.mean() - 0.15) < 0.005
    assert abs((inputs[chosen] == MASK).mean() - 0.8) < 0.01
    assert abs((inputs[chosen] == 500).mean() - 0.1) < 0.01
    assert (inputs[~chosen] == 500).all()
    assert (labels[chosen] == 500).all()


def test_replacements_are_all_the_ordinary_tokens() -> None:
    specials = (0, 3, 4, 9, 50)
    inputs, _ = masked(np.full((300, 100), 1), probability=0.99, special_ids=specials, mask_id=4, vocabulary=10)
    assert set(np.unique(inputs)) == {1, 2, 4, 5, 6, 7, 8}
    counts = np.bincount(inputs.ravel())[[2, 5, 6, 7, 8]]
    assert counts.min() > 0.8 * counts.max()


def test_special_tokens_stay() -> None:
    ids = np.tile([101, 7, 8, 100, 9, 102, 0, 0], (500, 1))
    inputs, labels = masked(ids, probability=0.5)
    special = np.isin(ids, SPECIAL)
    assert (inputs[special] == ids[special]).all()
    assert (labels[special] == -100).all()


@given(seed=st.integers(0, 1000), probability=st.floats(0.001, 0.5), length=st.integers(1, 12))
@settings(deadline=None, max_examples=50)
def test_every_row_with_an_ordinary_token_has_a_label(seed: int, probability: float, length: int) -> None:
    ids = np.random.default_rng(seed + 1).integers(98, 106, (16, length))
    before = ids.copy()
    _, labels = masked(ids, seed, probability)
    assert ((labels != -100).any(1) == ~np.isin(ids, SPECIAL).all(1)).all()
    assert np.array_equal(ids, before)
    assert labels.shape == ids.shape
