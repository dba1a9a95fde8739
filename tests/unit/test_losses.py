"""The family test of the losses: every member, the same questions; then what is particular to each."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from limbeck import words
from limbeck.losses import LOSSES, attention_scores_mse, cosine, cross_entropy, forward_kl, mse

B, T, V, H, HEADS = 2, 5, 7, 6, 3
Inputs = dict[str, Tensor]
WITH_TEACHER = [name for name in LOSSES if name != "cross_entropy"]


def given(name: str, seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Inputs:
    draw = torch.Generator().manual_seed(seed)
    shape = {"mse": (B, T, H), "cosine": (B, T, H), "attention_scores_mse": (B, HEADS, T, T)}.get(name, (B, T, V))
    tensors = {"student": torch.randn(shape, generator=draw, dtype=torch.float64) * scale}
    if name == "cross_entropy":
        labels = torch.randint(0, V, (B, T), generator=draw)
        labels[0, 1] = labels[1, 3] = -100
        return {"student": tensors["student"].to(dtype), "labels": labels}
    tensors["teacher"] = torch.randn(shape, generator=draw, dtype=torch.float64) * scale
    return {key: tensor.to(dtype) for key, tensor in tensors.items()}


def slope(loss: Callable[..., Tensor], inputs: Inputs, **hyper: float) -> tuple[Tensor, Tensor]:
    student = inputs["student"].clone().requires_grad_()
    value = loss(**inputs | {"student": student}, **hyper)
    value.sum().backward()
    assert student.grad is not None
    return value.detach(), student.grad


def test_words_know_every_loss_and_its_hyper_parameters() -> None:
    assert set(words.LOSSES) == set(LOSSES)
    for name, loss in LOSSES.items():
        signature = inspect.signature(loss)
        assert all(p.kind is p.KEYWORD_ONLY for p in signature.parameters.values()), name
        hyper = set(signature.parameters) - {"student", "teacher", "labels", "mask"}
        assert hyper == set(words.LOSSES[name].parameters), name
        assert {"teacher", "labels"} & set(signature.parameters) == set(words.LOSSES[name].needs), name


@pytest.mark.parametrize("name", LOSSES)
def test_one_value_a_token(name: str) -> None:
    value = LOSSES[name](**given(name))
    assert value.shape == (B, T) and value.dtype == torch.float64 and (value >= 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name: str) -> None:
    inputs = given(name)
    student = inputs.pop("student").requires_grad_()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](student=x, **inputs), (student,))


@pytest.mark.parametrize("mask", ["keys", "pairs"])
def test_gradcheck_of_masked_scores(mask: str) -> None:
    inputs = given("attention_scores_mse")
    seen = keys() if mask == "keys" else pairs()
    student = inputs["student"].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: attention_scores_mse(student=x, teacher=inputs["teacher"], mask=seen), (student,)
    )


def test_gradcheck_at_a_temperature() -> None:
    inputs = given("forward_kl")
    student = inputs["student"].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: forward_kl(student=x, teacher=inputs["teacher"], temperature=3.0), (student,)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", LOSSES)
def test_narrow_inputs_are_computed_wide(name: str, dtype: torch.dtype) -> None:
    """Against fp64 on the *same* rounded numbers: what is left is fp32's rounding, not bf16's."""
    narrow = given(name, dtype=dtype, scale=4.0)
    wide = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in narrow.items()}
    value, expected = LOSSES[name](**narrow), LOSSES[name](**wide)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=2e-5, atol=1e-5)
    assert slope(LOSSES[name], narrow)[1].dtype == dtype


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_far_out(name: str, dtype: torch.dtype) -> None:
    for inputs in (given(name, dtype=dtype, scale=1e4), given(name, dtype=dtype, scale=0.0)):
        value, gradient = slope(LOSSES[name], inputs)
        assert value.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_zero_at_equality(name: str) -> None:
    same = given(name)["teacher"]
    value, gradient = slope(LOSSES[name], {"student": same, "teacher": same.clone()})
    if name == "cosine":
        torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-15)
    else:
        assert (value == 0).all()
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_the_teacher_is_a_constant(name: str) -> None:
    inputs = given(name)
    for tensor in inputs.values():
        tensor.requires_grad_()
    LOSSES[name](**inputs).sum().backward()
    assert inputs["teacher"].grad is None and inputs["student"].grad is not None


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_the_student_alone_learns_even_from_itself(name: str) -> None:
    """A tensor that stands on both sides gets the student's gradient only: 0 at equality, not a sum of two."""
    both = given(name)["student"].requires_grad_()
    LOSSES[name](student=both * 2, teacher=both).sum().backward()
    expected = slope(LOSSES[name], {"student": both.detach() * 2, "teacher": both.detach()})[1] * 2
    torch.testing.assert_close(both.grad, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["forward_kl", "cross_entropy"])
def test_logit_losses_serve_classes_and_nothing_at_all(name: str) -> None:
    inputs = given(name)
    rows = {key: tensor[0] for key, tensor in inputs.items()}  # [T, V], as classes [B, C]
    torch.testing.assert_close(LOSSES[name](**rows), LOSSES[name](**inputs)[0], rtol=0, atol=1e-15)
    none = {key: tensor[:0] for key, tensor in rows.items()}
    assert LOSSES[name](**none).shape == (0,)


# each for itself


