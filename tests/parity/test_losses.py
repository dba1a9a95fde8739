"""Every loss against a loop over plain Python numbers (fp64), written from the formula and from nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from limbeck.losses import attention_scores_mse, cosine, cross_entropy, forward_kl, mse

SIZES = [(1, 1, 2), (2, 5, 9), (3, 4, 33)]


def random(*shape: int, seed: int, scale: float = 3.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(z - top) for z in row]
    return [power / math.fsum(powers) for power in powers]


def close(value: Tensor, expected: list[list[float]]) -> None:
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("size", SIZES)
def test_forward_kl(size: tuple[int, int, int], temperature: float) -> None:
    student, teacher = random(*size, seed=1), random(*size, seed=2)

    def naive(s: list[float], t: list[float]) -> float:
        q, p = softmax([z / temperature for z in s]), softmax([z / temperature for z in t])
        return temperature**2 * math.fsum(p_i * math.log(p_i / q_i) for p_i, q_i in zip(p, q, strict=True))

    expected = [[naive(student[b, t].tolist(), teacher[b, t].tolist()) for t in range(size[1])] for b in range(size[0])]
    close(forward_kl(student=student, teacher=teacher, temperature=temperature), expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_forward_kl_gradient(temperature: float) -> None:
    """d/dz_s of T^2 KL is T (q - p)."""
    student, teacher = random(4, 11, seed=3).requires_grad_(), random(4, 11, seed=4)
    forward_kl(student=student, teacher=teacher, temperature=temperature).sum().backward()
    expected = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = softmax([z / temperature for z in s]), softmax([z / temperature for z in t])
        expected.append([temperature * (q_i - p_i) for p_i, q_i in zip(p, q, strict=True)])
    assert student.grad is not None
    close(student.grad, expected)


@pytest.mark.parametrize("size", SIZES)
def test_cross_entropy(size: tuple[int, int, int]) -> None:
    student = random(*size, seed=5)
    labels = torch.randint(0, size[2], size[:2], generator=torch.Generator().manual_seed(6))
    labels[0, 0] = -100
    expected = [
        [0.0 if y == -100 else -math.log(softmax(z)[y]) for z, y in zip(rows, ys, strict=True)]
        for rows, ys in zip(student.tolist(), labels.tolist(), strict=True)
    ]
    close(cross_entropy(student=student, labels=labels), expected)


@pytest.mark.parametrize("size", SIZES)
def test_mse(size: tuple[int, int, int]) -> None:
    student, teacher = random(*size, seed=7), random(*size, seed=8)
    expected = [
        [math.fsum((s - t) ** 2 for s, t in zip(x, y, strict=True)) / size[2] for x, y in zip(xs, ys, strict=True)]
        for xs, ys in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    close(mse(student=student, teacher=teacher), expected)


@pytest.mark.parametrize("size", SIZES)
def test_cosine(size: tuple[int, int, int]) -> None:
    student, teacher = random(*size, seed=9), random(*size, seed=10)

    def naive(x: list[float], y: list[float]) -> float:
        dot = math.fsum(a * b for a, b in zip(x, y, strict=True))
        return 1 - dot / (math.sqrt(math.fsum(a * a for a in x)) * math.sqrt(math.fsum(b * b for b in y)))

    pairs = zip(student.tolist(), teacher.tolist(), strict=True)
    close(
        cosine(student=student, teacher=teacher),
        [[naive(x, y) for x, y in zip(xs, ys, strict=True)] for xs, ys in pairs],
    )


@pytest.mark.parametrize("mask", [None, "keys", "pairs"])
def test_attention_scores_mse(mask: str | None) -> None:
    batch, heads, queries, seen_keys = 2, 3, 4, 6
    student = random(batch, heads, queries, seen_keys, seed=11)
    teacher = random(batch, heads, queries, seen_keys, seed=12)
    draw = torch.Generator().manual_seed(13)
    keys = torch.rand(batch, seen_keys, generator=draw) < 0.6
    pairs = torch.rand(batch, 1, queries, seen_keys, generator=draw) < 0.6
    pairs[0, 0, 2] = False
    given = {None: None, "keys": keys, "pairs": pairs}[mask]

    def sees(b: int, i: int, j: int) -> bool:
        return mask is None or bool(keys[b, j] if mask == "keys" else pairs[b, 0, i, j])

    def naive(b: int, i: int) -> float:
        seen = [j for j in range(seen_keys) if sees(b, i, j)]
        squares = [(student[b, h, i, j] - teacher[b, h, i, j]).item() ** 2 for h in range(heads) for j in seen]
        return math.fsum(squares) / len(squares) if squares else 0.0

    expected = [[naive(b, i) for i in range(queries)] for b in range(batch)]
    close(attention_scores_mse(student=student, teacher=teacher, mask=given), expected)


def test_attention_scores_mse_without_padding_is_tinyberts_sum_over_layers() -> None:
    """TinyBERT adds up `MSELoss()(student_att, teacher_att)` over its layers, each a mean over B h T T."""
    layers = [(random(2, 3, 5, 5, seed=s), random(2, 3, 5, 5, seed=s + 50)) for s in (20, 21)]
    theirs = sum(torch.nn.MSELoss()(student, teacher) for student, teacher in layers)
    mine = sum(attention_scores_mse(student=student, teacher=teacher).mean() for student, teacher in layers)
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
