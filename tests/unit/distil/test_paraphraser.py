"""Factor transfer's modules: what they compute, and the stage in which the paraphraser learns alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from kernel import STUDENT_WIDTH, TEACHER_WIDTH, batch, frozen, gradients_of, learner, share, still_of, views
from torch import Tensor, nn

from limbeck.distil.lessons import Pair, Term
from limbeck.distil.paraphraser import RATE, Paraphraser, paraphraser, translator
from limbeck.distil.projections import Making, build
from limbeck.distil.schedules import constant
from limbeck.errors import Interrupted
from limbeck.losses import factor_transfer

H, K = 12, 4


def made(seed: int = 0, steps: int = 5, width: int = H, count: int = K) -> Paraphraser:
    one = build({"paraphraser": paraphraser(width, count, steps)}, Making(seed))["paraphraser"]
    assert isinstance(one, Paraphraser)
    return one


def features(steps: int, garbage: float | None = None, rank: int = 2) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches `[4, 6, H]` near a plane of few dimensions, with padding; `garbage` is what stands there."""
    draw = torch.Generator().manual_seed(1)
    plane = torch.randn(rank, H, generator=draw)
    for _ in range(steps):
        states = torch.randn(4, 6, rank, generator=draw) @ plane + 0.01 * torch.randn(4, 6, H, generator=draw)
        mask = torch.arange(6) < torch.tensor([6, 4, 1, 3])[:, None]
        yield states if garbage is None else torch.where(mask[..., None], states, garbage), mask


def never() -> bool:
    return False


def bits(one: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in one.state_dict().items()}


def leaky(x: Tensor, stack: nn.Module, names: tuple[str, ...]) -> Tensor:
    """Each layer and a leaky ReLU of slope 0.1 behind it, by hand."""
    weights = dict(stack.named_parameters())
    for name in names:
        x = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        x = torch.where(x > 0, x, 0.1 * x)
    return x


# shapes


@pytest.mark.parametrize("shape", [(H,), (5, H), (2, 3, H)])
def test_factors_are_three_layers_each_with_its_activation(shape: tuple[int, ...]) -> None:
    """The last one too: of many numbers some are negative, and those are a tenth."""
    one = made().double()
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = one(x)
    assert found.shape == (*shape[:-1], K)
    torch.testing.assert_close(found, leaky(x, one.encoder, ("0", "2", "4")), rtol=1e-12, atol=1e-12)
    back = one.decoder(found)
    assert back.shape == shape
    torch.testing.assert_close(back, leaky(found, one.decoder, ("0", "2", "4")), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("side", ["paraphraser", "translator"])
def test_the_activation_behind_the_last_layer_is_there(side: str) -> None:
    one = made().encoder if side == "paraphraser" else translator(H, K)(Making(0))
    with torch.no_grad():
        last = [module for module in one.modules() if isinstance(module, nn.Linear)][-1]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([-2.0, 5.0, -0.5, 0.0]))
    torch.testing.assert_close(one(torch.randn(3, H)), torch.tensor([-0.2, 5.0, -0.05, 0.0]).expand(3, K))


def test_the_layers_have_the_authors_widths() -> None:
    one = made()
    assert [tuple(p.shape) for p in one.encoder.parameters() if p.dim() == 2] == [(H, H), (K, H), (K, K)]
    assert [tuple(p.shape) for p in one.decoder.parameters() if p.dim() == 2] == [(K, K), (H, K), (H, H)]
    mine = translator(7, K)(Making(0))
    assert [tuple(p.shape) for p in mine.parameters() if p.dim() == 2] == [(7, 7), (K, 7), (K, K)]
    assert mine(torch.randn(2, 3, 7)).shape == (2, 3, K)
    assert all(parameter.requires_grad for parameter in mine.parameters())


# the paraphraser's own stage


def test_frozen_before_and_after() -> None:
    one = made()
    for _ in range(2):
        assert not any(parameter.requires_grad for parameter in one.parameters())
        assert not one(torch.randn(2, H)).requires_grad
        before = bits(one)
        one.fit(features(5), never)
        assert all(not torch.equal(tensor, before[name]) for name, tensor in bits(one).items()), "all of it learns"


def test_no_gradient_stays_behind() -> None:
    """It would count among the gradients of the projections, and be clipped with them."""
    one = made()
    one.fit(features(3), never)
    assert all(parameter.grad is None for parameter in one.parameters())


def test_structured_features_are_learned() -> None:
    """The errors are means over kept tokens: the first that of the parameters as they were made."""
    one = made(steps=600)
    states, mask = next(features(1))
    kept = states[mask]
    expected = F.l1_loss(one.decoder(one.encoder(kept)), kept).item()
    first, last = one.fit(features(600), never)
    assert first == pytest.approx(expected, rel=1e-6)
    flat = (kept - kept.median(0).values).abs().mean().item()  # what tells no token from another
    for error in (last, F.l1_loss(one.decoder(one.encoder(kept)), kept).item()):
        assert error < 0.7 * first and error < 0.7 * flat


