"""Predictions in few bytes: indices come back exactly, probabilities closely; and what the logits made of them mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from kernel import fragment
from torch import Tensor

from limbeck.assemble import design
from limbeck.assemble.study import build_study
from limbeck.assemble.text import read_text
from limbeck.losses import LOSSES, forward_kl
from limbeck.losses.sparse import TopK
from limbeck.recipe.keys import LOSS_KEYS
from limbeck.recipe.load import load
from limbeck.system.processes import World
from limbeck.teacher_cache.packing import Packing, grow, shrink

BOUND = 1e-3  # nats: what packing may cost of a prediction

SIZES = [(2, 1), (3, 2), (7, 6), (60, 1), (60, 10), (60, 59), (64, 32), (101, 50), (1000, 999), (1024, 7), (30522, 1)]
SIZES += [(30522, 50), (50257, 64), (128256, 50), (262144, 50), (262144, 1), (262143, 300)]


def numbers(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def said(indices: Tensor, seed: int = 0) -> TopK:
    """Random probabilities of some tokens, in any order, and of all others together."""
    logits = torch.randn(len(indices), indices.shape[1] + 1, generator=numbers(seed)) * 3
    log_p = logits.log_softmax(-1)
    return TopK(indices, log_p[:, :-1], log_p[:, -1])


def sets(vocabulary: int, k: int, seed: int) -> Tensor:
    """Sets of k tokens: the first, the last, those around the middle, every other one, both ends, and random ones."""
    draw = np.random.default_rng(seed)
    first, middle = np.arange(k), (vocabulary - k) // 2
    spread = first * (vocabulary - 1) // max(1, k - 1) if k > 1 else np.array([vocabulary - 1])
    ends = np.concatenate([np.arange(k - k // 2), vocabulary - 1 - np.arange(k // 2)])
    rows = [first, vocabulary - k + first, middle + first, spread, ends]
    rows += [draw.choice(vocabulary, k, replace=False) for _ in range(20)]
    return torch.from_numpy(np.stack([draw.permutation(row) for row in rows]))


@pytest.mark.parametrize(("vocabulary", "k"), SIZES)
def test_every_set_of_tokens_comes_back(vocabulary: int, k: int) -> None:
    """And the probability of each token is the one nearest to its own."""
    packing = Packing(vocabulary, k)
    for seed in range(3):
        given = said(sets(vocabulary, k, seed), seed)
        code = packing.pack(given)
        assert code.dtype == np.uint8 and code.shape == (len(given.indices), packing.size)
        found = packing.unpack(code)
        order = given.indices.argsort(-1)
        assert torch.equal(found.indices, given.indices.gather(-1, order))
        assert found.logprobs.dtype == torch.float32 and found.rest is not None
        expected = given.logprobs.gather(-1, order)
        gap = (expected.max(-1, keepdim=True).values - expected).clamp(max=16)
        widest = gap.max(-1, keepdim=True).values
        step = (gap * widest).sqrt() / 63 + widest / (4 * 63**2)  # half a step of 63 on the scale of roots
        near = (found.logprobs - expected).abs() <= step + step.max(-1, keepdim=True).values + 1e-2
        assert (near | (gap == 16)).all() and (found.logprobs[gap == 16].exp() < 1e-6).all()
        whole = found.logprobs.double().exp().sum(-1) + found.rest.double().exp()
        torch.testing.assert_close(whole, torch.ones_like(whole), rtol=0, atol=1e-6)


def test_no_prediction_and_no_order() -> None:
    """The code of nothing is nothing; the order in which tokens are given means nothing."""
    packing, given = Packing(1000, 8), said(sets(1000, 8, 0))
    nothing = packing.unpack(packing.pack(given.rows(slice(0))))
    assert nothing.indices.shape == (0, 8) and nothing.logprobs.shape == (0, 8)
    turned = TopK(given.indices.flip(-1), given.logprobs.flip(-1), given.rest)
    assert np.array_equal(packing.pack(given), packing.pack(turned))


def test_the_size() -> None:
    """Of 50 tokens of 30,522: below 120 bytes. In general the bits of the two parts of an index, six more, four bytes."""
    assert Packing(30522, 50).size == 112 <= 120
    for vocabulary, k in SIZES:
        low = max(0, math.floor(math.log2(vocabulary // k)))
        bits = k * low + k * 6 + k + math.ceil(vocabulary / 2**low)
        assert Packing(vocabulary, k).size == 4 + math.ceil(bits / 8)
        least = (math.lgamma(vocabulary + 1) - math.lgamma(k + 1) - math.lgamma(vocabulary - k + 1)) / math.log(2)
        assert bits - 6 * k <= k * (2 + math.log2(vocabulary / k)) + 2
        if vocabulary >= 100 * k >= 1000:
            assert bits - 6 * k <= least + 0.7 * k + 4  # about half a bit an index above what any code needs


# how close


def cost(logits: Tensor, k: int) -> Tensor:
    """Nats of the forward KL from what was kept to what was unpacked, over the k tokens and the rest, in fp64."""
    kept = TopK.of(logits.double(), k)
    assert kept.rest is not None
    packing = Packing(logits.shape[-1], k)
    found = packing.unpack(packing.pack(kept))
    assert found.rest is not None
    order = kept.indices.argsort(-1)
    assert torch.equal(found.indices, kept.indices.gather(-1, order))
    mine = torch.cat([kept.logprobs.gather(-1, order), kept.rest[:, None]], -1)
    theirs = torch.cat([found.logprobs, found.rest[:, None]], -1).double()
    parts = torch.where(mine.isneginf(), 0, mine.exp() * (mine - theirs))
    return parts.sum(-1)


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": lambda z: z,
    "wide": lambda z: 3 * z,
    "wider": lambda z: 10 * z,
    "flat": lambda z: 1e-3 * z,
    "even": torch.zeros_like,
    "peaky": lambda z: z + 15 * (torch.arange(z.shape[-1]) == 7),
    "certain": lambda z: z + 90 * (torch.arange(z.shape[-1]) == 7),
    "few": lambda z: z + 8 * (torch.arange(z.shape[-1]) % (z.shape[-1] // 5) == 0),
    "heavy": lambda z: -2 * (1 + torch.arange(z.shape[-1])).log() + 0.1 * z,  # Zipf
    "large": lambda z: 2 * z + 1e3,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("vocabulary", "k"), [(30522, 50), (128256, 50), (60, 10), (60, 59)])
def test_what_packing_costs(vocabulary: int, k: int, kind: str) -> None:
    costs = cost(KINDS[kind](torch.randn(40, vocabulary, generator=numbers(3))), k)
    assert costs.min() > -1e-6 and costs.mean() < BOUND


def test_tokens_that_cannot_be() -> None:
    """Columns of -inf, also among the kept ones; and no rest at all."""
    logits = torch.randn(20, 300, generator=numbers(4))
    logits[:, 40:] = -torch.inf
    for k in (10, 39, 40, 50):
        costs = cost(logits, k)
        assert costs.isfinite().all() and costs.max() < 2 * BOUND
        assert costs.mean() < BOUND or k == 50  # of which ten are nothing
        packing = Packing(300, k)
        kept = TopK.of(logits, k)
        found = packing.unpack(packing.pack(kept))
        assert found.rest is not None and kept.rest is not None
        assert torch.equal(found.rest.isneginf(), kept.rest.isneginf())
        assert found.rest.isneginf().all() if k >= 40 else found.rest.isfinite().all()
        again = found.dense()
        assert again.isfinite().all()
        probabilities = again.softmax(-1)
        assert probabilities.sum(-1).allclose(torch.ones(20), atol=1e-6)
        if k >= 40:
            assert probabilities[:, 40:].max() < 1e-6


def test_a_rest_that_is_nothing_or_all() -> None:
    for rest in (-torch.inf, -80.0, -1e-3, -1e-9, 0.0):
        mass = -math.expm1(rest)
        logprobs = torch.full((1, 4), math.log(max(mass, 1e-30) / 4))
        packing = Packing(100, 4)
        found = packing.unpack(packing.pack(TopK(torch.tensor([[1, 5, 7, 99]]), logprobs, torch.tensor([rest]))))
        assert found.rest is not None
        assert found.logprobs.exp().sum().item() == pytest.approx(mass, rel=2e-3, abs=1e-7)
        assert found.rest.exp().item() == pytest.approx(math.exp(rest), rel=1e-3, abs=1e-7)
        assert found.logprobs.isfinite().all()


@pytest.mark.slow
def test_what_packing_costs_on_real_text() -> None:
    """The embedded teacher on the documentation: every prediction is below the bound."""
    table = load(
        {
            "name": "real",
            "models": {"teacher": "embedded", "student": {"layers": 1}},
            "data": {"max_bytes": 200_000, "max_length": 64, "positions": "masked"},
            "settings": {"a": {"terms": [{"loss": "forward_kl"}]}},
            "train": {"batch_size": 16, "device": "cpu", "steps": 1, "precision": "fp32"},
        }
    )
    plan = design.design(table)
    study = build_study(plan, World(), read_text(plan, lambda line: None))
    teacher: Any = study.stills[0].actors["teacher"]
    batch = study.feeds[0].batch(0)
    logits = teacher.logits(teacher.forward(batch).features[batch["select"]])
    assert len(logits) > 100
    for k in (10, 50):
        costs = cost(logits, k)
        assert costs.max() < BOUND


# back to logits


@pytest.mark.parametrize(("vocabulary", "k"), [(5, 1), (60, 10), (60, 59), (3000, 50)])
def test_logits_hold_what_was_kept_and_spread_the_rest(vocabulary: int, k: int) -> None:
    kept = TopK.of(torch.randn(9, vocabulary, generator=numbers(5)).double() * 3, k)
    assert kept.rest is not None
    log_p = kept.dense().log_softmax(-1)
    torch.testing.assert_close(log_p.gather(-1, kept.indices), kept.logprobs, rtol=1e-9, atol=1e-9)
    for row in range(9):
        others = sorted(set(range(vocabulary)) - set(kept.indices[row].tolist()))
        expected = math.log(math.exp(kept.rest[row]) / len(others))
        assert log_p[row, others].tolist() == pytest.approx([expected] * len(others), rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_forward_kl_against_them(temperature: float) -> None:
    """A loop over tokens in fp64: what was kept as it is, an even share of the rest elsewhere."""
    draw, vocabulary, k = numbers(6), 30, 6
    teacher, student = (torch.randn(4, vocabulary, generator=draw).double() * 2 for _ in range(2))
    kept = TopK.of(teacher, k)
    found = forward_kl(student=student, teacher=kept.dense(), temperature=temperature)
    for row in range(4):
        top = sorted(range(vocabulary), key=lambda i, r=row: -float(teacher[r, i]))[:k]
        p = [math.exp(float(teacher[row, i])) for i in range(vocabulary)]
        p = [it / sum(p) for it in p]
        left = (1 - sum(p[i] for i in top)) / (vocabulary - k)
        p = [(p[i] if i in top else left) ** (1 / temperature) for i in range(vocabulary)]
        p = [it / sum(p) for it in p]
        q = [math.exp(float(student[row, i]) / temperature) for i in range(vocabulary)]
        q = [it / sum(q) for it in q]
        by_hand = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) * temperature**2
        assert found[row].item() == pytest.approx(by_hand, rel=1e-9)


ON_LOGITS = [name for name, keys in LOSS_KEYS.items() if keys.taps == ("logits",) and "teacher" in keys.needs]


@pytest.mark.parametrize("name", ON_LOGITS)
def test_which_losses_see_a_constant(name: str) -> None:
    """What may be taken from a cache, which keeps log-probabilities, is not changed by a number added to all logits of a token."""
    draw = numbers(7)
    student, teacher = (torch.randn(8, 12, generator=draw).double() for _ in range(2))
    how: dict[str, Any] = {key: value for key, value in fragment(name).items() if key in LOSS_KEYS[name].parameters}
    if "k" in how:
        how["k"] = 4
    if "labels" in LOSS_KEYS[name].needs:
        how["labels"] = torch.arange(8) % 12
    call: Any = LOSSES[name]
    plain = call(student=student, teacher=teacher, **how)
    moved = call(student=student, teacher=teacher + torch.randn(8, 1, generator=draw).double() * 5, **how)
    same = torch.allclose(plain, moved, rtol=0, atol=1e-6)
    assert same if LOSS_KEYS[name].kept else same == (name != "logit_mse")


# states


def test_states_in_fewer_bits() -> None:
    states = torch.randn(50, 24, generator=numbers(8)) * torch.logspace(-6, 6, 50)[:, None]
    states[7] = 0
    exact = grow(*shrink(states, "fp32"))
    assert torch.equal(exact, states)
    half = grow(*shrink(states, "bf16"))
    assert half.dtype == torch.bfloat16 and torch.equal(half, states.bfloat16())
    kept, scale = shrink(states, "int8")
    assert kept.dtype == np.int8 and scale is not None and scale.shape == (50,)
    found, widest = grow(kept, scale), states.abs().amax(-1, keepdim=True)
    assert ((found - states).abs() <= widest / 254 * 1.001).all()
    assert (found[7] == 0).all()
    torch.testing.assert_close(found.abs().amax(-1, keepdim=True), widest, rtol=1e-5, atol=0)
