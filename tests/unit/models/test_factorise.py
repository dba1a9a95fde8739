"""Students with factorised layers: what is exported, which layers, by activations, in training, in company."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from families import CAUSAL, CONFIGS, tiny
from kernel import MULTI, batch, bert, frozen, learner, share, still_of, tokenizer
from torch import Tensor, nn

from limbeck.distil.learner import Learner
from limbeck.distil.teachers import Ema
from limbeck.errors import UserError
from limbeck.models import compressed
from limbeck.models.changes import Change, factored, layers, low_rank, quantise
from limbeck.models.changes.factorise import Factorise, Spectrum
from limbeck.models.changes.moments import moments
from limbeck.models.compressed import Compressed
from limbeck.models.taps import Tapped
from limbeck.training import checkpoint, export
from limbeck.training.best import Best


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def asked(seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(3, 100, (3, 8), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[1, 5:] = mask[2, 3:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def text() -> Callable[[], list[dict[str, Tensor]]]:
    return lambda: [asked(seed) for seed in range(3)]


def logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return Tapped(model)(batch)["logits"][batch["attention_mask"].bool()]


def folded(model: Any, *changes: Change) -> tuple[Any, Compressed]:
    small, model = Compressed(), copy.deepcopy(model)
    for change in reversed(changes):
        model = change.fold(model, small)
    return model.eval(), small


@pytest.mark.parametrize("by", ["weights", "activations"])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_exported_answers_as_what_is_trained(name: str, by: str, tmp_path: Path) -> None:
    """Of every family: fewer parameters, ties kept, modules and names again as they were; transformers reads the folder."""
    plain, given = tiny(name), asked()
    model, one = copy.deepcopy(plain), Factorise(share=0.5, head=True, text=text() if by == "activations" else None)
    one.apply(model)
    shapes = [[(n, p.shape, p.dtype) for n, p in it.named_parameters()] for it in (plain, model)]
    assert sum(s.numel() for _, s, _ in shapes[1]) < 0.8 * sum(s.numel() for _, s, _ in shapes[0])
    before = logits(model, given)
    dense, small = folded(model, one)
    torch.testing.assert_close(logits(dense, given), before, rtol=0, atol=1e-12)
    assert not torch.allclose(before, logits(plain, given), atol=1e-3)
    assert [type(it) for it in dense.modules()] == [type(it) for it in plain.modules()]
    assert [(n, p.shape, p.dtype) for n, p in dense.named_parameters()] == shapes[0]
    dense.save_pretrained(tmp_path)
    kind: Any = tf.AutoModelForCausalLM if name in CAUSAL else tf.AutoModelForMaskedLM
    read = kind.from_pretrained(tmp_path, dtype=torch.float64).eval()
    with torch.no_grad():
        said = read(**given).logits[given["attention_mask"].bool()]
    torch.testing.assert_close(said, before, rtol=0, atol=1e-12)
    for place, (down, up) in small.factors.items():
        layer = read.get_submodule(place)
        product = down @ up.mT if isinstance(layer, nn.Embedding) else up @ down
        weight = layers.outputs_first(layer)
        torch.testing.assert_close(product, weight.detach(), rtol=0, atol=1e-12)
    assert len(small.factors) == len(one.chosen(plain))


@pytest.mark.parametrize("name", CONFIGS)
def test_near_full_rank_is_the_model(name: str) -> None:
    """Of random matrices almost all energy is in all ranks; factors of full rank are put there by hand."""
    model, given = tiny(name), asked()
    before = logits(model, given)
    for layer in Factorise(energy=0.5).chosen(model).values():
        weight = _weight(layer)
        heads = [it for it in model.modules() if it is not layer and getattr(it, "weight", 0) is layer.weight]
        factored.factor(layer, *Spectrum.of(weight).cut(min(weight.shape)))
        for head in heads:
            factored.tie(head, layer)
    torch.testing.assert_close(logits(model, given), before, rtol=0, atol=1e-12)
    assert any(isinstance(it, factored.TiedHead) for it in model.modules()) == model.config.tie_word_embeddings


@pytest.mark.parametrize("name", CONFIGS)
def test_every_factor_is_reached_by_gradients(name: str) -> None:
    model, given = tiny(name), asked()
    Factorise(share=0.5).apply(model)
    Tapped(model.train())(given)["logits"].square().sum().backward()
    parts = [p for it, p in model.named_parameters() if ".down." in it or ".up." in it]
    assert len(parts) > 12 and all(p.grad is not None and bool(p.grad.any()) for p in parts)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_shapes_are_known_before_there_are_weights(name: str) -> None:
    """What is outlined on the meta device is what is exported."""
    model, one, outlined = tiny(name), Factorise(share=0.5), Compressed()
    one.outline(copy.deepcopy(model).to("meta"), outlined)
    one.apply(model)
    _, small = folded(model, one)
    shapes = [{name: (a.shape, b.shape) for name, (a, b) in it.factors.items()} for it in (outlined, small)]
    assert shapes[0] == shapes[1]


def test_a_tied_head_uses_the_factors_of_the_embedding() -> None:
    """logits = (h up) down' + b; nothing is there twice, and gradients of both uses meet in the same two factors."""
    model = bert(16, 2, seed=0)
    bias = model.cls.predictions.bias
    Factorise(rank=5, layers=False).apply(model)
    table, head = model.bert.embeddings.word_embeddings, model.cls.predictions.decoder
    assert isinstance(table.down, nn.Embedding) and table.down.weight.shape == (60, 5)
    assert isinstance(table.up, nn.Linear) and table.up.weight.shape == (16, 5) and table.up.bias is None
    assert table.down.padding_idx == 0 and head.bias is bias
    states = drawn(4, 16)
    torch.testing.assert_close(head(states), states @ table.product().mT + bias, rtol=0, atol=1e-12)
    names = [name for name, _ in model.named_parameters()]
    assert sum("word_embeddings" in name for name in names) == 2 and not any("decoder.weight" in n for n in names)
    head(states).sum().backward()
    assert table.down.weight.grad.abs().sum() > 0 and table.up.weight.grad.abs().sum() > 0
    copied = copy.deepcopy(model)
    assert copied.cls.predictions.decoder.table is copied.bert.embeddings.word_embeddings
    dense, _ = folded(model, Factorise(rank=5))
    assert dense.cls.predictions.decoder.weight is dense.bert.embeddings.word_embeddings.weight
    assert dense.cls.predictions.decoder.bias is dense.cls.predictions.bias


