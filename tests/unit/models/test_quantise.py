"""Quantisation in training: the arithmetic against torchao and against loops in fp64, which layers, what is exported."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CAUSAL, CONFIGS, tiny
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from limbeck.errors import UserError
from limbeck.models import compressed
from limbeck.models.changes import fake_quantise
from limbeck.models.changes.derived import derive, settle
from limbeck.models.changes.layers import matrices, part_of
from limbeck.models.changes.quantise import Quantise, WeightQuantiser, fake_quantise_tokens
from limbeck.models.compressed import Compressed, Grid, from_grid, on_grid
from limbeck.models.taps import Tapped

qat = pytest.importorskip("torchao.quantization.qat", reason="needs torchao")
TORCHAO = {8: torch.int8, 4: torch.int4, 3: torch.int3, 2: torch.int2}
SHAPES = [(bits, group) for bits in (8, 4, 3, 2) for group in (None, 8)]


def slowly(weight: Tensor, bits: int, group: int | None) -> Tensor:
    """One weight after the other, in Python's own floats."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    rows = []
    for row in weight.tolist():
        size, made = group or len(row), []
        for start in range(0, len(row), size):
            part = row[start : start + size]
            scale = max(max(map(abs, part)) / ((high - low) / 2), 2**-23)
            made += [min(max(round(it / scale), low), high) * scale for it in part]  # Python rounds halves to even
        rows.append(made)
    return torch.tensor(rows, dtype=weight.dtype)


@pytest.mark.parametrize(("bits", "group"), SHAPES)
def test_weights_are_rounded_as_by_a_loop_and_as_by_torchao(bits: int, group: int | None) -> None:
    weight = torch.randn(6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(bits)) * 3
    weight[0], weight[1, 0], weight[2] = 0.0, weight[1].abs().max() * 2, -weight[3].abs()
    sure = ~at_an_end(weight, group)
    made = fake_quantise(weight, bits, group)
    torch.testing.assert_close(made[sure], slowly(weight, bits, group)[sure], rtol=1e-12, atol=1e-12)
    ends = 2 ** (bits - 1) - 1, 2 ** (bits - 1)  # the largest lies half a step from two of them
    step = weight.abs()[~sure] / (2 ** (bits - 1) - 0.5)
    assert all(
        min(abs(v / s - e) for e in ends) < 1e-9 for v, s in zip(made[~sure].abs().tolist(), step.tolist(), strict=True)
    )
    how: dict[str, Any] = {"group_size": group} if group else {"granularity": "per_channel"}
    theirs = qat.IntxFakeQuantizer(qat.IntxFakeQuantizeConfig(TORCHAO[bits], **how))
    mine, other = (weight.float().requires_grad_() for _ in range(2))
    upstream = torch.randn(6, 16)
    for made in (fake_quantise(mine, bits, group), theirs(other)):
        made.backward(upstream)
    assert mine.grad is not None and other.grad is not None
    torch.testing.assert_close(fake_quantise(mine, bits, group)[sure], theirs(other)[sure])
    torch.testing.assert_close(mine.grad[sure], other.grad[sure])
    passed = (mine.grad == upstream).float().mean()
    assert 0.5 < passed <= 1 and bool((mine.grad[mine.grad != upstream] == 0).all())


def at_an_end(weight: Tensor, group: int | None) -> Tensor:
    """The largest weights: exactly between two steps, so that rounding errors of the division decide."""
    groups = weight.unflatten(1, (-1, group or weight.shape[1])).abs()
    return ((groups == groups.amax(-1, keepdim=True)) & (groups > 0)).flatten(1)


def test_the_gradient_ends_at_the_ends() -> None:
    """By hand: 3 bits, -4 to 3, step 6/7: 3 is 3.5 steps, which is rounded to 4 and cut to 3."""
    weight = torch.tensor([[-2.9, 0.3, 1.0, 3.0]], dtype=torch.float64, requires_grad=True)
    made = fake_quantise(weight, 3)
    torch.testing.assert_close(made.detach(), torch.tensor([[-3, 0, 1, 3]], dtype=torch.float64) * 6 / 7)
    made.sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [[1.0, 1.0, 1.0, 0.0]]


def test_tokens_are_rounded_as_by_torchao() -> None:
    theirs = qat.IntxFakeQuantizer(qat.IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False))
    states = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
    states[0, 0], states[0, 1], states[0, 2] = states[0, 0].abs(), -states[0, 1].abs(), 0.0
    mine, other = states.clone().requires_grad_(), states.clone().requires_grad_()
    upstream = torch.randn_like(states)
    fake_quantise_tokens(mine).backward(upstream)
    theirs(other).backward(upstream)
    torch.testing.assert_close(fake_quantise_tokens(mine), theirs(other))
    torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.parametrize(("bits", "group"), SHAPES)
