"""Schedules against values worked out by hand."""

from __future__ import annotations

import pytest

from limbeck.distil.schedules import constant, learning_rate, ramp


def test_constant() -> None:
    assert [constant(0.5)(step) for step in (0, 7, 10**9)] == [0.5] * 3


def test_ramp() -> None:
    assert [ramp(1.0, 3.0, 4)(step) for step in (0, 1, 2, 4, 99)] == [1.0, 1.5, 2.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_learning_rate(shape: str, expected: list[float]) -> None:
    rate = learning_rate(1.0, steps=6, warmup=2, shape=shape)
    assert [rate(step) for step in range(6)] == pytest.approx(expected, abs=1e-6)
    if shape != "constant":
        assert rate(6) == rate(7) == pytest.approx(0.0, abs=1e-12)


def test_without_warmup_the_first_update_has_the_peak() -> None:
    assert learning_rate(0.1, steps=1, warmup=0, shape="linear")(0) == 0.1


def test_a_warmup_longer_than_the_run_only_rises() -> None:
    rate = learning_rate(1.0, steps=2, warmup=10, shape="cosine")
    assert [rate(0), rate(1)] == pytest.approx([0.1, 0.2])
