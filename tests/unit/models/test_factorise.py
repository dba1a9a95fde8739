"""Low rank: the mathematics against closed forms in fp64, every family, what is trained and what is exported."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from families import CAUSAL, CONFIGS, tiny
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from limbeck.errors import UserError
from limbeck.models import compressed
from limbeck.models.changes import low_rank
from limbeck.models.changes.factored import FactoredLinear, TiedHead
from limbeck.models.changes.factorise import Factorise, rank_of_energy, rank_of_share
from limbeck.models.changes.quantise import Quantise, part_of
from limbeck.models.compressed import Compressed
from limbeck.models.taps import Tapped

FULL = 32  # no matrix of the tiny models has a larger rank


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
def test_the_error_is_what_is_left_of_the_singular_values(shape: tuple[int, int]) -> None:
    weight = drawn(*shape)
    values = torch.linalg.svdvals(weight)
    for rank in range(1, 1 + min(shape)):
        up, down = low_rank(weight, rank)
        assert up.shape == (shape[0], rank) and down.shape == (rank, shape[1])
        assert torch.linalg.matrix_norm(weight - up @ down) == pytest.approx(
            float(values[rank:].square().sum().sqrt()), abs=1e-12
        )
        torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1))  # the scale is shared
    torch.testing.assert_close(up @ down, weight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("inputs", [40, 3])  # 3: fewer than there are columns, so that G is singular
def test_with_moments_the_error_of_the_outputs_is_the_least(inputs: int) -> None:
    weight, states = drawn(6, 5), drawn(5, inputs, seed=1) * torch.tensor([[10.0], [3], [1], [0.3], [0.1]])
    moments = states @ states.mT
    up, down = low_rank(weight, 2, moments)
    plain = low_rank(weight, 2)
    mine, theirs = (torch.linalg.matrix_norm((weight - a @ b) @ states) for a, b in ((up, down), plain))
    assert mine < theirs
    best = torch.linalg.svdvals(weight @ states)[2:].square().sum().sqrt()  # of any matrix of rank 2
    assert mine == pytest.approx(float(best), abs=1e-3 if inputs == 3 else 1e-9)
    full = low_rank(weight, 5, moments)
    torch.testing.assert_close(full[0] @ full[1], weight, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("rank", [0, 6])
def test_a_rank_that_no_matrix_has_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=f"has no rank {rank}"):
        low_rank(drawn(5, 7), rank)


def test_ranks() -> None:
    """By hand: 10 x 20, of whose 200 parameters 90 are 3 x 30; singular values 3, 2, 1 have squares 9, 4, 1."""
    values = torch.tensor([3.0, 2, 1], dtype=torch.float64)
    assert rank_of_share(10, 20, 0.45) == 3 and rank_of_share(10, 20, 0.44) == 2
    assert [rank_of_energy(values, energy) for energy in (0.6, 9 / 14, 0.65, 0.93, 0.99)] == [1, 1, 2, 3, 3]
    with pytest.raises(UserError, match="rank 31 makes no matrix smaller; the largest that does is"):
        Factorise(rank=31).chosen(tiny("bert"))


def answer(model: PreTrainedModel) -> Tensor:
    tapped = Tapped(model.eval())
    with torch.no_grad():
        return tapped(batch())["logits"]


def batch(seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(3, 90, (4, 9), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("by", ["weights", "activations"])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_exported_answers_as_what_was_trained(name: str, by: str, tmp_path: Path) -> None:
    """In fp64 to 1e-12; and the factors beside it are those of the matrices."""
    model = tiny(name)
    before, names = sum(p.numel() for p in model.parameters()), {it: type(layer) for it, layer in model.named_modules()}
    change = Factorise(share=0.5, text=None if by == "weights" else lambda: [batch(1), batch(2)])
    change.apply(model)
    assert sum(p.numel() for p in model.parameters()) < 0.8 * before and model.training is False
    trained, small = answer(model), Compressed()
    folded = change.fold(copy.deepcopy(model), small)
    assert {it: type(layer) for it, layer in folded.named_modules()} == names
    torch.testing.assert_close(answer(folded), trained, rtol=1e-12, atol=1e-12)
    assert len(small.factors) > 6 and f"holds {len(small.factors)} matrices" in change.said()
    folded.save_pretrained(tmp_path)
    compressed.write(tmp_path, small)
    kind = AutoModelForCausalLM if name in CAUSAL else AutoModelForMaskedLM
    again = kind.from_pretrained(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(answer(again), trained, rtol=1e-12, atol=1e-12)
    for layer, (down, up) in compressed.read(tmp_path).factors.items():
        module = again.get_submodule(layer)
        weight, table = module.weight.detach(), isinstance(module, nn.Embedding)
        product = down @ up.mT if table else up @ down
        expected = weight.mT if name == "gpt2" and not table else weight
        torch.testing.assert_close(product.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_at_full_energy_nothing_changes(name: str) -> None:
    """All singular values: where that saves nothing the matrix stays; elsewhere it is the same to rounding."""
    model, plain = tiny(name), tiny(name)
    with torch.no_grad():
        for layer in (model, plain):
            for path in [it for it in Factorise(rank=4).chosen(layer) if not it.endswith("wte")][:5]:
                weight = layer.get_submodule(path).weight
                up, down = low_rank(weight, 4)
                weight.copy_(up @ down)
    change = Factorise(energy=1 - 1e-9)
    change.apply(model)
    assert {len(p) for it, p in model.named_parameters() if it.endswith("down.weight") and "emb" not in it} == {4}
    torch.testing.assert_close(answer(model), answer(plain), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_factor_is_trained(name: str) -> None:
    model = tiny(name)
    change = Factorise(share=0.5)
    change.apply(model)
    Tapped(model.train())(batch())["logits"].square().sum().backward()
    parts = [(it, p) for it, p in model.named_parameters() if ".down." in it or ".up." in it]
    assert len(parts) > 12
    assert all(p.grad is not None and bool(p.grad.any()) for _, p in parts)


def test_a_tied_head_uses_the_factors_of_the_embedding() -> None:
    model = tiny("bert")
    Factorise(rank=4, layers=False).apply(model)
    assert isinstance(model.cls.predictions.decoder, TiedHead)
    assert not any(
        "decoder" in name and name.endswith(("weight", "up", "down")) for name, _ in model.named_parameters()
    )
    alone = copy.deepcopy(model)
    with torch.no_grad():  # a copy is tied to its own embedding
        alone.get_submodule("bert.embeddings.word_embeddings").down.weight.zero_()
    bias = alone.cls.predictions.decoder.bias
    torch.testing.assert_close(answer(alone), bias.detach().expand(4, 9, -1))
    assert not torch.equal(answer(model), answer(alone))


def test_quantised_behind_it_the_factors_lie_on_a_grid() -> None:
    pytest.importorskip("torchao", reason="needs torchao")
    model, changes, small = tiny("bert"), (Factorise(share=0.5), Quantise(bits=4, embedding=8)), Compressed()
    for change in changes:
        change.apply(model)
    assert part_of(model, "bert.embeddings.word_embeddings.up") == "embedding"
    trained, folded = answer(model), copy.deepcopy(model)
    for change in reversed(changes):
        folded = change.fold(folded, small)
    torch.testing.assert_close(answer(folded), trained, rtol=1e-12, atol=1e-12)
    assert isinstance(model.get_submodule("bert.encoder.layer.0.output.dense"), FactoredLinear)
    for name, (down, up) in small.factors.items():
        for part, tensor in (("down", down), ("up", up)):
            grid = small.quantised[f"{name}.{part}"]
            assert grid.bits == (8 if "word" in name else 4)
            again = compressed.from_grid(*compressed.on_grid(tensor, grid))
            torch.testing.assert_close(again.double(), tensor, rtol=1e-5, atol=1e-6)
