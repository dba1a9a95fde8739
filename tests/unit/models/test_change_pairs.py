"""Changes together: factors, cut units and rounded weights of one student, exported as it was trained."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import CONFIGS, tiny
from torch import Tensor, nn
from transformers import PreTrainedModel

from limbeck.models.changes.cubic import Cuts
from limbeck.models.changes.factorise import Factorise
from limbeck.models.changes.prune import Magnitude
from limbeck.models.changes.quantise import Quantise
from limbeck.models.changes.sizes import Shares
from limbeck.models.changes.units import Units
from limbeck.models.compressed import Compressed, from_grid, on_grid
from limbeck.models.taps import Tapped

pytest.importorskip("torchao", reason="needs torchao")
QUICK = ("bert", "gpt2", "llama")
UNITS = [{"neurons": 0.5}, {"hidden": 0.25}, {"layers": 0.34}]
ROOT_MEAN = {"llama", "qwen3"}  # transformers computes these norms in fp32


def answer(model: PreTrainedModel) -> Tensor:
    ids = torch.randint(3, 90, (4, 9), generator=torch.Generator().manual_seed(0))
    return Tapped(model.eval())({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["logits"]


@pytest.mark.parametrize("what", UNITS, ids=str)
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
@torch.no_grad()
def test_all_three_are_exported_as_they_were_trained(name: str, what: dict[str, Any]) -> None:
    model, small = tiny(name), Compressed()
    before = sum(p.numel() for p in model.parameters())
    changes = [Factorise(share=0.6), Units(Shares(**what)), Quantise(bits=8)]
    for change in changes:
        change.apply(model)
    trained, folded = answer(model), copy.deepcopy(model)
    for change in reversed(changes):
        folded = change.fold(folded, small)
    near = {"rtol": 1e-5, "atol": 1e-5} if name in ROOT_MEAN else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(answer(folded), trained, **near)
    assert sum(p.numel() for p in folded.parameters()) < before and len(small.factors) > 8
    for path, (down, up) in small.factors.items():
        layer = folded.get_submodule(path)
        whole = down @ up.mT if isinstance(layer, nn.Embedding) else up @ down
        weight = layer.weight.mT if name == "gpt2" and not isinstance(layer, nn.Embedding) else layer.weight
        torch.testing.assert_close(whole, weight, rtol=1e-12, atol=1e-12)
        for part, tensor in (("down", down), ("up", up)):
            again = from_grid(*on_grid(tensor, small.quantised[f"{path}.{part}"]))
            torch.testing.assert_close(again.double(), tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", QUICK)
@torch.no_grad()
def test_a_zero_stays_zero_when_it_is_rounded(name: str) -> None:
    model, small = tiny(name), Compressed()
    changes = [Magnitude(Cuts(), 0.5), Quantise(bits=4)]
    for change in changes:
        change.apply(model)
    trained, folded = answer(model), copy.deepcopy(model)
    for change in reversed(changes):
        folded = change.fold(folded, small)
    torch.testing.assert_close(answer(folded), trained, rtol=1e-10, atol=1e-10)
    for path in small.pruned:
        assert (folded.get_submodule(path).weight == 0).double().mean() >= 0.5
