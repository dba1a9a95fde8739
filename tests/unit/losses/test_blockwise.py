"""Losses some rows at a time: value and gradient are those of the plain call, whatever the loss, the precision and the block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.losses import LOSSES, forward_kl
from limbeck.losses import blockwise as module
from limbeck.losses.blockwise import blockwise
from limbeck.losses.facts import FACTS, facts_of
from limbeck.recipe.keys import LOSS_KEYS

V = 40
PER_TOKEN = sorted(name for name, it in LOSS_KEYS.items() if it.taps == ("logits",) and it.per == "token")


@pytest.fixture(autouse=True, params=[1, 3 * V, 7 * V + 5])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", request.param)


def given(dtype: torch.dtype = torch.float64, scale: float = 3.0) -> tuple[Tensor, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(11, V, generator=draw, dtype=torch.float64) * scale for _ in range(2))
    labels = torch.randint(0, V, (11,), generator=draw)
    labels[[2, 7]] = -100
    return student.to(dtype), {"teacher": teacher.to(dtype), "labels": labels}


def both(call: Callable[..., Tensor], student: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The values, and the gradient of their weighted sum."""
    leaf = student.clone().requires_grad_()
    values = call(leaf)
    (values * weights).sum().backward()
    assert leaf.grad is not None
    return values.detach(), leaf.grad


def compare(loss: Callable[..., Tensor], student: Tensor, others: dict[str, Any], near: float = 1e-12) -> None:
    each, same = torch.linspace(-1, 2, len(student), dtype=torch.float64), torch.full((len(student),), 0.3).double()
    for weights in (each, same):
        mine = both(lambda leaf: blockwise(loss, leaf, others), student, weights)
        plain = both(lambda leaf: loss(student=leaf, **others), student, weights)
        for found, wanted in zip(mine, plain, strict=True):
            assert found.dtype == wanted.dtype
            torch.testing.assert_close(found, wanted, rtol=near, atol=near)


@pytest.mark.parametrize("name", PER_TOKEN)
def test_every_loss_of_tokens(name: str) -> None:
    student, others = given()
    if name == "squared_error":
        student, others["labels"] = student[:, :1], others["labels"].double()
    needed = {key: others[key] for key in LOSS_KEYS[name].needs} | {"mask": None}
    compare(LOSSES[name], student, needed)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-11), (torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
def test_the_forward_kl_that_is_written_out(temperature: float, dtype: torch.dtype, near: float) -> None:
    """Also far from zero, where a difference of large logits is small."""
    student, others = given(dtype)
    kl = partial(forward_kl, temperature=temperature)
    for moved in (0.0, 50.0):
        there = {"teacher": others["teacher"] + moved, "mask": None}
        compare(kl, student - moved, there, near)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("offset", [0.0, 100.0, -1000.0])
def test_logits_that_differ_by_a_constant(temperature: float, offset: float) -> None:
    """32,000 columns in fp32 against fp64: a divergence of 0.005 to rounding, of value and gradient, wherever the logits lie."""
    draw = torch.Generator().manual_seed(1)
    base = torch.randn(3, 32_000, generator=draw) * 2
    student, teacher = base + torch.randn(base.shape, generator=draw) * 0.1 - offset, base + offset
    kl = partial(forward_kl, temperature=temperature)
    exact = both(lambda leaf: kl(student=leaf, teacher=teacher.double()), student.double(), torch.ones(3))
    found = both(lambda leaf: blockwise(kl, leaf, {"teacher": teacher}), student, torch.ones(3))
    assert exact[0].min() > 4e-3
    torch.testing.assert_close(found[0].double(), exact[0], rtol=0, atol=2e-6 * temperature**2)
    torch.testing.assert_close(found[1].double(), exact[1], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("rows", [1, 4, 12, 22])
def test_rows_that_do_not_belong_together_are_refused(rows: int) -> None:
    """Blocks of rows are cut from both sides: one row would be compared with all, and a row too many with nothing."""
    student, teacher = torch.randn(11, V, requires_grad=True), torch.randn(rows, V)
    with pytest.raises(ValueError, match="differ in shape"):
        blockwise(forward_kl, student, {"teacher": teacher, "mask": None})
    with pytest.raises(ValueError, match="differ in shape"):
        blockwise(forward_kl, student, {"teacher": torch.randn(11, 1), "mask": None})
    with pytest.raises(ValueError, match="temperature must be a number above 0"):
        blockwise(partial(forward_kl, temperature=0.0), student, {"teacher": torch.randn(11, V)})


def test_it_is_zero_at_equality() -> None:
    student = given(torch.float32, 10.0)[0]
    values, gradient = both(lambda leaf: blockwise(forward_kl, leaf, {"teacher": student}), student, torch.ones(11))
    assert not values.any() and not gradient.any()


def test_columns_that_are_dropped() -> None:
    """-inf on either side: the written-out loss hands the rows back to the plain one."""
    student, others = given()
    student[3, 4] = others["teacher"][5, 6] = others["teacher"][5, 7] = -torch.inf
    student[8] = -torch.inf
    compare(forward_kl, student, {"teacher": others["teacher"], "mask": None})


def test_nothing_is_kept_or_differentiated_where_nothing_is_asked() -> None:
    student, others = given()
    others.pop("labels")
    assert torch.equal(blockwise(forward_kl, student, others), forward_kl(student=student, teacher=others["teacher"]))
    held = student.clone(), others["teacher"].clone()
    both(lambda leaf: blockwise(forward_kl, leaf, others), student, torch.ones(11))
    assert torch.equal(held[0], student) and torch.equal(held[1], others["teacher"])


def test_facts_are_of_limbecks_losses_alone() -> None:
    """One's own that calls itself by a loss of limbeck is another: its slope is its own."""
    assert set(FACTS) <= set(LOSSES.values())

    @wraps(forward_kl)
    def twice(*, student: Tensor, teacher: Tensor) -> Tensor:
        return 2 * forward_kl(student=student, teacher=teacher)

    assert facts_of(forward_kl).by_hand and not facts_of(twice).by_hand
    student, others = given()
    compare(twice, student, {"teacher": others["teacher"]})
