"""Edges that were found by hand: rounding, underflow, near duplicates, what carries its mask within, shapes that do not match."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck.losses import LOSSES, attention_kl, attention_scores_mse, patient, pearson, rkd_distance
from limbeck.losses.sparse import TopK

INF = float("inf")


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("name", ["topk_kl", "topk_reverse_kl", "topk_jensen_shannon"])
def test_a_confident_list_in_fp32_is_no_difference_to_itself(name: str, temperature: float) -> None:
    """One less a sum of 1 is rounding; it must not be softened into a tail that the student lacks."""
    peaked = torch.full((1, 100), -25.0)
    peaked[0, 0] = 0
    for logits in (peaked, random(64, 2000, scale=10.0).float()):
        student = logits.clone().requires_grad_()
        indices, logprobs, *_ = TopK.of(logits, 20)
        value = LOSSES[name](student=student, teacher=(indices, logprobs), temperature=temperature)
        value.sum().backward()
        assert value.abs().max() < 1e-5 * temperature**2
        assert student.grad is not None and student.grad.abs().max() < 1e-3


def test_a_tail_that_the_student_has_and_the_teacher_lacks_is_punished() -> None:
    peaked = torch.full((1, 100), -25.0)
    peaked[0, 0] = 0
    indices, logprobs, *_ = TopK.of(peaked, 3)
    flat = torch.zeros(1, 100)
    listed, dense = (
        LOSSES["topk_reverse_kl"](student=flat, teacher=teacher, k=3) for teacher in ((indices, logprobs), peaked)
    )
    assert listed > 10 and dense > 10


def test_pearson_of_columns_that_almost_nothing_falls_on() -> None:
    """A column of probabilities of 1e-26 varies like any other, though their squares are 0 in fp32."""
    teacher = torch.zeros(4, 6)
    teacher[:, 0] = torch.tensor([0.0, 1, 2, 3])
    teacher[:, 5] = torch.tensor([-60.0, -55, -58, -61])
    assert pearson(student=teacher, teacher=teacher).abs() < 1e-5
    wide = random(40, 300, seed=1, scale=20.0), random(40, 300, seed=2, scale=20.0)
    single = pearson(student=wide[0].float(), teacher=wide[1].float())
    torch.testing.assert_close(single.double(), pearson(student=wide[0], teacher=wide[1]), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("apart", [1e-2, 1e-3, 1e-4])
def test_distances_of_near_duplicates_keep_their_gradient_in_fp32(apart: float) -> None:
    base = random(8, 16, seed=3, scale=6.0)
    base[4:] = base[:4] + random(4, 16, seed=4) * apart
    base, teacher = base.float().double(), random(8, 16, seed=5)
    found = []
    for dtype in (torch.float32, torch.float64):
        student = base.to(dtype).requires_grad_()
        rkd_distance(student=student, teacher=teacher.to(dtype)).backward()
        assert student.grad is not None
        found.append(student.grad.double())
    assert (found[0] - found[1]).norm() < 1e-2 * found[1].norm()


@pytest.mark.parametrize("loss", [attention_kl, attention_scores_mse])
def test_scores_that_carry_their_mask_as_minus_infinity(loss: object) -> None:
    """A causal map with -inf above the diagonal gives what the mask gives, and a gradient without NaN."""
    assert callable(loss)
    student, teacher = random(2, 3, 5, 5), random(2, 3, 5, 5, seed=1)
    seen = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 1, 5, 5)
    mine = student.masked_fill(~seen, -INF).requires_grad_()
    value = loss(student=mine, teacher=teacher.masked_fill(~seen, -INF))
    torch.testing.assert_close(value, loss(student=student, teacher=teacher, mask=seen))
    value.sum().backward()
    assert mine.grad is not None and mine.grad.isfinite().all()


@pytest.mark.parametrize(
    "name", ["forward_kl", "reverse_kl", "jensen_shannon", "symmetric_kl", "total_variation", "logit_mse"]
)
def test_a_row_without_any_column_is_zero(name: str) -> None:
    student, teacher = random(3, 7), random(3, 7, seed=1)
    student[1] = -INF
    student.requires_grad_()
    value = LOSSES[name](student=student, teacher=teacher)
    value.sum().backward()
    assert value[1] == 0 and (value[[0, 2]] > 0).all()
    assert student.grad is not None and student.grad.isfinite().all()


@pytest.mark.parametrize("name", ["forward_kl", "skew_reverse_kl", "logit_mse", "mse", "cosine", "activation_boundary"])
@pytest.mark.parametrize("shape", [(2, 3, 1), (1, 3, 5), (3, 5)])
def test_shapes_are_not_broadcast(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        LOSSES[name](student=random(2, 3, 5), teacher=random(*shape))


@pytest.mark.parametrize(
    "mask", [torch.ones(3, dtype=torch.bool), torch.ones(2, 3), torch.ones(3, 2, dtype=torch.bool)]
)
def test_a_mask_has_the_leading_axes(mask: Tensor) -> None:
    with pytest.raises(ValueError, match=r"the mask must be torch\.bool"):
        LOSSES["forward_kl"](student=random(2, 3, 5), teacher=random(2, 3, 5), mask=mask)


@pytest.mark.parametrize("logits", [0, 2, 7])
def test_a_label_has_one_score(logits: int) -> None:
    with pytest.raises(ValueError, match=f"takes one score for each label, not {logits} logits"):
        LOSSES["squared_error"](student=random(3, logits), labels=random(3))


def test_no_token_at_all() -> None:
    student = random(2, 0, 4).requires_grad_()
    value = patient(student=student, teacher=random(2, 0, 4))
    value.sum().backward()
    assert value.tolist() == [0, 0]
