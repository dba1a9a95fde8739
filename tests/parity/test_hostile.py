"""What must not pass in silence: a NaN that counts, shapes that would broadcast, masks of numbers, hyper-parameters, no tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.losses import LOSSES, attention_kl, attention_mse, attention_scores_mse
from limbeck.losses.sparse import TopK
from limbeck.recipe.keys import LOSS_KEYS
from parity.cases import CASES, RUNS, SIZES, TINY, Case, Given, counts, fresh, inputs, leaves

SQUARE = {"B": 3, "T": 3, "S": 5}  # as many rows as tokens: there a mask of rows looks like one of tokens
WRONG: dict[str, tuple[Any, ...]] = {
    "positive": (0, -1.0, math.nan, math.inf),
    "weight": (-1.0, math.nan, math.inf),
    "share": (-0.1, 1.1, math.nan),
    "fraction": (-0.1, 1, math.nan),
    "count": (0, -1, 1.5),
    "position": ("middle",),
    "number": (math.nan, math.inf),
}
# The others look for -inf, or turn autocast off, of which there is none on the meta device.
ON_META = ["cross_entropy", "squared_error", "universal_logit", "mse", "cosine", "patient", "attention_transfer"]
ON_META += ["activation_boundary", "factor_transfer", "rkd_distance", "tinybert_scores_mse", "tinybert_hidden_mse"]
every_case = pytest.mark.parametrize("name", CASES)


def parts(given: Given, key: str, layout: Any) -> list[tuple[int | None, Tensor, str]]:
    """The tensors of one argument, each with its place and its axes."""
    if isinstance(given[key], tuple):
        return [(i, x, axes) for i, (x, axes) in enumerate(zip(given[key], layout[key], strict=True))]
    return [(None, given[key], layout[key])]


def changed(given: Given, key: str, place: int | None, new: Tensor) -> Given:
    """The same arguments with another tensor at one place."""
    if place is None:
        return given | {key: new}
    return given | {key: tuple(new if i == place else x for i, x in enumerate(given[key]))}


def call(name: str, given: Given, **setting: Any) -> Tensor:
    return LOSSES[CASES[name].loss](**given, **setting)


# NaN in is NaN out


def counted(case: Case, given: Given, setting: dict[str, Any], x: Tensor, axes: str) -> Tensor:
    """Where a number of a tensor counts: what the mask keeps and has a label; of `patient` one token of each row."""
    kept = torch.ones(x.shape[:-1] if case.output == "BT" else x.shape, dtype=torch.bool)
    if "mask" in given and not (case.padding and "hidden" in case.loss):
        kept = counts(x, axes, given["mask"], str(case.layout["mask"])).expand(x.shape).clone()
    if case.loss == "tinybert_scores_mse" and "mask" in given:  # whose padded queries count
        mask = given["mask"]
        kept = (mask if mask.dim() == 4 else mask[:, None, None, :]).expand(x.shape).clone()
    if case.loss == "patient" and x.dim() == 3:
        order = range(x.shape[1]) if setting.get("position") == "first" else range(x.shape[1] - 1, -1, -1)
        for row in kept[..., 0]:
            first = next(at for at in order if row[at])
            row[:] = torch.arange(len(row)) == first
        kept = kept[..., :1].expand(x.shape)
    kept = kept if kept.shape == x.shape else kept.unsqueeze(-1).expand(x.shape)
    if "labels" in given:
        there = given["labels"] != -100
        kept = kept & (there if x.dim() == 2 else there.unsqueeze(-1))
    return kept


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize(("name", "setting"), RUNS)
def test_nan_in_is_nan_out(name: str, setting: dict[str, Any], masked: bool) -> None:
    """All of a tensor that counts, and one number of it: the first, one in the middle, the last."""
    case, given = CASES[name], inputs(name, seed=21, masked=masked, **TINY)
    assert call(name, given, **setting).isfinite().all()
    for key in ("student", "teacher", "labels"):
        for place, x, axes in parts(given, key, case.layout) if key in given else ():
            if not x.is_floating_point():
                continue
            kept = counted(case, given, setting, x, axes)
            where = kept.flatten().nonzero().squeeze(1)
            one = [torch.zeros_like(kept).flatten().index_fill(0, at, True) for at in (where[:1], where[-1:])]
            one.append(torch.zeros_like(kept).flatten().index_fill(0, where[len(where) // 2], True))
            for bad in (kept, *(each.view_as(kept) for each in one)):
                spoilt = changed(given, key, place, x.detach().masked_fill(bad, math.nan))
                value = call(name, fresh(spoilt, case), **setting)
                assert value.isnan().any(), f"{key} {place}: {int(bad.sum())} of {bad.numel()}"
                assert case.kind == "batch" or bad is kept or not value.isnan().all(), "rows are told apart"


@pytest.mark.parametrize("loss", [attention_kl, attention_mse, attention_scores_mse])
def test_nan_behind_a_mask_does_not_hide_what_is_minus_infinity(loss: Any) -> None:
    """A map that carries its own mask as -inf, with NaN in its padding: as if the padding held zeros."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 2, 4, 4, generator=draw).double() for _ in range(2))
    causal = torch.ones(4, 4, dtype=torch.bool).tril()
    student, teacher = (x.masked_fill(~causal, -math.inf) for x in (student, teacher))
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[1, 3:] = False
    clean = loss(student=student, teacher=teacher, mask=mask)
    outside = ~(mask[:, None, None, :] & mask[:, None, :, None])
    spoilt = loss(student=student.masked_fill(outside, math.nan), teacher=teacher, mask=mask)
    torch.testing.assert_close(spoilt, clean)
    assert clean.isfinite().all()


