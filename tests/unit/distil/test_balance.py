"""Balances: their factors from probes by hand, and what they do to a step."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from kernel import HIDDEN, LABEL, LOGIT, SCORES, batch, frozen, gradients_of, learner, share, still_of, views
from torch import Tensor

from limbeck.distil.balance import Balance, Probed, gradient_shares
from limbeck.distil.learner import Learner, Optimisation
from limbeck.distil.lessons import Term
from limbeck.distil.reduce import Counts
from limbeck.distil.schedules import constant
from limbeck.distil.still import Still

NAMES = ("a", "b", "c")


def found(values: tuple[float, ...], norms: tuple[float, ...] = (1.0, 1.0, 1.0)) -> dict[str, Probed]:
    return {name: Probed(value, norm) for name, value, norm in zip(NAMES, values, norms, strict=True)}


def factors(balance: Balance) -> list[float]:
    return [float(balance.factor(name)) for name in NAMES]


def again(balance: Balance) -> Balance:
    """A balance of the same kind with this one's state, as after a resumed run."""
    other = Balance(balance.how, balance.terms)
    other.load_state_dict(balance.state_dict())
    return other


# factors from probes


@pytest.mark.parametrize("how", ["none", "initial", "gradient", "uncertainty"])
def test_factors_begin_at_one(how: str) -> None:
    balance = Balance(how, NAMES)
    assert factors(balance) == [1.0, 1.0, 1.0]
    assert balance.regulariser(dict.fromkeys(NAMES, 3.0)) == 0.0


def test_none_stays_at_one_and_learns_nothing() -> None:
    balance = Balance("none", NAMES)
    balance.learn(found((2.0, 5.0, 0.0), (3.0, 1.0, 0.0)))
    assert factors(balance) == [1.0, 1.0, 1.0]
    assert not list(balance.parameters())


def test_initial_is_one_over_the_first_value() -> None:
    balance = Balance("initial", NAMES)
    balance.learn(found((2.0, 0.125, 8000.0)))
    assert factors(balance) == pytest.approx([0.5, 8.0, 1 / 8000])
    balance.learn(found((7.0, 7.0, 7.0)))
    assert factors(balance) == pytest.approx([0.5, 8.0, 1 / 8000]), "the second probe changes nothing"


def test_initial_keeps_the_first_value_over_a_resume() -> None:
    balance = Balance("initial", NAMES)
    balance.learn(found((2.0, 0.125, 8000.0)))
    resumed = again(balance)
    resumed.learn(found((7.0, 7.0, 7.0)))
    assert factors(resumed) == factors(balance) == pytest.approx([0.5, 8.0, 1 / 8000])


def test_initial_leaves_a_value_of_zero_alone() -> None:
    balance = Balance("initial", NAMES)
    balance.learn(found((0.0, 4.0, 0.0)))
    assert factors(balance) == pytest.approx([1.0, 0.25, 1.0])
    balance.learn(found((3.0, 3.0, 3.0)))
    assert factors(balance) == pytest.approx([1.0, 0.25, 1.0]), "a probe of zeros was a probe"


def test_gradient_makes_all_terms_pull_alike() -> None:
    balance, norms = Balance("gradient", NAMES), (12.0, 0.5, 4.0)
    balance.learn(found((1.0, 1.0, 1.0), norms))
    pulls = [factor * norm for factor, norm in zip(factors(balance), norms, strict=True)]
    assert pulls == pytest.approx([5.5, 5.5, 5.5])  # the mean of the norms


def test_gradient_follows_every_probe_and_a_resume_holds_the_last() -> None:
    balance = Balance("gradient", NAMES)
    balance.learn(found((1.0, 1.0, 1.0), (1.0, 1.0, 4.0)))
    assert factors(balance) == pytest.approx([2.0, 2.0, 0.5])
    balance.learn(found((9.0, 9.0, 9.0), (3.0, 2.0, 1.0)))
    assert factors(balance) == pytest.approx([2 / 3, 1.0, 2.0])
    assert factors(again(balance)) == factors(balance)


def test_gradient_leaves_a_norm_of_zero_alone() -> None:
    balance = Balance("gradient", NAMES)
    balance.learn(found((1.0, 1.0, 1.0), (2.0, 0.0, 4.0)))
    assert factors(balance) == pytest.approx([1.0, 1.0, 0.5])  # mean_j |g_j| = 2
    balance.learn(found((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)))
    assert factors(balance) == [1.0, 1.0, 1.0]


# uncertainty


def with_log_variances(s: Tensor) -> Balance:
    balance = Balance("uncertainty", NAMES).double()
    with torch.no_grad():
        balance.log_variances.copy_(s)
    return balance


def named(numbers: Tensor) -> dict[str, Tensor]:
    return dict(zip(NAMES, numbers, strict=True))


