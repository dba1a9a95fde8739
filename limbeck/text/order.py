"""Random numbers and orders as pure functions of (seed, purpose), found without drawing any earlier ones."""

from __future__ import annotations

from math import isqrt

import numpy as np

from limbeck.system.seeds import derive_seed

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, the stride of SplitMix64
ROUNDS = 8


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a bijection of uint64 that scatters bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(key: int, rows: np.ndarray, width: int) -> np.ndarray:
    """Numbers in [0, 1): row i of the result is a function of (key, rows[i]) alone.

    SplitMix64 read at a counter: number j of row r is output `r * width + j` of the generator begun at `key`.

    Args:
        key: from `derive_seed`.
        rows: non-negative integers [n].
        width: numbers per row.

    Returns:
        float64 [n, width].
    """
    counter = rows.astype(np.uint64)[:, None] * np.uint64(width) + np.arange(width, dtype=np.uint64)
    return (mix(counter * GOLDEN + np.uint64(key)) >> np.uint64(11)) * 2.0**-53


def permute(positions: np.ndarray, n: int, key: int) -> np.ndarray:
    """Where a keyed permutation of range(n) sends each position, in O(1) memory and time per position.

    A Feistel network over pairs (left, right) with left < a and right < b, where a * b is n or a little more;
    a value that lands on n or above is sent on until it lands below (Black and Rogaway, 2002).

    Args:
        positions: integers in range(n), any shape.
        n: size of the range, at least 1.
        key: from `derive_seed`.

    Returns:
        int64, the shape of `positions`.
    """
    a = isqrt(n - 1) + 1
    b = -(-n // a)
    keys = mix(np.uint64(key) + GOLDEN * np.arange(1, ROUNDS + 1, dtype=np.uint64))
    sizes = (np.uint64(a), np.uint64(b))

    def network(x: np.ndarray) -> np.ndarray:
        left, right = np.divmod(x, sizes[1])
        for even, odd in keys.reshape(-1, 2):
            left = (left + mix(right ^ even)) % sizes[0]
            right = (right + mix(left ^ odd)) % sizes[1]
        return left * sizes[1] + right

    x = network(positions.astype(np.uint64))
    while (outside := x >= n).any():
        x[outside] = network(x[outside])
    return x.astype(np.int64)


def block_indices(seed: int, step: int, batch_size: int, n_blocks: int) -> np.ndarray:
    """The blocks of batch `step`: every block once per epoch, in an order of its own for every (seed, epoch).

    Args:
        seed: of the data order.
        step: number of the batch, from 0.
        batch_size: rows of the whole batch, over all micro-batches and processes.
        n_blocks: blocks in the corpus.

    Returns:
        int64 [batch_size].

    >>> sorted(block_indices(0, 0, 2, 4).tolist() + block_indices(0, 1, 2, 4).tolist())
    [0, 1, 2, 3]
    """
    epochs, places = np.divmod(step * batch_size + np.arange(batch_size, dtype=np.int64), n_blocks)
    indices = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        rows = epochs == epoch
        indices[rows] = permute(places[rows], n_blocks, derive_seed(seed, "order", int(epoch)))
    return indices
