"""What every loss promises, against the naive loops: values, gradients, masks, dtypes, chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.losses import LOSSES
from parity.cases import (
    CASES,
    NAMES,
    RUNS,
    SINGLE,
    SIZES,
    TINY,
    WIDE,
    Case,
    Given,
    counts,
    differences,
    each,
    equal,
    fresh,
    inputs,
    leaves,
    loss_and_gradients,
    padded,
    sparse,
    weights,
)
from parity.naive import NAIVE

Setting = dict[str, Any]
EVERY = list(CASES)
SIDES = ("student", "teacher")
LEADING = ("pearson", "cka", "rkd_distance", "rkd_angle")

every_case = pytest.mark.parametrize("name", EVERY)


def some_runs(runs: list[tuple[str, Setting]]) -> pytest.MarkDecorator:
    ids = ["-".join([name, *(f"{key}={value}" for key, value in setting.items())]) for name, setting in runs]
    return pytest.mark.parametrize(("name", "setting"), runs, ids=ids)


every_run = some_runs(RUNS)
# Losses that repeat a code in which padding counts break three promises on masks; what they do instead is tested beside these.
PADDING = [name for name, case in CASES.items() if case.padding]
every_run_without_padding = some_runs([(name, setting) for name, setting in RUNS if name not in PADDING])


def chosen(names: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", names)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=tolerance, atol=tolerance)


def all_close(actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-9) -> None:
    for x, y in zip(actual, expected, strict=True):
        close(x, y, tolerance)


def finite(*tensors: Tensor) -> bool:
    return all(bool(x.isfinite().all()) for x in tensors)


def tensors(given: Given, *keys: str) -> list[Tensor]:
    return [x for key in keys for x in (given[key] if isinstance(given[key], tuple) else [given[key]])]


def weighted(case: Case, given: Given, setting: Setting | None = None) -> tuple[Tensor, list[Tensor]]:
    """Value and gradients under one arbitrary weight per value."""
    setting = setting or {}
    shape = LOSSES[case.loss](**given, **setting)
    return loss_and_gradients(LOSSES[case.loss], given, case, setting, weights(shape))


def test_the_library_has_the_losses_of_the_specification() -> None:
    assert sorted(LOSSES) == sorted(NAIVE) == NAMES


@pytest.mark.parametrize("sizes", [{}, SINGLE, WIDE], ids=["usual", "single", "wide"])
@every_run
def test_value(name: str, setting: Setting, sizes: dict[str, int]) -> None:
    case = CASES[name]
    for masked in (False, True):
        given = inputs(name, seed=1, masked=masked, **sizes)
        value = LOSSES[case.loss](**given, **setting)
        assert value.shape == tuple((SIZES | sizes)[axis] for axis in case.output)
        close(value, NAIVE[case.loss](**given, **setting))


@every_run
def test_gradient(name: str, setting: Setting) -> None:
    case, given = CASES[name], inputs(name, seed=22, **TINY)
    weight = weights(NAIVE[case.loss](**given, **setting))
    _, mine = loss_and_gradients(LOSSES[case.loss], given, case, setting, weight)
    all_close(mine, differences(NAIVE[case.loss], given, case, setting, weight), 1e-9)


@every_case
def test_gradcheck(name: str) -> None:
    case, given = CASES[name], inputs(name, seed=3, **TINY)
    setting = case.settings[-1]
    trained = leaves(given, case)

    def loss(*moved: Tensor) -> Tensor:
        by_id = {id(old): new for old, new in zip(trained, moved, strict=True)}
        return LOSSES[case.loss](**each(lambda x, _: by_id.get(id(x), x), given, case.layout), **setting)

    assert torch.autograd.gradcheck(loss, tuple(trained), atol=1e-6, rtol=1e-5)


@every_run_without_padding
def test_what_the_mask_takes_out_reaches_nothing(name: str, setting: Setting) -> None:
    case, base = CASES[name], inputs(name, seed=4)
    everything = base | {"mask": torch.ones_like(base["mask"])}
    for plain in (base, everything):
        long = padded(plain, case)
        value, gradients = weighted(case, plain, setting)
        weight = torch.ones([n + {"B": 1, "T": 2}[a] for n, a in zip(value.shape, case.output, strict=True)]).double()
        if case.layout["mask"] == "BS":
            weight = weight[:, : value.shape[1]]
        inside = tuple(slice(n) for n in value.shape)
        weight[inside] = weights(value)
        long_value, long_gradients = loss_and_gradients(LOSSES[case.loss], long, case, setting, weight)
        close(long_value[inside], value, 1e-12)
        outside = long_value.detach().clone()
        outside[inside] = 0
        assert (outside == 0).all()
        for short, grown in zip(gradients, long_gradients, strict=True):
            inside = tuple(slice(n) for n in short.shape)
            close(grown[inside], short, 1e-12)
            outside = grown.clone()
            outside[inside] = 0
            assert (outside == 0).all()
    without = {key: value for key, value in base.items() if key != "mask"}
    close(LOSSES[case.loss](**everything, **setting), LOSSES[case.loss](**without, **setting), 1e-12)


@chosen([name for name in EVERY if name not in PADDING])
def test_values_and_gradients_are_zero_where_the_mask_says_no(name: str) -> None:
    case, given = CASES[name], inputs(name, seed=5)
    mask_axes = str(case.layout["mask"])
    value, gradients = weighted(case, given, case.settings[0])
    if case.kind != "batch":
        kept = counts(value, case.output, given["mask"], mask_axes)
        assert (value[~kept.expand(value.shape)] == 0).all()
    trained = {id(leaf): gradient for leaf, gradient in zip(leaves(given, case), gradients, strict=True)}

    def check(x: Tensor, axes: str) -> Tensor:
        if id(x) in trained:
            assert (trained[id(x)][~counts(x, axes, given["mask"], mask_axes).expand(x.shape)] == 0).all()
        return x

    each(check, given, case.layout)


@chosen([name for name in PADDING if "scores" in name])
def test_masked_keys_are_zeros_that_count(name: str) -> None:
    """Whatever they hold, padded queries are looked at, and one key more that is masked is a zero more in the mean."""
    case, base = CASES[name], inputs(name, seed=4)
    value, gradients = weighted(case, base)
    hidden = ~base["mask"][:, None, None, :] if base["mask"].dim() == 2 else ~base["mask"]
    garbage = {side: base[side].detach().masked_fill(hidden, torch.nan) for side in SIDES}
    spoilt_value, spoilt_gradients = weighted(case, fresh(base | garbage, case))
    close(spoilt_value, value, 1e-12)
    all_close(spoilt_gradients, gradients, 1e-12)
    assert ((gradients[0] == 0) == hidden.expand(gradients[0].shape)).all()
    if base["mask"].dim() == 4:
        longer = {key: torch.cat([x.detach(), torch.zeros_like(x[..., :1])], -1) for key, x in base.items()}
        keys = base["student"].shape[-1]
        close(LOSSES[case.loss](**longer) * (keys + 1), value * keys, 1e-12)


@chosen([name for name in PADDING if "hidden" in name])
def test_padded_states_count_like_others(name: str) -> None:
    case, given = CASES[name], inputs(name, seed=4)
    value, (gradient,) = weighted(case, given)
    whole, (same,) = weighted(case, {key: x for key, x in given.items() if key != "mask"})
    assert not given["mask"].all()
    assert torch.equal(value, whole) and torch.equal(gradient, same) and (gradient != 0).all()


@chosen(PADDING)
def test_padding_alone_of_those_in_which_it_counts(name: str) -> None:
    case, given = CASES[name], inputs(name, seed=15)
    given["mask"][:] = False
    value, gradients = weighted(case, given)
    assert value.requires_grad and finite(value, *gradients)
    nothing = "scores" in name  # every key is a zero on both sides
    assert all(bool((x == 0).all()) == nothing for x in (value, *gradients))


@every_case
def test_the_order_of_the_rows(name: str) -> None:
    case, given = CASES[name], inputs(name, seed=6)
    order = torch.tensor([2, 0, 1])
    value = LOSSES[case.loss](**given)
    permuted = LOSSES[case.loss](**each(lambda x, _: x[order], given, case.layout))
    close(permuted, value if case.kind == "batch" else value[order], 1e-12)


@some_runs([(name, setting) for name, setting in RUNS if CASES[name].zero and setting.get("tail", True)])
def test_zero_where_the_models_agree(name: str, setting: Setting) -> None:
    case = CASES[name]
    value, gradients = weighted(case, equal(name, seed=7), setting)
    close(value, torch.zeros_like(value), 1e-12)
    assert finite(*gradients)
    all_close(gradients, [torch.zeros_like(g) for g in gradients], 1e-9)


@every_run
def test_huge_numbers(name: str, setting: Setting) -> None:
    case, given = CASES[name], inputs(name, seed=8, scale=5e3, dtype=torch.float32)
    if case.loss == "contrastive":
        given = fresh(each(lambda x, axes: x if axes == "B" else x * 1e4, given, case.layout), case)
    value, gradients = loss_and_gradients(LOSSES[case.loss], given, case, setting)
    assert finite(value, *gradients)
    # In single precision a column of probabilities can lose its variance, a list of them all of its rest.
    if case.loss != "pearson" and case.prepare is not sparse:
        close(value, NAIVE[case.loss](**given, **setting), 1e-3)


@every_run
def test_numbers_of_one_size_and_either_sign(name: str, setting: Setting) -> None:
    case, given = CASES[name], inputs(name, seed=9, dtype=torch.float32)

    def extreme(x: Tensor, axes: str) -> Tensor:
        return x.sign() * 1e4 if x.is_floating_point() and (case.prepare is not sparse or axes == "BTV") else x

    given = fresh(each(extreme, given, case.layout), case)
    value, gradients = loss_and_gradients(LOSSES[case.loss], given, case, setting)
    assert finite(value, *gradients)


def with_gaps(name: str, where: str, **sizes: int) -> Given:
    """Logits with columns at minus infinity: of the student alone, the teacher alone, both, and both alike."""
    case, given = CASES[name], inputs(name, seed=10, **sizes)
    if where != "teacher":
        given["student"].data[..., [1, 2] if where == "alike" else [0, 2]] = -torch.inf
    if where != "student" and isinstance(given.get("teacher"), tuple):
        ids, logs = given["teacher"]
        ids[..., -1] = ids[..., 0]
        logs[..., -1] = -torch.inf
    elif where != "student" and "teacher" in given:
        given["teacher"][..., [1, 2]] = -torch.inf
    if "labels" in given:
        given["labels"] = torch.where(given["labels"] >= 0, given["labels"] % 6 + 3, given["labels"])
    return fresh(given, case)


@pytest.mark.parametrize("where", ["student", "teacher", "both", "alike"])
@some_runs([(name, setting) for name, setting in RUNS if CASES[name].logits])
def test_columns_at_minus_infinity(name: str, setting: Setting, where: str) -> None:
    case = CASES[name]
    given = with_gaps(name, where, B=2, T=2)
    naive = NAIVE[case.loss](**given, **setting)
    weight = weights(naive)
    value, gradients = loss_and_gradients(LOSSES[case.loss], given, case, setting, weight)
    close(value, naive)
    assert finite(value, *gradients)
    all_close(gradients, differences(NAIVE[case.loss], given, case, setting, weight), 1e-6)


@pytest.mark.parametrize("where", ["none", "student", "teacher", "both"])
def test_the_decoupled_parts_make_up_forward_kl(where: str) -> None:
    """KL = TCKD + (the teacher's probability outside of the target) NCKD, with dropped columns in none of the three."""
    given = inputs("decoupled_kl", seed=10) if where == "none" else with_gaps("decoupled_kl", where)
    given["labels"].clamp_(min=3)
    dropped = (given["student"] == -torch.inf) | (given["teacher"] == -torch.inf)
    rest = given["teacher"].softmax(-1).masked_fill(dropped, 0).scatter(-1, given["labels"].unsqueeze(-1), 0).sum(-1)
    target, within = (LOSSES["decoupled_kl"](**given, alpha=a, beta=1.0 - a) for a in (1.0, 0.0))
    close(target + rest * within, LOSSES["forward_kl"](**{k: v for k, v in given.items() if k != "labels"}))


@every_run
def test_single_precision(name: str, setting: Setting) -> None:
    case, single = CASES[name], inputs(name, seed=11, dtype=torch.float32)
    double = fresh(single, case, torch.float64)
    value, gradients = weighted(case, single, setting)
    exact, exact_gradients = weighted(case, double, setting)
    assert value.dtype == torch.float32 and exact.dtype == torch.float64
    close(value.double(), exact, 1e-5)
    all_close([g.double() for g in gradients], exact_gradients, 1e-4)


@every_case
def test_half_precision_is_computed_in_single(name: str) -> None:
    case, half = CASES[name], inputs(name, seed=12, dtype=torch.bfloat16)
    for setting in case.settings:
        value, gradients = loss_and_gradients(LOSSES[case.loss], half, case, setting)
        expected = LOSSES[case.loss](**fresh(half, case, torch.float32), **setting)
        assert value.dtype == torch.float32
        assert all(g.dtype == torch.bfloat16 for g in gradients) and finite(*gradients)
        close(value, expected, 1e-6)


@chosen([name for name, case in CASES.items() if "teacher" in case.layout])
def test_a_teacher_in_half_precision(name: str) -> None:
    case, half = CASES[name], inputs(name, seed=13, dtype=torch.bfloat16)
    single = fresh(half, case, torch.float32)
    close(LOSSES[case.loss](**single | {"teacher": half["teacher"]}), LOSSES[case.loss](**single), 1e-6)


@chosen([name for name, case in CASES.items() if case.kind != "batch"])
def test_in_pieces(name: str) -> None:
    case, given = CASES[name], inputs(name, seed=14, T=5)
    axis = 1 if case.chunks == "T" else 0
    for setting in case.settings:
        pieces = [
            LOSSES[case.loss](**each(lambda x, _, n=n: x.narrow(axis, *n), given, case.layout), **setting)
            for n in ((0, 1), (1, 2), *([(3, 2)] if axis else []))
        ]
        close(torch.cat(pieces, axis), LOSSES[case.loss](**given, **setting), 1e-12)


@every_run_without_padding
def test_padding_alone(name: str, setting: Setting) -> None:
    case, given = CASES[name], inputs(name, seed=15)
    given["mask"][1] = False
    one = padded(given, case, row=0, tokens=0)
    value, gradients = weighted(case, one, setting)
    assert finite(value, *gradients) and all((g[1] == 0).all() for g in gradients)
    assert case.kind == "batch" or (value[1] == 0).all()
    given["mask"][:] = False
    value, gradients = weighted(case, padded(given, case, row=0, tokens=0), setting)
    assert value.requires_grad
    assert all((x == 0).all() for x in (value, *gradients))


@every_case
def test_the_teacher_is_a_constant(name: str) -> None:
    case, given = CASES[name], inputs(name, seed=16, masked=False)
    constants = []

    def ask(x: Tensor, _: str) -> Tensor:
        if x.is_floating_point() and not x.requires_grad:
            constants.append(x.requires_grad_())
        return x

    value = LOSSES[case.loss](**each(ask, given, case.layout))
    trained = leaves(given, case)
    gradients = torch.autograd.grad(value.sum(), trained + constants, allow_unused=True)
    assert all(g is not None and g.abs().sum() > 0 for g in gradients[: len(trained)])
    assert all(g is None for g in gradients[len(trained) :])


@every_case
def test_the_inputs_are_left_alone(name: str) -> None:
    """They come as views with odd strides, and are not written to."""
    case, given = CASES[name], inputs(name, seed=17)
    views = each(lambda x, _: torch.stack([x, x], dim=-1).detach()[..., 0], given, case.layout)
    for leaf in leaves(views, case):
        leaf.requires_grad_()
    value, gradients = weighted(case, views)
    expected, expected_gradients = weighted(case, given)
    close(value, expected, 1e-12)
    all_close(gradients, expected_gradients, 1e-12)
    assert all(torch.equal(x, y) for x, y in zip(tensors(views, *given), tensors(given, *given), strict=True))


@chosen([name for name, case in CASES.items() if case.chunks == "T" or name in LEADING])
def test_any_leading_axes(name: str) -> None:
    case, given = CASES[name], inputs(name, seed=18)
    value = LOSSES[case.loss](**given)
    flat = LOSSES[case.loss](**each(lambda x, _: x.flatten(0, 1), given, case.layout))
    close(flat, value.flatten(), 1e-12) if case.output else close(flat, value, 1e-12)
    deep = LOSSES[case.loss](**each(lambda x, _: x.unsqueeze(1), given, case.layout))
    close(deep, value.unsqueeze(1) if case.output else value, 1e-12)
    if case.output:
        alone = LOSSES[case.loss](**each(lambda x, _: x[1, 0], given, case.layout))
        close(alone, value[1, 0], 1e-12)


@every_case
def test_compiled(name: str) -> None:
    case, given = CASES[name], inputs(name, seed=19)
    torch.compiler.reset()
    compiled = torch.compile(LOSSES[case.loss], backend="eager", dynamic=False)
    setting = case.settings[-1]
    value, gradients = loss_and_gradients(compiled, given, case, setting)
    expected, expected_gradients = loss_and_gradients(LOSSES[case.loss], given, case, setting)
    close(value, expected, 1e-12)
    all_close(gradients, expected_gradients, 1e-12)


@chosen([name for name, case in CASES.items() if "labels" in case.layout])
def test_tokens_without_a_label(name: str) -> None:
    case, given = CASES[name], inputs(name, seed=20, masked=False)
    given["labels"][:] = given["labels"].clamp(min=0)
    given["labels"][1] = -100
    for key in ("student", "teacher"):
        if key in given:
            given[key].data[1] = torch.nan
    value, (gradient,) = weighted(case, given)
    assert (value[1] == 0).all() and (gradient[1] == 0).all()
    assert finite(value, gradient) and (value[0] > 0).all()


@chosen(
    [
        name
        for name, case in CASES.items()
        if not case.logits and "teacher" in case.layout and case.loss != "attention_mse"
    ]
)
@pytest.mark.parametrize("sides", [("student",), ("teacher",), ("student", "teacher")], ids="-".join)
def test_zeros(name: str, sides: tuple[str, ...]) -> None:
    """A vector of length zero stays what it is, and has a gradient."""
    case, given = CASES[name], inputs(name, seed=21)
    for x in tensors(given, *sides):
        x.data.zero_()
    value, gradients = weighted(case, given)
    close(value, NAIVE[case.loss](**given))
    assert finite(*gradients)


@pytest.mark.parametrize("loss", ["rkd_distance", "rkd_angle", "pearson", "cka", "similarity"])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_examples_that_are_all_the_same(loss: str, side: str) -> None:
    """No variance: the correlation is 0. No distance: 1e-6 each, and no direction."""
    case, given = CASES[loss], inputs(loss, seed=22, masked=False)
    given[side].data[:] = torch.tensor(0.1).double() * torch.arange(1, given[side].shape[-1] + 1).double()
    value, gradients = weighted(case, given)
    close(value, NAIVE[loss](**given))
    assert finite(*gradients)


def test_relations_of_different_head_counts() -> None:
    scores = torch.rand(2, 3, 4, 4), torch.rand(2, 2, 4, 4)
    for loss in ("attention_scores_mse", "attention_mse", "attention_kl"):
        with pytest.raises(ValueError):
            LOSSES[loss](student=scores[0], teacher=scores[1])
    with pytest.raises(ValueError):
        LOSSES["relation_kl"](student=torch.rand(2, 4, 6), teacher=torch.rand(2, 4, 8), relation_heads=4)
    with pytest.raises(ValueError):
        LOSSES["relation_kl"](student=torch.rand(2, 4, 8), teacher=torch.rand(2, 4, 6), relation_heads=4)


@pytest.mark.parametrize(("loss", "dense"), [("topk_kl", "forward_kl"), ("topk_reverse_kl", "reverse_kl")])
def test_a_list_of_the_whole_vocabulary(loss: str, dense: str) -> None:
    """There is no tail to it: it is the dense loss."""
    given = inputs("forward_kl", seed=23)
    for temperature in (0.5, 1.0, 3.0):
        expected = LOSSES[dense](**given, temperature=temperature)
        for tail in (True, False):
            setting = {"temperature": temperature, "tail": tail}
            close(LOSSES[loss](**inputs(loss, seed=23, k=9), **setting), expected)
            close(LOSSES[loss](**given, **setting, k=9), expected)
            close(LOSSES[loss](**given, **setting), expected)


@pytest.mark.parametrize("tail", [True, False])
def test_ids_of_padding_entries_mean_nothing(tail: bool) -> None:
    """A list of four whose last two are padding is the list of two, whatever ids the padding has."""
    given = inputs("topk_kl", seed=24)
    ids, logs = given["teacher"]
    short = LOSSES["topk_kl"](**given | {"teacher": (ids[..., :2], logs[..., :2])}, tail=tail)
    logs[..., 2:] = -torch.inf
    for padding in (ids, ids.clone().fill_(0), ids[..., :1].expand(ids.shape)):
        mixed = torch.cat([ids[..., :2], padding[..., 2:]], -1)
        close(LOSSES["topk_kl"](**given | {"teacher": (mixed, logs)}, tail=tail), short, 1e-12)