def test_one_update_is_adam_by_hand() -> None:
    """Adam's first update is the rate times the sign of the gradient, without weight decay."""
    one, other = made().double(), made().double()
    states, mask = next(features(1))
    kept = states[mask].double()
    other.requires_grad_(True)
    (other.decoder(other.encoder(kept)) - kept).abs().mean().backward()
    before = bits(one)
    one.fit(features(1), never)
    for name, parameter in other.named_parameters():
        assert parameter.grad is not None
        step = (RATE * parameter.grad / (parameter.grad.abs() + 1e-8)).detach()
        torch.testing.assert_close(one.state_dict()[name], before[name] - step, rtol=0, atol=1e-9)


def test_the_same_seed_gives_the_same_bits() -> None:
    pair = [made(), made()]
    losses = []
    for number, one in enumerate(pair):
        torch.manual_seed(number)
        state = torch.random.get_rng_state()
        losses.append(one.fit(features(20), never))
        assert torch.equal(torch.random.get_rng_state(), state)
    assert losses[0] == losses[1]
    mine, theirs, another = (bits(one) for one in (*pair, made(seed=1)))
    assert all(torch.equal(theirs[name], tensor) for name, tensor in mine.items())
    assert not torch.equal(another["encoder.0.weight"], bits(made())["encoder.0.weight"])


@pytest.mark.parametrize("garbage", [1e30, float("inf"), float("nan")])
def test_what_stands_in_padding_has_no_influence(garbage: float) -> None:
    one, other = made(), made()
    assert one.fit(features(10), never) == other.fit(features(10, garbage), never)
    mine, theirs = bits(one), bits(other)
    assert all(torch.equal(theirs[name], tensor) for name, tensor in mine.items())


def test_half_precision_features_are_learned_in_its_own_precision() -> None:
    one, other = made(), made()
    half = [(states.bfloat16(), mask) for states, mask in features(5)]
    assert one.fit(half, never) == other.fit([(states.float(), mask) for states, mask in half], never)
    assert {tensor.dtype for tensor in bits(one).values()} == {torch.float32}


@pytest.mark.parametrize("after", [0, 3])
def test_a_stop_is_heard_before_the_next_update(after: int) -> None:
    one, expected = made(), made()
    asked, read = [], []

    def stopped() -> bool:
        asked.append(True)
        return len(asked) > after

    def counted() -> Iterator[tuple[Tensor, Tensor]]:
        for each in features(50):
            read.append(True)
            yield each

    with pytest.raises(Interrupted, match="stopped while the paraphraser was trained; run it again"):
        one.fit(counted(), stopped)
    assert len(read) <= after + 1
    if after:
        expected.fit(features(after), never)
    assert all(torch.equal(bits(expected)[name], tensor) for name, tensor in bits(one).items())


# in a step

FACTORS = Term(
    "hidden",
    factor_transfer,
    (Pair("hidden.2", "hidden.4", "hidden", teacher_module="hidden-paraphraser"),),
    constant(5.0),
    per="row",
    modules={
        "hidden": translator(STUDENT_WIDTH, K),
        "hidden-paraphraser": paraphraser(TEACHER_WIDTH, K, 4),
    },
)


def test_a_step_teaches_the_translator_and_leaves_the_paraphraser() -> None:
    one, teacher, batches = learner("a", (FACTORS,)), frozen(), [batch(1), batch(2)]
    paraphraser = one.modules["hidden-paraphraser"]
    assert isinstance(paraphraser, Paraphraser)
    paraphraser.fit(((teacher.forward(each)["hidden.4"], each["attention_mask"].bool()) for each in batches), never)
    before, still = bits(paraphraser), still_of(teacher, [(one, (FACTORS,))], chunk=5)
    value = still.gradients(*views(batches), 0)["a"].terms["hidden"]

    rows = []
    for each in batches:
        mine, theirs = one.forward(each)["hidden.2"], teacher.forward(each)["hidden.4"]
        for row, n in enumerate(each["attention_mask"].sum(1).tolist()):
            f_s = leaky(mine[row, :n], one.modules["hidden"], ("0", "2", "4"))
            f_t = leaky(theirs[row, :n], paraphraser.encoder, ("0", "2", "4"))
            rows.append((f_s / f_s.norm() - f_t / f_t.norm()).abs().mean())
    torch.testing.assert_close(value, torch.stack(rows).mean().detach(), rtol=1e-10, atol=1e-12)

    gradients = gradients_of(one)
    assert all(gradients[f"bridges.hidden.{i}.weight"].abs().max() > 0 for i in (0, 2, 4))
    norm = torch.stack([g.norm() for n, g in gradients.items() if n.startswith("bridges.hidden.")]).norm()
    one.optimizer.zero_grad(set_to_none=True)
    norms = still.step(share(batches), 0)["a"].norms
    assert norms is not None and norms.modules == pytest.approx(norm.item()), "of what is trained"
    assert all(torch.equal(before[name], tensor) for name, tensor in bits(paraphraser).items())
