"""Low rank: the mathematics against closed forms in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck.models.changes import low_rank
from limbeck.models.changes.factorise import rank_of_energy, rank_of_share


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(rows: int = 40, width: int = 9, seed: int = 1) -> Tensor:
    """Columns: inputs of very unequal sizes, not centred."""
    return torch.logspace(-2, 1, width, dtype=torch.float64)[:, None] * (drawn(width, rows, seed=seed) + 0.5)


def test_no_matrix_of_the_rank_is_nearer() -> None:
    """The error is that of Eckart and Young, and the factors are balanced."""
    weight = drawn(12, 9)
    values = torch.linalg.svdvals(weight)
    for rank in (1, 4, 8):
        up, down = low_rank(weight, rank)
        assert up.shape == (12, rank) and down.shape == (rank, 9) and up.dtype == torch.float64
        torch.testing.assert_close((weight - up @ down).norm(), values[rank:].square().sum().sqrt(), rtol=1e-12, atol=0)
        expected = torch.diag(values[:rank])
        torch.testing.assert_close(up.mT @ up, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(down @ down.mT, expected, rtol=0, atol=1e-12)
        assert all(column[column.abs().argmax()] > 0 for column in up.mT)


def test_what_it_makes_of_inputs_is_kept_best() -> None:
    """||(W - AB) X|| is the tail of the singular values of W S; the weights alone do worse, and so does a gradient's search."""
    weight, X = drawn(12, 9), inputs()
    values = torch.linalg.svdvals(weight @ torch.linalg.cholesky(X @ X.mT))
    for rank in (1, 4, 8):
        up, down = low_rank(weight, rank, X @ X.mT)
        error = ((weight - up @ down) @ X).norm()
        torch.testing.assert_close(error, values[rank:].square().sum().sqrt(), rtol=1e-10, atol=0)
        plain = low_rank(weight, rank)
        assert error < ((weight - plain[0] @ plain[1]) @ X).norm() * 0.99
        gradients = [it.requires_grad_() for it in (up, down)]
        ((weight - up @ down) @ X).square().sum().backward()
        assert all(it.grad is not None and it.grad.abs().max() < 1e-9 for it in gradients), "a stationary point"


@pytest.mark.parametrize("seen", [None, inputs()])
@pytest.mark.parametrize("shape", [(12, 9), (5, 9)])
def test_full_rank_is_the_matrix(seen: Tensor | None, shape: tuple[int, int]) -> None:
    weight = drawn(*shape)
    up, down = low_rank(weight, min(shape), None if seen is None else seen @ seen.mT)
    torch.testing.assert_close(up @ down, weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_too_few_inputs_still_make_finite_factors(rows: int) -> None:
    """Moments of 4 inputs in 9 dimensions are singular; what is seen of the matrix is kept, at a rank that is enough for it."""
    weight, X = drawn(12, 9), inputs(max(rows, 1))[:, :rows]
    up, down = low_rank(weight, 5, X @ X.mT)
    assert up.isfinite().all() and down.isfinite().all()
    if rows:
        assert ((weight - up @ down) @ X).norm() < 2e-3 * (weight @ X).norm()


def test_moments_that_are_not_positive_definite_are_made_so() -> None:
    """With G + (1e-6 mean(e) - e_min) I for G the error is the tail again."""
    weight, X = drawn(12, 9), inputs(4)
    G = X @ X.mT - 1e-3 * torch.eye(9, dtype=torch.float64)  # as if rounded: its least eigenvalues are below 0
    e = torch.linalg.eigvalsh(G)
    mended = G + (1e-6 * e.mean() - e[0]) * torch.eye(9, dtype=torch.float64)
    up, down = low_rank(weight, 3, G)
    root = torch.linalg.cholesky(mended)
    tail = torch.linalg.svdvals(weight @ root)[3:].square().sum().sqrt()
    torch.testing.assert_close(((weight - up @ down) @ root).norm(), tail, rtol=1e-8, atol=0)


def test_dtype_and_bits_are_the_same_every_time() -> None:
    weight = drawn(12, 9).float()
    one, other = low_rank(weight, 3), low_rank(weight.clone(), 3)
    assert one[0].dtype == torch.float32 and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    exact = low_rank(weight.double(), 3)
    assert all(torch.equal(a, b.float()) for a, b in zip(one, exact, strict=True)), "computed in fp64"
    turned = low_rank(-weight, 3)
    assert torch.equal(turned[0], one[0]) and torch.equal(turned[1], -one[1]), (
        "the sign of up does not hang on the SVD's"
    )


@pytest.mark.parametrize("rank", [0, 10])
def test_ranks_that_are_none(rank: int) -> None:
    with pytest.raises(ValueError, match=f"a matrix of 12 x 9 has no rank {rank}"):
        low_rank(drawn(12, 9), rank)
    with pytest.raises(ValueError, match="moments of 9 inputs are square"):
        low_rank(drawn(12, 9), 2, drawn(12, 12))


def test_ranks() -> None:
    """The share is that which is kept; energies are of squares."""
    assert [rank_of_share(30522, 768, it) for it in (0.1, 0.5)] == [74, 374]
    assert rank_of_share(2, 768, 0.4) == 0
    values = torch.tensor([3.0, 2.0, 1.0])  # squares 9, 4, 1 of 14
    assert [rank_of_energy(values, it) for it in (0.5, 9 / 14, 0.65, 13 / 14 + 1e-9, 0.999)] == [1, 1, 2, 3, 3]
    assert rank_of_energy(torch.zeros(3), 0.9) == 1
