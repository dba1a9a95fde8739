"""Values that are known without a computer, and what tells one loss from another. The family test is in tests/parity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.losses import (
    attention_scores_mse,
    attention_transfer,
    cka,
    cosine,
    cross_entropy,
    decoupled_kl,
    forward_kl,
    jensen_shannon,
    mse,
    patient,
    pearson,
    relation_kl,
    reverse_kl,
    rkd_angle,
    rkd_distance,
    similarity,
    skew_forward_kl,
    skew_reverse_kl,
    total_variation,
    universal_logit,
)
from limbeck.losses.relation import log_mean_exponential

FAR = torch.tensor([[0.0, -1e4]], dtype=torch.float64), torch.tensor([[-1e4, 0.0]], dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slope(loss: Callable[..., Tensor], student: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
    student = student.clone().requires_grad_()
    value = loss(student=student, **given)
    value.sum().backward()
    assert student.grad is not None
    return value.detach(), student.grad


def test_the_two_directions() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
    q = torch.tensor([[0.9, 0.05, 0.05]], dtype=torch.float64)
    there, back = ((a * (a / b).log()).sum().item() for a, b in ((p, q), (q, p)))
    assert abs(there - back) > 0.1, "this pair tells them apart"
    given = {"student": q.log(), "teacher": p.log() + 3.0}  # logits are known up to a constant
    assert forward_kl(**given).item() == pytest.approx(there, abs=1e-14)
    assert reverse_kl(**given).item() == pytest.approx(back, abs=1e-14)


@pytest.mark.parametrize(
    ("loss", "given", "bound"),
    [
        (jensen_shannon, {}, math.log(2)),
        (jensen_shannon, {"beta": 0.25}, -0.25 * math.log(0.25) - 0.75 * math.log(0.75)),
        (total_variation, {}, 1.0),
        (universal_logit, {}, 0.0),
        (skew_forward_kl, {}, math.log(10)),
        (skew_reverse_kl, {}, math.log(10)),
    ],
)
def test_predictions_that_share_nothing(loss: Callable[..., Tensor], given: dict[str, float], bound: float) -> None:
    assert loss(student=FAR[0], teacher=FAR[1], **given).item() == pytest.approx(bound, abs=1e-12)


def test_the_jump_of_jensen_shannon() -> None:
    """Near its ends it is beta times the KL; at its ends it is the KL (as in GKD)."""
    student, teacher = random(4, 7), random(4, 7, seed=1)
    forward, backward = (kl(student=student, teacher=teacher) for kl in (forward_kl, reverse_kl))
    torch.testing.assert_close(jensen_shannon(student=student, teacher=teacher, beta=0.0), forward)
    torch.testing.assert_close(jensen_shannon(student=student, teacher=teacher, beta=1.0), backward)
    near = jensen_shannon(student=student, teacher=teacher, beta=1e-6)
    torch.testing.assert_close(near / 1e-6, forward, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("loss", [forward_kl, reverse_kl, jensen_shannon, total_variation])
def test_t_squared_in_value_and_gradient(loss: Callable[..., Tensor], temperature: float) -> None:
    student, teacher = random(3, 7), random(3, 7, seed=1)
    value, gradient = slope(loss, student, teacher=teacher, temperature=temperature)
    plain, plain_gradient = slope(loss, student / temperature, teacher=teacher / temperature)
    torch.testing.assert_close(value, temperature**2 * plain, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, temperature * plain_gradient, rtol=1e-12, atol=1e-14)  # T^2 times dz/T


def test_the_gradient_hardly_depends_on_a_high_temperature() -> None:
    warm, hot = (
        slope(forward_kl, random(3, 7), teacher=random(3, 7, seed=1), temperature=t)[1].norm() for t in (50.0, 500.0)
    )
    assert (warm / hot - 1).abs() < 0.05


def test_decoupled_kl_with_the_weights_of_forward_kl_is_forward_kl() -> None:
    student, teacher, labels = random(1, 5), random(1, 5, seed=1), torch.tensor([2])
    beta = 1 - teacher.softmax(-1)[0, 2].item()
    value = decoupled_kl(student=student, teacher=teacher, labels=labels, beta=beta)
    torch.testing.assert_close(value, forward_kl(student=student, teacher=teacher))


def test_cross_entropy_ignores_what_has_no_label() -> None:
    student, labels = random(4, 7), torch.tensor([1, -100, 3, -100])
    value, gradient = slope(cross_entropy, student, labels=labels)
    assert (value[1::2] == 0).all() and (value[::2] > 0).all()
    assert (gradient[1::2] == 0).all() and (gradient[::2].abs().sum(-1) > 0).all()


def test_pearson_is_blind_to_scale_and_shift_of_probabilities() -> None:
    """Log-probabilities of an affine image of the teacher's probabilities: all correlations are 1."""
    p = random(6, 5).softmax(-1)
    mixed = 0.3 * p + 0.7 / 5
    assert pearson(student=mixed.log(), teacher=p.log()).abs() < 1e-12