def test_forward_kl_known_value() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64)
    q = torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64)
    value = forward_kl(student=q.log(), teacher=p.log() + 3.0)  # logits are known up to a constant
    assert value.item() == pytest.approx(0.25 * math.log(2), abs=1e-15)
    assert forward_kl(student=p.log(), teacher=q.log()).item() == pytest.approx(0.25 * math.log(2), abs=1e-15)
    skewed = torch.tensor([[0.9, 0.05, 0.05]], dtype=torch.float64)
    forward = (p * (p / skewed).log()).sum().item()
    backward = (skewed * (skewed / p).log()).sum().item()
    assert abs(forward - backward) > 0.1, "this pair tells the two directions apart"
    assert forward_kl(student=skewed.log(), teacher=p.log()).item() == pytest.approx(forward, abs=1e-14)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 4.0])
def test_forward_kl_has_t_squared_in_value_and_gradient(temperature: float) -> None:
    inputs = given("forward_kl")
    value, gradient = slope(forward_kl, inputs, temperature=temperature)
    softened = {key: tensor / temperature for key, tensor in inputs.items()}
    plain, plain_gradient = slope(forward_kl, softened)
    torch.testing.assert_close(value, temperature**2 * plain, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, temperature * plain_gradient, rtol=1e-12, atol=1e-14)  # T^2 times dz/T


def test_forward_kl_gradient_hardly_depends_on_a_high_temperature() -> None:
    inputs = given("forward_kl")
    warm, hot = (slope(forward_kl, inputs, temperature=t)[1].norm() for t in (50.0, 500.0))
    assert (warm / hot - 1).abs() < 0.05


def test_cross_entropy_ignores_what_has_no_label() -> None:
    inputs = given("cross_entropy")
    value, gradient = slope(cross_entropy, inputs)
    ignored = inputs["labels"] == -100
    assert (value[ignored] == 0).all() and (value[~ignored] > 0).all()
    assert (gradient[ignored] == 0).all() and (gradient[~ignored].abs().sum(-1) > 0).all()
    garbage = inputs | {"student": torch.where(ignored[..., None], 1e30, inputs["student"])}
    torch.testing.assert_close(slope(cross_entropy, garbage)[0], value, rtol=0, atol=0)


def test_mse_and_cosine_known_values() -> None:
    student, teacher = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 8.0]])
    assert mse(student=student, teacher=teacher).item() == (9 + 16) / 2
    assert cosine(student=student, teacher=teacher).item() == pytest.approx(1 - 0.8)
    assert cosine(student=-7 * student, teacher=student).item() == pytest.approx(2.0)
    assert cosine(student=torch.zeros(1, 2), teacher=teacher).item() == 1.0


# masks of attention maps


def keys() -> Tensor:
    """[B, S]: the second row has two padded keys."""
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[1, 3:] = False
    return mask


def pairs() -> Tensor:
    """[B, 1, T, S]: causal, with padding in the second row and a query that sees nothing."""
    mask = torch.ones(T, T, dtype=torch.bool).tril().expand(B, 1, T, T) & keys()[:, None, None, :]
    mask = mask.clone()
    mask[1, 0, 4] = False
    return mask


@pytest.mark.parametrize("mask", ["keys", "pairs"])
@pytest.mark.parametrize("garbage", [1e4, -1e4, float("inf"), float("nan"), -3.4e38])
def test_garbage_behind_the_mask_changes_nothing(mask: str, garbage: float) -> None:
    inputs = given("attention_scores_mse")
    seen = keys() if mask == "keys" else pairs()
    hidden = ~(seen[:, None, None, :] if mask == "keys" else seen).expand(B, HEADS, T, T)
    clean = slope(attention_scores_mse, inputs | {"mask": seen})
    for side in ("student", "teacher"):
        dirty = inputs | {side: inputs[side].masked_fill(hidden, garbage), "mask": seen}
        for mine, theirs in zip(slope(attention_scores_mse, dirty), clean, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert (clean[1][hidden] == 0).all()


def test_a_query_that_sees_nothing_is_zero() -> None:
    value, gradient = slope(attention_scores_mse, given("attention_scores_mse") | {"mask": pairs()})
    assert value[1, 4] == 0 and (gradient[1, :, 4] == 0).all()
    assert (value[0] > 0).all()


def test_padding_mask_is_the_pair_mask_of_all_queries() -> None:
    inputs = given("attention_scores_mse")
    wide = keys()[:, None, None, :].expand(B, 1, T, T)
    one = attention_scores_mse(**inputs, mask=keys())
    torch.testing.assert_close(one, attention_scores_mse(**inputs, mask=wide), rtol=0, atol=0)
    full = torch.ones(B, T, dtype=torch.bool)
    torch.testing.assert_close(
        attention_scores_mse(**inputs, mask=full), attention_scores_mse(**inputs), rtol=1e-14, atol=1e-14
    )


def test_without_padding_the_mean_is_tinyberts() -> None:
    inputs = given("attention_scores_mse")
    plain = torch.nn.functional.mse_loss(inputs["student"], inputs["teacher"])
    for mask in (None, torch.ones(B, T, dtype=torch.bool), torch.ones(B, 1, T, T, dtype=torch.bool)):
        torch.testing.assert_close(attention_scores_mse(**inputs, mask=mask).mean(), plain, rtol=1e-13, atol=1e-13)