def test_uncertainty_is_the_autograd_of_its_loss() -> None:
    """The loss is sum_i w_i (exp(-s_i) L_i + s_i)."""
    s, w, values = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
    s.requires_grad_()
    loss = (w * (torch.exp(-s) * values + s)).sum()
    loss.backward()
    balance, weights = with_log_variances(s), {name: float(weight) for name, weight in named(w).items()}
    balance.differentiate(named(values), weights, processes=1)
    torch.testing.assert_close(balance.log_variances.grad, s.grad, rtol=1e-12, atol=1e-12)
    weighted = sum(weights[name] * balance.factor(name) * value for name, value in named(values).items())
    torch.testing.assert_close(weighted + balance.regulariser(weights), loss.detach(), rtol=1e-12, atol=1e-12)


def test_parts_of_two_processes_add_up_to_the_whole() -> None:
    s = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    w = torch.tensor([1.0, 0.25, 30.0], dtype=torch.float64)
    first = torch.tensor([0.7, 2.0, 0.125], dtype=torch.float64)
    second = torch.tensor([0.5, 1.5, 0.0], dtype=torch.float64)
    (w * (torch.exp(-s) * (first + second) + s)).sum().backward()
    weights = {name: float(weight) for name, weight in named(w).items()}
    gradients = []
    for part, missing in ((named(first), None), (named(second), "c")):  # the second process has no token for c
        balance = with_log_variances(s)
        balance.differentiate({name: value for name, value in part.items() if name != missing}, weights, processes=2)
        gradients.append(balance.log_variances.grad)
    torch.testing.assert_close(gradients[0] + gradients[1], s.grad, rtol=1e-12, atol=1e-12)


def test_uncertainty_begins_at_the_log_of_the_first_value() -> None:
    """There its gradient is 0; a value of 0 keeps the factor 1, and no later probe counts, nor one after a resume."""
    balance, values = Balance("uncertainty", NAMES).double(), (20.0, 0.01, 0.0)
    balance.learn(found(values, (5.0, 6.0, 7.0)))
    assert factors(balance) == pytest.approx([0.05, 100.0, 1.0], rel=1e-12)
    assert balance.regulariser(dict.fromkeys(NAMES, 2.0)) == pytest.approx(2 * math.log(20 * 0.01))
    balance.differentiate(named(torch.tensor(values).double()), dict.fromkeys(NAMES, 3.0), processes=1)
    assert balance.log_variances.grad is not None
    assert balance.log_variances.grad.tolist() == pytest.approx([0.0, 0.0, 3.0], abs=1e-6)
    resumed = again(balance)
    for one in (balance, resumed):
        one.learn(found((7.0, 7.0, 7.0)))
        assert factors(one) == pytest.approx([0.05, 100.0, 1.0])


@pytest.mark.parametrize("how", ["none", "initial", "gradient"])
def test_only_uncertainty_learns(how: str) -> None:
    balance, ones = Balance(how, NAMES), dict.fromkeys(NAMES, 1.0)
    balance.differentiate(named(torch.ones(3)), ones, processes=1)
    assert not list(balance.parameters()) and balance.regulariser(ones) == 0.0


@pytest.mark.parametrize("how", ["none", "initial", "gradient", "uncertainty"])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_nothing_is_learned_from_a_probe_that_is_not_finite(how: str, bad: float) -> None:
    """Neither from a value nor from a gradient; the next probe is the first one then."""
    balance, fresh = Balance(how, NAMES), Balance(how, NAMES)
    for spoiled in (found((bad, 4.0, 4.0)), found((4.0, 4.0, 4.0), (1.0, bad, 1.0))):
        balance.learn(spoiled)
        assert balance.probes == 0 and balance.waits == (how != "none")
        assert [float(balance.factor(name)) for name in NAMES] == [1.0] * len(NAMES)
    for one in (balance, fresh):
        one.learn(found((2.0, 4.0, 8.0), (1.0, 2.0, 4.0)))
    assert [float(balance.factor(n)) for n in NAMES] == [float(fresh.factor(n)) for n in NAMES]
    assert balance.probes == 1 and not balance.waits


# shares


def test_gradient_shares_are_of_the_weighted_norms() -> None:
    shares = gradient_shares(found((9.0, 9.0, 9.0), (1.0, 2.0, 5.0)), {"a": 2.0, "b": 0.5, "c": 1.0})
    assert shares == pytest.approx({"a": 0.25, "b": 0.125, "c": 0.625})


def test_gradient_shares_of_nothing_are_zero() -> None:
    assert gradient_shares(found((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)), dict.fromkeys(NAMES, 1.0)) == dict.fromkeys(
        NAMES, 0
    )
    assert gradient_shares(found((1.0, 1.0, 1.0)), dict.fromkeys(NAMES, 0.0)) == dict.fromkeys(NAMES, 0.0)


# in a step

TERMS = (LOGIT, LABEL, HIDDEN, SCORES)


def balanced(
    how: str, terms: tuple[Term, ...] = TERMS, clip: float | None = 1.0, weight_decay: float = 0.01
) -> Learner:
    plain = learner("a", terms)
    return Learner(
        "a",
        plain.model,
        list(plain.tapped.taps),
        seed=plain.seed,
        modules=plain.modules,
        optimisation=Optimisation(constant(1e-3), weight_decay, (0.9, 0.999), 1e-8, clip),
        balance=Balance(how, [term.name for term in terms]).double(),
    )