def test_mse_and_cosine() -> None:
    student, teacher = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 8.0]])
    assert mse(student=student, teacher=teacher).item() == (9 + 16) / 2
    assert cosine(student=student, teacher=teacher).item() == pytest.approx(1 - 0.8)


def test_patient_reads_the_first_and_the_last_kept_token() -> None:
    student, teacher = random(2, 5, 4), random(2, 5, 4, seed=1)
    mask = torch.tensor([[True, True, True, False, False], [False, True, True, True, True]])
    for position, places in (("first", (0, 1)), ("last", (2, 4))):
        mine, theirs = (torch.stack([x[row, at] for row, at in enumerate(places)]) for x in (student, teacher))
        expected = patient(student=mine, teacher=theirs)
        torch.testing.assert_close(patient(student=student, teacher=teacher, mask=mask, position=position), expected)


@pytest.mark.parametrize("loss", [attention_transfer, similarity, rkd_distance, rkd_angle, cka])
def test_relations_are_blind_to_scale(loss: Callable[..., Tensor]) -> None:
    x = random(3, 4, 5)
    assert loss(student=x, teacher=7 * x).abs().max() < 1e-12
    assert loss(student=x, teacher=random(3, 4, 5, seed=1)).abs().max() > 1e-4


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle, cka, similarity])
def test_relations_are_blind_to_rotation(loss: Callable[..., Tensor]) -> None:
    x, rotation = random(6, 5), torch.linalg.qr(random(5, 5, seed=1)).Q
    assert loss(student=x @ rotation, teacher=x).abs() < 1e-12


def test_distances_survive_a_common_offset() -> None:
    """In fp32 the usual formula loses 5 % of the distances at an offset of 1,000."""
    x, teacher = random(8, 5).float(), random(8, 5, seed=1).float()
    plain, offset = (rkd_distance(student=x + at, teacher=teacher) for at in (0.0, 1000.0))
    torch.testing.assert_close(plain, offset, rtol=1e-3, atol=1e-6)


def test_relation_heads_are_cut_from_all_heads_joined() -> None:
    """The models' own head counts do not matter, only the joined vectors."""
    joined, teacher = random(2, 6, 12), random(2, 6, 24, seed=1)
    heads = joined.unflatten(-1, (3, 4)).transpose(1, 2)
    expected = relation_kl(student=joined, teacher=teacher, relation_heads=6)
    torch.testing.assert_close(relation_kl(student=heads, teacher=teacher, relation_heads=6), expected)


def test_without_padding_the_mean_is_tinyberts() -> None:
    """TinyBERT adds up `MSELoss()(student_att, teacher_att)` over its layers, each a mean over B h T T."""
    student, teacher = random(2, 3, 5, 5), random(2, 3, 5, 5, seed=1)
    plain = torch.nn.functional.mse_loss(student, teacher)
    for mask in (None, torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 1, 5, 5, dtype=torch.bool)):
        value = attention_scores_mse(student=student, teacher=teacher, mask=mask).mean()
        torch.testing.assert_close(value, plain, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("width", "temperature"), [(16, 0.5), (128, 0.07)])
def test_the_partition_of_random_directions(width: int, temperature: float) -> None:
    """E exp(u / T) by the density of the cosine, proportional to (1 - u^2)^((D - 3) / 2), added up on a fine grid."""
    u = torch.linspace(-1, 1, 200_001, dtype=torch.float64)[1:-1]
    density = (1 - u.square()).log() * (width - 3) / 2
    expected = torch.logsumexp(density + u / temperature, 0) - torch.logsumexp(density, 0)
    assert log_mean_exponential(width, temperature) == pytest.approx(expected.item(), abs=1e-6)
