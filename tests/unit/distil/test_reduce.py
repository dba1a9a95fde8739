"""The one place that masks and averages: parts must add up to the whole, exactly."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel import batch

from limbeck.distil.reduce import Counts, share_of_mean


def halves(whole: dict[str, torch.Tensor], at: int) -> list[dict[str, torch.Tensor]]:
    return [{k: v[:at] for k, v in whole.items()}, {k: v[at:] for k, v in whole.items()}]


def test_counts_are_those_of_the_tensors() -> None:
    whole = batch(rows=4)
    counts = Counts.of([whole])
    assert counts.tokens == whole["attention_mask"].sum() < whole["attention_mask"].numel()
    assert counts.selected == whole["select"].sum()
    assert counts.labels == (whole["labels"] != -100).sum()
    assert 0 < counts.labels < counts.selected < counts.tokens
    assert (counts.rows, counts.batches) == (4, 1)


def test_rows_and_batches_without_an_attended_token_do_not_count() -> None:
    empty, whole = batch(rows=4), batch(rows=4)
    whole["attention_mask"][1] = 0
    empty["attention_mask"][:] = 0
    counts = Counts.of([whole, empty])
    assert (counts.rows, counts.batches) == (3, 1)


@pytest.mark.parametrize("at", [0, 1, 3, 4])
def test_counts_of_parts_are_those_of_the_whole(at: int) -> None:
    whole = batch(rows=4)
    parts = Counts.of(halves(whole, at))
    assert replace(parts, batches=1, selecting=1) == Counts.of([whole])
    assert parts.batches == (1 if at in (0, 4) else 2)


def test_counts_of_nothing() -> None:
    assert Counts.of([]) == Counts(0, 0, 0)


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=30),
    kept=st.lists(st.booleans(), min_size=30, max_size=30),
    cut=st.integers(0, 30),
)
def test_parts_add_up_exactly(values: list[int], kept: list[bool], cut: int) -> None:
    """Dyadic values and a denominator that is a power of two: no rounding anywhere, so equality is exact."""
    x, mask = torch.tensor(values, dtype=torch.float64), torch.tensor(kept[: len(values)])
    count = 64
    parts = [share_of_mean(x[s], mask[s], count) for s in (slice(0, cut), slice(cut, None))]
    exact = sum((Fraction(v) for v, k in zip(values, kept, strict=False) if k), Fraction(0)) / count
    assert Fraction(sum(part.item() for part in parts)) == exact == Fraction(share_of_mean(x, mask, count).item())


def test_share_is_the_mean_when_it_is_all() -> None:
    x, mask = torch.randn(5, 7, dtype=torch.float64), torch.rand(5, 7) < 0.5
    torch.testing.assert_close(share_of_mean(x, mask, int(mask.sum())), x[mask].mean(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(share_of_mean(x, None, x.numel()), x.mean(), rtol=1e-12, atol=1e-12)


def test_garbage_behind_the_mask_reaches_neither_value_nor_gradient() -> None:
    x = torch.tensor([1.0, float("nan"), float("inf"), 5.0], requires_grad=True)
    value = share_of_mean(x, torch.tensor([True, False, False, True]), 4)
    value.backward()
    assert value.item() == 1.5
    assert x.grad is not None and x.grad.tolist() == [0.25, 0.0, 0.0, 0.25]


def test_an_empty_mask_is_zero_and_still_differentiable() -> None:
    x = torch.ones(3, requires_grad=True)
    value = share_of_mean(x, torch.zeros(3, dtype=torch.bool), 0)
    value.backward()
    assert value.item() == 0.0
    assert x.grad is not None and x.grad.tolist() == [0.0, 0.0, 0.0]
    assert share_of_mean(torch.ones(0), None, 0).item() == 0.0