def test_rounded_weights_lie_on_a_grid_that_is_found_again(bits: int, group: int | None) -> None:
    """The largest of a row lies on an end of the range, so that what is exported in few bits is what was trained."""
    weight = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    rounded = fake_quantise(weight, bits, group)
    torch.testing.assert_close(from_grid(*on_grid(rounded, Grid(bits, group))), rounded, rtol=1e-6, atol=0)
    assert len(rounded[0].unique()) <= 2**bits * (16 // (group or 16))


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="groups of 5 do not divide 16 inputs"):
        fake_quantise(torch.zeros(2, 16), 4, 5)
    with pytest.raises(UserError, match="groups of 5 do not divide the 32 inputs of bert"):
        Quantise(group=5).apply(tiny("bert"))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("activations", [False, True])
def test_what_is_exported_answers_as_what_was_trained(name: str, activations: bool, tmp_path: Path) -> None:
    model, change = tiny(name), Quantise(bits=4, embedding=8, head=None, activations=activations)
    plain = answer(model)
    names = {it for it, _ in model.named_parameters()}
    change.apply(model)
    assert {it for it, _ in model.named_parameters()} == names
    trained, small = answer(model), Compressed()
    assert not torch.allclose(trained, plain, atol=1e-3)
    folded = change.fold(copy.deepcopy(model), small)
    assert all(type(layer).__module__.startswith(("torch.", "transformers.")) for layer in folded.modules())
    if not activations:  # rounding of activations is no weight
        torch.testing.assert_close(answer(folded), trained, rtol=1e-12, atol=1e-12)
    folded.save_pretrained(tmp_path)
    compressed.write(tmp_path, small)
    kind = AutoModelForCausalLM if name in CAUSAL else AutoModelForMaskedLM
    again = kind.from_pretrained(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(answer(again), answer(folded), rtol=0, atol=0)
    assert compressed.read(tmp_path).quantised == small.quantised and len(small.quantised) > 6


def answer(model: PreTrainedModel) -> Tensor:
    ids = torch.randint(3, 90, (2, 6), generator=torch.Generator().manual_seed(0))
    tapped = Tapped(model.eval())
    with torch.no_grad():
        return tapped({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["logits"]


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_what(name: str) -> None:
    """Every layer is one of three; a head that is tied to the embedding is as the embedding is."""
    model = tiny(name)
    parts = {it: part_of(model, it) for it in matrices(model)}
    tied = [it for it, layer in model.named_modules() if layer is model.get_output_embeddings()]
    assert model.config.tie_word_embeddings == (parts[tied[0]] == "embedding")
    assert {it for it, part in parts.items() if not part} == {
        it for it in parts if "position" in it or "type_emb" in it or it.endswith("wpe")
    }
    inside = {it for it, part in parts.items() if part == "layer"}
    assert all(".0." in it or ".1." in it or ".2." in it or "embeddings_project" in it for it in inside)
    assert len(inside) == {"gpt2": 12, "modernbert": 12, "llama": 21, "qwen3": 21}.get(name, 18) + (name == "electra")


def test_parts_apart_and_layers_left_out() -> None:
    model = tiny("bert")
    grids = Quantise(bits=4, embedding=8, head=None, skip=("intermediate",)).chosen(model)
    assert {grid.bits for name, grid in grids.items() if ".layer." in name} == {4}
    assert not any("intermediate" in name for name in grids) and not any("transform" in name for name in grids)
    tied = {name: grid.bits for name, grid in grids.items() if ".layer." not in name}
    assert tied == {"bert.embeddings.word_embeddings": 8, "cls.predictions.decoder": 8}


def test_the_gradient_goes_straight_through_to_every_layer() -> None:
    model = tiny("bert")
    Quantise(bits=2, embedding=2, head=2, activations=True).apply(model)
    tapped = Tapped(model.train())
    ids = torch.randint(3, 90, (2, 6), generator=torch.Generator().manual_seed(0))
    tapped({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["logits"].square().sum().backward()
    for name, layer in matrices(model).items():
        assert layer.weight.grad is not None and bool(layer.weight.grad.any()), name


def test_settled_layers_are_those_of_before() -> None:
    model = tiny("gpt2")
    before = {name: type(layer) for name, layer in model.named_modules()}
    Quantise().apply(model)
    assert {name: type(layer) for name, layer in model.named_modules() if "maps" not in name} != before
    settle(model)
    assert {name: type(layer) for name, layer in model.named_modules()} == before
    assert isinstance(model.get_output_embeddings(), nn.Linear)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_converted_by_torchao_it_is_what_was_trained() -> None:
    """A linear layer trained so, and one that torchao converts from the same weights, give the same."""
    quantization = pytest.importorskip("torchao.quantization")
    layer = nn.Sequential(nn.Linear(32, 8))
    states = torch.randn(4, 32)
    for bits in (8, 4, 2):
        theirs = copy.deepcopy(layer)
        how = quantization.IntxWeightOnlyConfig(weight_dtype=TORCHAO[bits], granularity=quantization.PerAxis(0))
        quantization.quantize_(theirs, how)
        mine = copy.deepcopy(layer[0])
        derive(mine, WeightQuantiser(bits, None))
        torch.testing.assert_close(theirs(states), mine(states))