def test_which_layers() -> None:
    """Layers before the last state and the embedding; what stands behind it only when it is said."""
    names = {key: set(Factorise(share=0.5, **how).chosen(bert(16, 2, seed=0, tied=False))) for key, how in HOW.items()}
    table = "bert.embeddings.word_embeddings"
    layers = {name for name in names["plain"] if name.startswith("bert.encoder.layer.")}
    assert names["plain"] == {table, *layers} and len(layers) == 12
    assert names["layers"] == layers and names["embedding"] == {table}
    assert names["head"] == {*names["plain"], "cls.predictions.transform.dense", "cls.predictions.decoder"}
    assert names["skip"] == {table, *(it for it in layers if "intermediate" in it or "layer.1.output" in it)}
    tied = bert(16, 2, seed=0)
    assert set(Factorise(share=0.5).chosen(tied)) == names["plain"]
    assert set(Factorise(share=0.5, skip=("decoder",)).chosen(tied)) == layers, "a head that stays keeps its embedding"


HOW: dict[str, dict[str, Any]] = {
    "plain": {},
    "layers": {"embedding": False},
    "embedding": {"layers": False},
    "head": {"head": True},
    "skip": {"skip": ("attention", "layer.0.output")},
}


def test_each_layer_has_the_rank_that_was_asked_for() -> None:
    model = bert(16, 2, seed=0)
    weights = {name: _weight(it) for name, it in Factorise(energy=0.5).chosen(model).items()}
    one = Factorise(energy=0.85)
    one.apply(model)
    sizes = []
    for name, weight in weights.items():
        squares = torch.linalg.svdvals(weight).square()
        rank = next(r for r in range(1, 17) if squares[:r].sum() >= 0.85 * squares.sum())
        layer = model.get_submodule(name)
        if rank * sum(weight.shape) < weight.numel():
            assert isinstance(layer, factored.Factored) and layer.up.weight.shape[1] == rank
            sizes.append((weight.numel(), rank * sum(weight.shape)))
        else:
            assert type(layer) is nn.Linear, "factors would not be smaller"
    assert 0 < len(sizes) < len(weights)
    before, after = (sum(column) for column in zip(*sizes, strict=True))
    assert one.said() == (
        f"holds {len(sizes)} matrices as products of two: {after:,} parameters in place of {before:,}"
    )
    assert one.facts() == {
        "factorise": {
            "energy": 0.85,
            "by": "weights",
            "embedding": True,
            "layers": True,
            "head": False,
            "skip": [],
        }
    }


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"rank": 400}, "rank 400 makes no matrix smaller; the largest that does is 12"),
        ({"share": 0.01}, "a share of 0.01 leaves no matrix a rank of 1; raise it to 0.08 or more"),
        ({"share": 0.5, "skip": ("bert",)}, "no layer is left; set embedding, layers or head to true, or shorten skip"),
        ({"energy": 0.9999}, "an energy of 0.9999 makes no matrix smaller; lower it"),
    ],
)
def test_what_makes_nothing_smaller_is_refused(how: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Factorise(**how).apply(bert(16, 2, seed=0, noise=1.0))


def test_what_is_said_to_be_enough_is_enough() -> None:
    assert Factorise(rank=12).chosen(bert(16, 2, seed=0)) and Factorise(share=0.08).chosen(bert(16, 2, seed=0))


# by activations


def test_moments_are_those_of_what_layers_are_given() -> None:
    """Against the hidden states that transformers tells; padding is left out, the model is left as it was."""
    model = tiny("bert").train()
    names = ["bert.encoder.layer.1.attention.self.query", "cls.predictions.transform.dense"]
    layers = {name: model.get_submodule(name) for name in names}
    found = moments(model, layers, text()(), head=True)
    expected = dict.fromkeys(names, torch.zeros(32, 32, dtype=torch.float64))
    assert model.training and not any(it._forward_pre_hooks for it in model.modules())
    model.eval()
    for one in text()():
        with torch.no_grad():
            states = model(**one, output_hidden_states=True).hidden_states
        for name, place in zip(names, (1, 3), strict=True):
            rows = states[place][one["attention_mask"].bool()]
            expected[name] = expected[name] + rows.mT @ rows
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-10)


