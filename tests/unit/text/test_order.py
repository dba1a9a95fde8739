from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.text.order import block_indices, derive_seed, mix, permute, uniform

SEEDS = st.integers(0, 2**63 - 1)


@pytest.mark.parametrize("n", [*range(1, 70), 127, 128, 129, 1000, 4096, 4097, 10_007])
@pytest.mark.parametrize("key", [0, 2**63 - 1])
def test_permutation_is_bijective(n: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


@given(seed=SEEDS, n=st.integers(1, 300), batch_size=st.integers(1, 40), epochs=st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_every_block_once_per_epoch(seed: int, n: int, batch_size: int, epochs: int) -> None:
    steps = -(-epochs * n // batch_size)
    order = np.concatenate([block_indices(seed, step, batch_size, n) for step in range(steps)])
    for epoch in range(epochs):
        assert np.array_equal(np.sort(order[epoch * n : (epoch + 1) * n]), np.arange(n))


@given(seed=SEEDS, step=st.integers(0, 10**9), batch_size=st.integers(1, 64), n=st.integers(1, 10**9))
@settings(deadline=None, max_examples=60)
def test_order_is_pure_and_does_not_depend_on_the_batch_size(seed: int, step: int, batch_size: int, n: int) -> None:
    batch = block_indices(seed, step, batch_size, n)
    assert batch.dtype == np.int64
    assert ((batch >= 0) & (batch < n)).all()
    rows = [block_indices(seed, step * batch_size + row, 1, n)[0] for row in (0, batch_size - 1)]
    assert rows == [batch[0], batch[-1]]


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = {tuple(block_indices(seed, epoch, 50, 50)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_permutations_of_three_are_all_reached_about_equally() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(1200):
        order = tuple(block_indices(seed, 0, 3, 3).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert min(counts.values()) > 130


def test_order_looks_random() -> None:
    n = 20_000
    order = permute(np.arange(n), n, derive_seed(0))
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.03
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03
    assert abs((np.abs(np.diff(order)) < n / 10).mean() - 0.19) < 0.01


def test_order_is_golden() -> None:
    assert block_indices(0, 0, 8, 100).tolist() == [25, 47, 24, 55, 31, 1, 29, 74]


def test_uniform_is_uniform_and_a_function_of_key_and_row() -> None:
    numbers = uniform(derive_seed(3), np.arange(200), 500)
    assert numbers.shape == (200, 500)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 5000) ** 2 / 5000).sum() < 45  # chi-square, 19 degrees of freedom: p = 0.0007
    assert abs(np.corrcoef(numbers[0], numbers[1])[0, 1]) < 0.2
    assert np.array_equal(numbers[[7, 3]], uniform(derive_seed(3), np.array([7, 3]), 500))
    assert not np.array_equal(numbers, uniform(derive_seed(4), np.arange(200), 500))


def test_mix_is_injective() -> None:
    assert len(np.unique(mix(np.arange(100_000, dtype=np.uint64)))) == 100_000


def test_seeds_are_derived_from_words_and_their_kinds() -> None:
    seeds = {
        derive_seed(0),
        derive_seed(1),
        derive_seed(0, "a", "b"),
        derive_seed(0, "ab"),
        derive_seed(0, 1),
    }
    assert len(seeds | {derive_seed(0, "1"), derive_seed(0, "a,b")}) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(np.int64(5), np.int64(2)) == derive_seed(5, 2)  # pyright: ignore[reportArgumentType]
