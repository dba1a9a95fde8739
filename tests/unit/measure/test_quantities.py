"""Alignment, rank and calibration against definitions by hand: numpy in fp64, Gram matrices, loops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.measure.quantities import CONFIDENCES, Layer, calibration, cka_grid, effective_rank, linear_cka


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram_cka(x: np.ndarray, y: np.ndarray) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), tr(K H L H) with n x n matrices (Kornblith et al., eq. 3)."""
    n = len(x)
    h = np.eye(n) - np.ones((n, n)) / n
    hsic = lambda k, other: np.trace(k @ h @ other @ h)  # noqa: E731
    k, other = x @ x.T, y @ y.T
    return float(hsic(k, other) / math.sqrt(hsic(k, k) * hsic(other, other)))


def rank_by_svd(x: np.ndarray) -> float:
    s = np.linalg.svd(x - x.mean(0), compute_uv=False)
    p = s[s > 1e-12 * s[0]] / s.sum()
    return math.exp(-sum(each * math.log(each) for each in p))


def ece_by_loop(confidence: Sequence[float], right: Sequence[bool]) -> float:
    total = 0.0
    for m in range(CONFIDENCES):
        mine = [(c, r) for c, r in zip(confidence, right, strict=True) if m / 15 < c <= (m + 1) / 15]
        if mine:
            gap = sum(r for _, r in mine) / len(mine) - sum(c for c, _ in mine) / len(mine)
            total += len(mine) / len(confidence) * abs(gap)
    return total


# alignment and rank


@pytest.mark.parametrize("shape", [(40, 6, 9), (12, 6, 9), (5, 30, 40), (7, 3, 50)])
def test_cka_is_the_ratio_of_gram_matrices(shape: tuple[int, int, int]) -> None:
    """With more tokens than dimensions and with fewer, where the other way of computing it is taken."""
    n, h, other = shape
    x, y = draw(n, h) + 3, draw(n, other, seed=1) - 1
    y[:, 0] += x[:, 0]
    assert linear_cka(x, y) == pytest.approx(gram_cka(x.numpy(), y.numpy()), rel=1e-10)


def test_cka_is_blind_to_rotation_scale_and_shift_and_not_to_stretching() -> None:
    x, y = draw(50, 8), draw(50, 5, seed=1)
    y[:, :3] += x[:, :3]
    turned = 7 * x @ torch.linalg.qr(draw(8, 8, seed=2))[0] + 11
    assert linear_cka(turned, y) == pytest.approx(linear_cka(x, y), rel=1e-10)
    assert linear_cka(x, turned) == pytest.approx(1.0, abs=1e-12) and linear_cka(x, turned) <= 1
    assert linear_cka(x * torch.arange(1, 9), x) < 0.95
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x), rel=1e-12) and 0.05 < linear_cka(x, y) < 0.95


@pytest.mark.parametrize("few", [True, False])
def test_a_grid_is_every_pair_of_layers(few: bool) -> None:
    n = 6 if few else 40
    mine = [draw(n, 9 + seed, seed=seed) for seed in range(3)]
    theirs = [draw(n, 14, seed=seed) + mine[0][:, :1] for seed in range(3, 7)]
    grid = cka_grid([Layer.of(x) for x in mine], [Layer.of(y) for y in theirs])
    expected = [[gram_cka(x.numpy(), y.numpy()) for y in theirs] for x in mine]
    np.testing.assert_allclose(grid, expected, rtol=1e-10)


def test_many_tokens_need_no_matrix_of_all_pairs() -> None:
    """Of 100,000 tokens it would take 80 GB; and rounding lifts no alignment above 1."""
    x = draw(100_000, 3)
    assert linear_cka(x, x @ draw(3, 3, seed=1)) == pytest.approx(
        linear_cka(x[:50_000], x[:50_000] @ draw(3, 3, seed=1)), 0.1
    )
    assert all(0.999999 < linear_cka(each, 3 * each) <= 1 for each in (draw(20, 4, seed=seed) for seed in range(30)))


def test_effective_rank_of_known_matrices() -> None:
    both = lambda half: torch.cat([half, -half])  # of mean 0  # noqa: E731
    assert effective_rank(both(torch.eye(8))) == pytest.approx(8, rel=1e-12)
    assert effective_rank(both(torch.outer(draw(9), draw(8, seed=1)))) == pytest.approx(1, rel=1e-12)
    assert effective_rank(both(torch.diag(torch.tensor([3.0, 1.0])))) == pytest.approx(4 / 27**0.25, rel=1e-6)
    assert effective_rank(both(torch.eye(8)) + 100) == pytest.approx(8, rel=1e-12), "centred"


@pytest.mark.parametrize("shape", [(30, 8), (6, 20)])
def test_effective_rank_is_the_entropy_of_the_singular_values(shape: tuple[int, int]) -> None:
    x = draw(*shape) * torch.linspace(0.01, 2, shape[1]) + 5
    assert effective_rank(x) == pytest.approx(rank_by_svd(x.numpy()), rel=1e-9)
    turned = 3 * x @ torch.linalg.qr(draw(shape[1], shape[1], seed=2))[0]
    assert effective_rank(turned) == pytest.approx(effective_rank(x), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_states_that_do_not_vary_have_no_rank_and_no_alignment(dtype: torch.dtype) -> None:
    x = draw(20, 6)
    for still in (torch.zeros(20, 6), draw(1, 6).expand(20, 6) / 3, draw(1, 6).expand(1, 6)):
        still = still.to(dtype)
        assert effective_rank(still) == 0 and linear_cka(still, x[: len(still)]) == 0
    ulps = draw(1, 6).float().expand(20, 6).clone()
    ulps[::2] *= 1 + torch.finfo(torch.float32).eps
    assert effective_rank(ulps) == 0, "rounding is no direction"
    assert effective_rank(torch.empty(0, 6)) == 0
    assert math.isnan(effective_rank(x * math.nan)) and math.isnan(linear_cka(x, x * math.inf))


# calibration


def test_calibration_by_loops() -> None:
    confidence = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    right = np.arange(200) % 3 == 0
    table = calibration(confidence, right.astype(float))
    assert table is not None and table["ece"] == pytest.approx(
        ece_by_loop(confidence.tolist(), right.tolist()), rel=1e-12
    )
    assert sum(table["count"]) == 200 and len(table["count"]) == 15
    for m in range(15):
        mine = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        assert table["count"][m] == mine.sum()
        assert table["accuracy"][m] == pytest.approx(right[mine].mean())
        assert table["confidence"][m] == pytest.approx(confidence[mine].mean())


def test_calibration_at_its_ends() -> None:
    sure = calibration(np.ones(4), np.ones(4))
    assert sure is not None and sure["ece"] == 0 and sure["count"][14] == 4 and sure["accuracy"][0] is None
    wrong = calibration(np.ones(4), np.zeros(4))
    assert wrong is not None and wrong["ece"] == 1
    assert calibration(np.empty(0), np.empty(0)) is None
    assert calibration(np.array([0.5, math.nan]), np.ones(2)) is None