@pytest.mark.parametrize("loss", ["rkd_distance", "rkd_angle", "cka", "pearson", "similarity"])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_one_example_alone_hides_no_nan(loss: str, side: str) -> None:
    """The value of one example is a constant, whatever it holds; but not of NaN."""
    given = {"student": torch.randn(1, 4), "teacher": torch.randn(1, 4)}
    assert LOSSES[loss](**given).isfinite()
    given[side][0, 2] = math.nan
    assert LOSSES[loss](**given).isnan()


# shapes that would broadcast


def wrong_masks(case: Case, right: Tensor) -> Iterator[Tensor]:
    """Masks of other shapes, many of which broadcast to the right one."""
    B, T, S = (SQUARE[axis] for axis in "BTS")
    others = {"similarity": (B,), "attention_scores_mse": (B, S), "tinybert_scores_mse": (B, S)}
    allowed = {tuple(right.shape), others.get(case.loss)}
    shapes = [
        (),
        (1,),
        (T,),
        (S,),
        (1, T),
        (B, 1),
        (1, S),
        (1, 1),
        (T, S),
        (B, T, 1),
        (1, B, T),
        (B, T + 1),
        (B, 2, T, S),
    ]
    for shape in shapes:
        if shape not in allowed:
            yield torch.ones(shape, dtype=torch.bool)


@every_case
def test_a_mask_of_another_shape_is_refused(name: str) -> None:
    given = inputs(name, seed=1, **SQUARE)
    for mask in wrong_masks(CASES[name], given["mask"]):
        with pytest.raises(ValueError, match=r"^the mask must be torch\.bool \[.*\] here, not torch\.bool \[.*\]$"):
            call(name, given | {"mask": mask})


@every_case
def test_a_mask_of_numbers_is_refused_everywhere_in_the_same_words(name: str) -> None:
    given = inputs(name, seed=1)
    for dtype in (torch.uint8, torch.int64, torch.float32, torch.float64):
        with pytest.raises(ValueError, match=rf"^the mask must be torch\.bool \[.*\] here, not {dtype} \[.*\]$"):
            call(name, given | {"mask": given["mask"].to(dtype)})


def misfits(x: Tensor, axes: str) -> Iterator[Tensor]:
    """Tensors of one row, of one token, of a row too many, and without an axis or with one too many."""
    yield x[:1]
    yield torch.cat([x, x[:1]])
    yield x[0]
    yield x.unsqueeze(0)
    for axis, letter in enumerate(axes):
        if letter in "TSC" and axis:
            yield x.narrow(axis, 0, 1)
            yield x.narrow(axis, 0, x.shape[axis] - 1)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@every_case
def test_tensors_that_do_not_belong_together_are_refused(name: str, masked: bool) -> None:
    case, given = CASES[name], inputs(name, seed=1, masked=masked, **SQUARE)
    for key in ("student", "teacher", "labels"):
        for place, x, axes in parts(given, key, case.layout) if key in given else ():
            for bad in misfits(x.detach(), axes):
                if case.loss == "similarity" and bad.shape[0] == x.shape[0] and (not masked or "rows" in name):
                    continue  # rows are vectors of any size
                with pytest.raises(ValueError) as refused:
                    call(name, changed(given, key, place, bad))
                assert "\n" not in str(refused.value), (key, place, list(bad.shape))