def test_piece_by_piece_moments_are_the_same() -> None:
    """Models of `chunk_size_feed_forward` give a layer a few positions at a time."""
    whole, pieces = tiny("bert"), tiny("bert")
    for layer in pieces.bert.encoder.layer:
        layer.chunk_size_feed_forward = 2
    name = "bert.encoder.layer.1.intermediate.dense"
    one, other = (moments(it, {name: it.get_submodule(name)}, text()())[name] for it in (whole, pieces))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_layer_that_the_text_does_not_reach_is_factorised_by_its_weights() -> None:
    model, plain = tiny("bert"), tiny("bert")
    name = "cls.predictions.transform.dense"
    assert not moments(model, {name: model.get_submodule(name)}, text()()), "the head is not asked"
    Factorise(rank=4, text=tuple).apply(model)
    for place, layer in Factorise(rank=4).chosen(plain).items():
        torch.testing.assert_close(model.get_submodule(place).product(), torch.mm(*low_rank(_weight(layer), 4)))


def _weight(layer: nn.Module) -> Tensor:
    return layers.outputs_first(layer).detach()


def test_by_activations_a_layer_errs_less_on_the_text() -> None:
    """Layer for layer, on what the plain model gives it."""
    plain = tiny("llama")
    name = "model.layers.2.self_attn.o_proj"
    seen = moments(plain, {name: plain.get_submodule(name)}, text()())[name]
    weight, errors = _weight(plain.get_submodule(name)), []
    for how in (None, text()):
        model = copy.deepcopy(plain)
        Factorise(rank=6, embedding=False, text=how).apply(model)
        off = weight - model.get_submodule(name).product()
        errors.append((off @ seen * off).sum())
    tail = torch.linalg.svdvals(weight @ torch.linalg.cholesky(seen))[6:].square().sum()
    torch.testing.assert_close(errors[1], tail, rtol=1e-8, atol=0)
    assert errors[1] < errors[0] * 0.9


# in training


def changed(*changes: Change, at_end: bool = False) -> Learner:
    """A student of the tests with changes, as the study makes it."""
    plain = learner("multi-seed0", MULTI)
    model = bert(16, 2, seed=0)
    for change in () if at_end else changes:
        change.apply(model)
    how: dict[str, Any] = {"finishing" if at_end else "changes": changes}
    return Learner(
        plain.name,
        model,
        list(plain.tapped.taps),
        seed=0,
        modules=plain.modules,
        optimisation=plain.optimisation,
        **how,
    )


def train(one: Learner, steps: int = 2, start: int = 0) -> Learner:
    still = still_of(frozen(), [(one, MULTI)], chunk=16)
    for step in range(start, steps):
        still.step(share([batch(step)]), step)
    return one


def test_both_factors_are_trained_and_a_checkpoint_holds_them(tmp_path: Path) -> None:
    """Optimizer, average and best weights know the factors; what is read back goes on to the same bits."""
    one = changed(Factorise(share=0.5))
    start = {name: p.detach().clone() for name, p in one.model.named_parameters()}
    average, best = Ema("average", one, ["logits"], 0.5), Best(one)
    train(one)
    place = "bert.encoder.layer.0.attention.self.query"
    for name in (f"{place}.down.weight", f"{place}.up.weight", "bert.embeddings.word_embeddings.up.weight"):
        assert not torch.equal(dict(one.model.named_parameters())[name], start[name])
        assert name in dict(average.model.named_parameters()) and f"model.{name}" in best.state()
    best.take()
    checkpoint.save(tmp_path, 2, [one, best], {})
    again = changed(Factorise(share=0.5))
    others = [again, Best(again)]
    checkpoint.restore(tmp_path / "step-000002", others)
    train(one, 4, 2), train(again, 4, 2)
    for mine, theirs in zip((one, best), others, strict=True):
        assert mine.state().keys() == theirs.state().keys()
        assert all(torch.equal(it, theirs.state()[name]) for name, it in mine.state().items())