def cast(one: Learner, terms: tuple[Term, ...] = TERMS) -> Still:
    return still_of(frozen(), [(one, terms)], chunk=5)


def probed(values: list[float]) -> dict[str, Probed]:
    return {term.name: Probed(value, value) for term, value in zip(TERMS, values, strict=True)}


@pytest.mark.parametrize("how", ["initial", "gradient"])
def test_factors_multiply_the_weights(how: str) -> None:
    """The gradient is that of a learner whose recipe states the products; the tally tells them, terms stay as they are."""
    one, batches = balanced(how), [batch(1), batch(2)]
    one.balance.learn(probed([0.5, 4.0, 16.0, 0.25]))
    factor = {term.name: float(one.balance.factor(term.name)) for term in TERMS}
    assert len(set(factor.values())) == 4
    stated = tuple(dataclasses.replace(term, weight=constant(term.weight(0) * factor[term.name])) for term in TERMS)
    other, counts = learner("a", stated), Counts.of(batches)
    mine = cast(one).gradients(*views(batches, counts), 0)["a"]
    theirs = cast(other, stated).gradients(*views(batches, counts), 0)["a"]
    for name, value in theirs.terms.items():
        assert torch.equal(mine.terms[name], value)
    gradients, expected = gradients_of(one), gradients_of(other)
    assert sum(gradient is not None for gradient in gradients.values()) > 20
    for name, gradient in gradients.items():
        if gradient is not None:
            torch.testing.assert_close(gradient, expected[name], rtol=1e-11, atol=1e-11)
    one.optimizer.zero_grad(set_to_none=True)
    weights = cast(one).step(share(batches, counts), 0)["a"].weights
    assert weights == pytest.approx({term.name: term.weight(0) for term in stated})


def test_without_a_balance_the_tally_tells_the_weights_of_the_recipe() -> None:
    tally = cast(learner("a", TERMS)).step(share([batch()]), 0)["a"]
    assert tally.weights == {term.name: term.weight(0) for term in TERMS}
    assert tally.regulariser == 0.0


def test_uncertainty_takes_its_first_step_by_hand() -> None:
    """Adam's first step is the rate times the sign of the gradient w (1 - exp(-s) L): neither clipped nor decayed."""
    one, batches = balanced("uncertainty", clip=1e-6, weight_decay=50.0), [batch(1), batch(2)]
    start = torch.tensor([5.0, -2.0, 0.5, 1.0], dtype=torch.float64)
    with torch.no_grad():
        one.balance.log_variances.copy_(start)
    tally = cast(one).step(share(batches), 0)["a"]
    values = torch.stack([tally.terms[term.name] for term in TERMS])
    signs = (1 - torch.exp(-start) * values).sign()
    assert {1.0, -1.0} == set(signs.tolist())
    torch.testing.assert_close(one.balance.log_variances.detach(), start - 1e-3 * signs, rtol=0, atol=1e-9)
    assert tally.regulariser == pytest.approx(sum(float(start[i]) * term.weight(0) for i, term in enumerate(TERMS)))
    assert tally.weights == pytest.approx(
        {term.name: term.weight(0) * math.exp(-start[i]) for i, term in enumerate(TERMS)}
    ), "the weights of this step, not of the next"


@pytest.mark.parametrize("how", ["initial", "gradient", "uncertainty"])
def test_a_checkpoint_holds_the_balance(how: str) -> None:
    one, batches = balanced(how), [batch()]
    one.balance.learn(probed([0.5, 4.0, 16.0, 0.25]))
    cast(one).step(share(batches), 0)
    other = balanced(how)
    assert [float(other.balance.factor(t.name)) for t in TERMS] == [1.0, 1.0, 1.0, 1.0]
    other.load({name: tensor.clone() for name, tensor in one.state().items()})
    kept = [float(other.balance.factor(t.name)) for t in TERMS]
    assert kept == [float(one.balance.factor(t.name)) for t in TERMS] != [1.0, 1.0, 1.0, 1.0]
    for step in (1, 2):
        mine, theirs = (cast(it).step(share([batch(step)]), step)["a"] for it in (one, other))
        assert mine.weights == theirs.weights
        assert all(torch.equal(theirs.terms[name], value) for name, value in mine.terms.items())


@pytest.mark.parametrize("how", ["initial", "gradient", "uncertainty"])
def test_rounding_is_not_balanced(how: str) -> None:
    """A term whose gradient is the rounding of another's gets no weight of a trillion."""
    balance = Balance(how, ["sound", "noise"])
    balance.learn({"sound": Probed(5.0, 2.0), "noise": Probed(7e-15, 1e-12)})
    assert float(balance.factor("noise")) == 1.0
    assert float(balance.factor("sound")) == pytest.approx({"gradient": 0.5}.get(how, 0.2), rel=1e-6)