@pytest.mark.parametrize(
    "name",
    ["attention_transfer", "neuron_selectivity", "factor_transfer", "flow", "contrastive", "tinybert_hidden_mse"]
    + [name for name, case in CASES.items() if "hT" in "".join(case.layout["student"])],
)
def test_a_tensor_that_lacks_an_axis_on_both_sides_is_refused(name: str) -> None:
    given = inputs(name, seed=1, masked=False)
    less = {key: tuple(part[0] for part in x) if isinstance(x, tuple) else x[0] for key, x in given.items()}
    if "relation_kl" in name:  # three axes are joined heads
        less = {key: tuple(p[0] for p in x) if isinstance(x, tuple) else x[0] for key, x in less.items()}
    with pytest.raises(ValueError, match=r"^this loss takes \["):
        call(name, less)


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("name", ["topk_kl", "topk_reverse_kl", "topk_jensen_shannon"])
def test_lists_of_other_tokens_are_refused(name: str, tail: bool) -> None:
    student, listed = torch.randn(3, 7), TopK.of(torch.randn(2, 7), 3)
    rest = TopK.of(torch.randn(3, 7), 3)
    for teacher in (
        listed,
        listed[:2],
        torch.randn(3, 6),
        rest._replace(rest=listed.rest),
        (rest.indices, rest.logprobs[:1]),
    ):
        with pytest.raises(ValueError, match="differ in shape"):
            LOSSES[name](student=student, teacher=teacher, tail=tail)


# hyper-parameters


@pytest.mark.parametrize(
    ("loss", "parameter", "kind"),
    [(loss, *each) for loss, keys in LOSS_KEYS.items() for each in keys.parameters.items() if each[1] != "flag"],
)
def test_what_a_recipe_refuses_is_refused_in_code(loss: str, parameter: str, kind: str) -> None:
    given = inputs(next(name for name, case in CASES.items() if case.loss == loss))
    for value in WRONG[kind]:
        with pytest.raises(ValueError, match=parameter) as refused:
            LOSSES[loss](**given, **{parameter: value})
        assert "\n" not in str(refused.value)


def test_numbers_of_torch_and_numpy_are_numbers() -> None:
    given, two = inputs("forward_kl"), (np.float32(2), torch.tensor(2.0))
    for value in two:
        assert torch.equal(
            LOSSES["forward_kl"](**given, temperature=value), LOSSES["forward_kl"](**given, temperature=2.0)
        )
    with pytest.raises(ValueError, match="temperature must be a number above 0"):
        LOSSES["forward_kl"](**given, temperature=torch.tensor(0.0))


# nothing at all


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("gone", ["B", "T", "BT"])
@pytest.mark.parametrize(("name", "setting"), RUNS)
def test_no_token_at_all_is_zero(name: str, setting: dict[str, Any], gone: str, masked: bool) -> None:
    case, none = CASES[name], dict.fromkeys(gone, 0)
    axes = "".join(case.layout["student"])
    if not set(gone) <= set(axes) or name == "similarity/rows":
        pytest.skip("it has no such axis, or compares rows of any size")
    given = inputs(name, seed=1, masked=False, **none)
    if masked:
        given["mask"] = torch.ones([(SIZES | none)[axis] for axis in case.layout["mask"]], dtype=torch.bool)
    value = call(name, given, **setting)
    assert value.shape == tuple((SIZES | none)[axis] for axis in case.output)
    assert (value == 0).all()
    for gradient in torch.autograd.grad(value.sum(), leaves(given, case)):
        assert (gradient == 0).all()


# what the checks must not cost


@pytest.mark.parametrize("name", ON_META)
def test_checks_read_no_number(name: str) -> None:
    """Tensors without numbers pass every check: none waits for a device."""
    case, given = CASES[name], inputs(name, seed=1)
    there = {
        key: tuple(part.detach().to("meta") for part in x) if isinstance(x, tuple) else x.detach().to("meta")
        for key, x in given.items()
    }
    assert call(name, there).shape == tuple(SIZES[axis] for axis in case.output)
    with pytest.raises(ValueError, match="the mask must be"):
        call(name, there | {"mask": there["mask"].float()})


@every_case
def test_under_autocast(name: str) -> None:
    given = inputs(name, seed=1, dtype=torch.float32)
    plain = call(name, given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(call(name, given), plain)
        assert call(name, given).dtype == torch.float32
        with pytest.raises(ValueError, match="the mask must be"):
            call(name, given | {"mask": given["mask"].float()})