def test_at_the_end_is_after() -> None:
    """What is made when it has been trained is what is made of the plain student that was trained; that stays whole."""
    late, plain = train(changed(Factorise(share=0.5), at_end=True)), train(changed())
    before = {name: p.clone() for name, p in late.model.state_dict().items()}
    with late.finished():
        said = logits(late.model, batch())
        dense, small = late.folded()
        torch.testing.assert_close(logits(dense, batch()), said, rtol=0, atol=1e-12)
    Factorise(share=0.5).apply(plain.model)
    torch.testing.assert_close(said, logits(plain.model, batch()), rtol=0, atol=0)
    assert small.factors and all(torch.equal(it, before[name]) for name, it in late.model.state_dict().items())


def test_what_is_exported_says_its_factors(tmp_path: Path) -> None:
    one = train(changed(Factorise(share=0.5)))
    folder = export.export(tmp_path, one, tokenizer(), "card")
    said = compressed.read(folder)
    read = tf.AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float64)
    assert len(said.factors) == 13 and not said.quantised
    for name, (down, up) in said.factors.items():
        layer = one.model.get_submodule(name)
        assert torch.equal(down, layer.down.weight.float()) and torch.equal(up, layer.up.weight.float())
        product = down @ up.mT if "word" in name else up @ down
        torch.testing.assert_close(product, read.get_submodule(name).weight.float().detach(), rtol=1e-5, atol=1e-5)


# in company


def test_parts_are_layers_of_their_own_kind() -> None:
    """So that a later change finds them: of the embedding, which its tied head goes with, of a head, and of layers."""
    model = bert(16, 2, seed=0)
    Factorise(share=0.5, head=True).apply(model)
    found = {name: layers.part_of(model, name) for name in layers.matrices(model)}
    assert found["bert.embeddings.word_embeddings.down"] == found["bert.embeddings.word_embeddings.up"] == "embedding"
    assert found["bert.encoder.layer.0.output.dense.down"] == found["bert.encoder.layer.0.output.dense.up"] == "layer"
    assert found["cls.predictions.transform.dense.down"] == "head" and "cls.predictions.decoder" not in found
    assert not any(name.endswith("word_embeddings") for name in found)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_factors_are_quantised(name: str) -> None:
    """A later change works on the parts; what is exported is the product of what they were rounded to."""
    pytest.importorskip("torchao")
    model, given = tiny(name), asked()
    changes = [Factorise(share=0.5), quantise.Quantise(bits=8, embedding=4, head=8)]
    for change in changes:
        change.apply(model)
    before = logits(model, given)
    dense, small = folded(model, *changes)
    torch.testing.assert_close(logits(dense, given), before, rtol=0, atol=1e-12)
    place, bits = next((it, 4) for it in small.factors if "w" in it.split(".")[-1] or "embed" in it)
    assert small.quantised[f"{place}.down"].bits == small.quantised[f"{place}.up"].bits == bits
    for where, pair in small.factors.items():
        for part, value in zip(("down", "up"), pair, strict=True):
            grid = small.quantised[f"{where}.{part}"]
            trained = model.get_submodule(f"{where}.{part}").weight
            assert torch.equal(value, quantise.fake_quantise(trained, grid.bits, grid.group).detach())
            whole = value / (trained.abs().amax(1, keepdim=True) / ((2**grid.bits - 1) / 2))
            torch.testing.assert_close(whole, whole.round(), rtol=0, atol=1e-9)


def test_two_of_them_share_the_layers() -> None:
    """The second finds what the first left, and never its parts."""
    model = bert(16, 2, seed=0)
    changes = [Factorise(share=0.7, layers=False), Factorise(share=0.3, embedding=False)]
    for change in changes:
        change.apply(model)
    before = logits(model, batch())
    dense, small = folded(model, *changes)
    torch.testing.assert_close(logits(dense, batch()), before, rtol=0, atol=1e-12)
    assert len(small.factors) == 13 and not any(name.endswith((".up", ".down")) for name in small.factors)
    with pytest.raises(UserError, match="no layer is left"):
        Factorise(share=0.5).apply(model)
