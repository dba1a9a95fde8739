"""Taps against transformers' own `output_hidden_states` and eager `output_attentions`, for every family, with padding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import CAUSAL, CONFIGS, tiny
from torch import nn

from limbeck.errors import UserError
from limbeck.families import FAMILIES, width_of
from limbeck.models import attention
from limbeck.models.taps import Readout, Recording, Tapped

DEPTH = 3
EAGER_IN_FP32 = {
    "modernbert",
    "llama",
    "qwen3",
}  # their eager attention takes the softmax in fp32, whatever the model's dtype
TAPS = [
    "embedding",
    *(f"{kind}.{i}" for kind in ("hidden", "query", "key", "value", "scores", "probs") for i in (1, 2, 3)),
    "logits",
]


def batch(padded: bool) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 100, (2, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, 7:] = 0
        ids[1, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("kernel", ["plain", "sdpa"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_transformers(name: str, padded: bool, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel == "sdpa":  # what a GPU and long sequences get
        monkeypatch.setattr(attention, "SHORT", 0)
    inputs = batch(padded)
    kept = inputs["attention_mask"].bool()
    single = name in EAGER_IN_FP32
    dtype, bound = (torch.float32, 2e-5) if single else (torch.float64, 1e-9)
    readout = Tapped(tiny(name, dtype=dtype), TAPS)(inputs)
    expected = tiny(name, "eager", dtype=dtype)(**inputs, output_hidden_states=True, output_attentions=True)

    def close(mine: torch.Tensor, theirs: torch.Tensor) -> None:
        torch.testing.assert_close(mine[kept], theirs[kept], rtol=bound, atol=bound)

    close(readout["logits"], expected.logits)
    close(readout["embedding"], expected.hidden_states[0])
    for layer in range(1, DEPTH + 1):
        close(readout[f"hidden.{layer}"], expected.hidden_states[layer])
        close(readout[f"probs.{layer}"].transpose(1, 2), expected.attentions[layer - 1].transpose(1, 2))


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_are_probs_before_softmax_on_what_is_visible(name: str) -> None:
    readout = Tapped(tiny(name), TAPS)(batch(padded=True))
    for layer in range(1, DEPTH + 1):
        seen = readout.visible(f"scores.{layer}")
        assert not seen[1, 0, :7, 7:].any(), "a padded key is visible"
        if name in CAUSAL:
            assert not seen[0, 0].triu(1).any(), "a later key is visible"
        probabilities = readout[f"scores.{layer}"].masked_fill(~seen, -torch.inf).softmax(-1)
        kept = batch(padded=True)["attention_mask"].bool()
        torch.testing.assert_close(
            probabilities.transpose(1, 2)[kept], readout[f"probs.{layer}"].transpose(1, 2)[kept], rtol=1e-12, atol=1e-12
        )


def test_modernbert_window_is_seen() -> None:
    model = tiny("modernbert")
    local = next(i + 1 for i, kind in enumerate(model.config.layer_types) if kind == "sliding_attention")
    seen = Tapped(model, [f"scores.{local}"])(batch(padded=False)).visible(f"scores.{local}")
    assert not seen[0, 0, 0, 10] and seen[0, 0, 0, 1]


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_flow_through_every_tap(name: str) -> None:
    model = tiny(name)
    readout = Tapped(model, TAPS)(batch(padded=False))
    for tap in ("embedding", "hidden.2", "query.1", "scores.2", "probs.3", "logits"):
        grads = torch.autograd.grad(
            readout[tap].square().sum(), list(model.parameters()), retain_graph=True, allow_unused=True
        )
        assert any(g is not None and g.abs().sum() > 0 for g in grads), tap


def test_nothing_stays_behind() -> None:
    model = tiny("bert")
    tapped = Tapped(model, TAPS)
    readout = tapped(batch(False))
    before = readout["hidden.2"].clone()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert sum(hooks) == 0
    copied = copy.deepcopy(model)
    copied(**batch(True))
    model(**batch(True))
    torch.testing.assert_close(readout["hidden.2"], before, rtol=0, atol=0)
    assert "limbeck" not in str(model.config.to_dict())


def test_activation_checkpointing_records_once_and_keeps_gradients() -> None:
    plain, checkpointed = tiny("llama").train(), tiny("llama").train()
    checkpointed.activation_checkpointing_enable({"use_reentrant": False})
    grads = []
    for model in (plain, checkpointed):
        readout = Tapped(model, TAPS)(batch(False))
        loss = (
            readout["hidden.2"].square().sum() + readout["scores.2"].square().sum() + readout["logits"].square().mean()
        )
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-10, atol=1e-10)
    checkpointed.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(UserError, match="reentrant"):
        Tapped(checkpointed, TAPS)(batch(False))


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("hiden.1", "did you mean 'hidden'"),
        ("hidden.9", "hidden.0 to hidden.3"),
        ("scores.0", "scores.1"),
        ("hidden.x", "names no layer"),
    ],
)
def test_unknown_taps_are_named(tap: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Tapped(tiny("bert"), [tap])


def test_what_was_not_tapped_is_named() -> None:
    with pytest.raises(KeyError, match=r"hidden\.2 was not tapped"):
        Tapped(tiny("bert"), ["hidden.1"])(batch(False))["hidden.2"]


def test_negative_layers_count_from_the_end() -> None:
    readout = Tapped(tiny("gpt2"), ["hidden.-1", "hidden.3"])(batch(False))
    assert readout["hidden.-1"] is readout["hidden.3"]


# what the feed-forward activation is applied to


def finished(name: str, layer: nn.Module, tap: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """The rest of the feed-forward from its pre-activation on, with transformers' own parts."""
    if name == "distilbert":
        return layer.ffn.lin2(layer.ffn.activation(tap))
    if name == "modernbert":
        return layer.mlp.Wo(layer.mlp.act(tap) * layer.mlp.Wi(given)[..., tap.shape[-1] :])
    if name == "gpt2":
        return layer.mlp.c_proj(layer.mlp.act(tap))
    if name in ("llama", "qwen3"):
        return layer.mlp.down_proj(layer.mlp.act_fn(tap) * layer.mlp.up_proj(given))
    return layer.intermediate.intermediate_act_fn(tap)


def layers_of(name: str, model: nn.Module) -> nn.ModuleList:
    return model.get_submodule(f"{FAMILIES[name].base}.{FAMILIES[name].layers}")


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_ffn_is_what_the_activation_is_applied_to(name: str, padded: bool) -> None:
    """The rest of the feed-forward, applied to the tap, gives what transformers' own run gives."""
    inputs = batch(padded)
    kept = inputs["attention_mask"].bool()
    tapped = Tapped(tiny(name), [f"ffn.{i}" for i in (1, 2, -1)])
    readout, own, passed = tapped(inputs), tiny(name), {}
    where = {"distilbert": "ffn"}.get(name, "intermediate" if name in ("bert", "roberta", "electra") else "mlp")
    layers = layers_of(name, own)
    for number, layer in enumerate(layers, start=1):
        layer.get_submodule(where).register_forward_hook(
            lambda module, args, output, number=number: passed.update({number: (args[0], output)})
        )
    own(**inputs)
    for number, tap in ((1, "ffn.1"), (2, "ffn.2"), (3, "ffn.-1")):
        given, expected = passed[number]
        assert readout[tap].shape == (2, 11, width_of(own.config, "ffn")) == (2, 11, 48)
        assert readout[tap][kept].min() < 0, "before the activation, not behind it"
        found = finished(name, layers[number - 1], readout[tap], given)
        torch.testing.assert_close(found[kept], expected[kept], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_of_ffn_and_pooled_reach_what_is_below(name: str) -> None:
    model = tiny(name)
    readout = Tapped(model, ["ffn.2", "pooled"])(batch(padded=True))
    stacks = [list(layer.parameters()) for layer in layers_of(name, model)]
    for tap, reached in (("ffn.2", 2), ("pooled", 3)):
        for number, stack in enumerate(stacks, start=1):
            grads = torch.autograd.grad(readout[tap].square().sum(), stack, retain_graph=True, allow_unused=True)
            assert any(g is not None and g.abs().sum() > 0 for g in grads) == (number <= reached), (tap, number)


@pytest.mark.parametrize("name", CONFIGS)
def test_ffn_survives_activation_checkpointing(name: str) -> None:
    """With dropout, which is drawn again in the backward."""
    found = []
    for checkpointed in (False, True):
        model = tiny(name).train()
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(5)
        readout = Tapped(model, ["ffn.1", "ffn.3", "pooled"])(batch(padded=True))
        loss = sum(readout[tap].square().mean() for tap in ("ffn.1", "ffn.3", "pooled"))
        loss.backward()
        found.append((loss.detach(), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-12, atol=1e-12)
    pairs = list(zip(found[0][1], found[1][1], strict=True))
    assert sum(mine is not None for mine, _ in pairs) >= 20
    for mine, theirs in pairs:
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "distilbert"])
def test_ffn_holds_every_token_when_the_feed_forward_runs_in_pieces(name: str) -> None:
    """`chunk_size_feed_forward` of a config cuts the tokens into pieces; the numbers are the same."""
    inputs = {key: value[:, :8] for key, value in batch(padded=True).items()}
    whole, pieces = tiny(name), tiny(name)
    for module in pieces.modules():
        if hasattr(module, "chunk_size_feed_forward"):
            module.chunk_size_feed_forward = 4
    expected, found = (Tapped(model, ["ffn.2"])(inputs)["ffn.2"] for model in (whole, pieces))
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# the mean of the last states


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_pooled_is_the_mean_over_attended_tokens(name: str, padded: bool) -> None:
    inputs = batch(padded)
    readout = Tapped(tiny(name), ["pooled"])(inputs)
    last = tiny(name)(**inputs, output_hidden_states=True).hidden_states[-1]
    lengths = inputs["attention_mask"].sum(1).tolist()
    assert lengths == [11, 7 if padded else 11]
    expected = torch.stack([sum(last[row, i] for i in range(n)) / n for row, n in enumerate(lengths)])
    torch.testing.assert_close(readout["pooled"], expected, rtol=1e-9, atol=1e-9)
    unmasked = Tapped(tiny(name), ["pooled"])({"input_ids": inputs["input_ids"]})["pooled"]
    torch.testing.assert_close(unmasked[0], expected[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_does_not_reach_pooled(name: str) -> None:
    """Neither other tokens in it, nor states that are no numbers."""
    inputs = batch(padded=True)
    attended = inputs["attention_mask"].bool()
    others = inputs | {"input_ids": torch.where(attended, inputs["input_ids"], 77)}
    expected = Tapped(tiny(name), ["pooled"])(inputs)["pooled"]
    torch.testing.assert_close(Tapped(tiny(name), ["pooled"])(others)["pooled"], expected, rtol=1e-11, atol=1e-11)

    model, seen = tiny(name), []

    def spoil(module: nn.Module, args: tuple, output: Any) -> Any:
        seen.append(output.last_hidden_state)
        output.last_hidden_state = torch.where(attended[..., None], output.last_hidden_state, torch.nan)
        return output

    model.get_submodule(FAMILIES[name].base).register_forward_hook(spoil)
    pooled = Tapped(model, ["pooled"])(inputs)["pooled"]
    torch.testing.assert_close(pooled, expected, rtol=0, atol=0)
    (slope,) = torch.autograd.grad(pooled.sum(), seen)
    by_hand = attended.double() / attended.sum(1, keepdim=True)
    torch.testing.assert_close(slope, by_hand[..., None].expand_as(slope), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_row_of_padding_has_no_mean(name: str) -> None:
    inputs, alone = batch(padded=False), batch(padded=False)
    inputs["attention_mask"][1] = 0
    model = tiny(name)
    pooled = Tapped(model, ["pooled"])(inputs)["pooled"]
    assert (pooled[1] == 0).all() and (pooled[0] != 0).all()
    first = Tapped(tiny(name), ["pooled"])({key: value[:1] for key, value in alone.items()})["pooled"]
    torch.testing.assert_close(pooled[:1], first, rtol=1e-11, atol=1e-11)
    pooled.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_pooled_adds_up_half_precision_in_fp32() -> None:
    """2,000 tokens: a sum in bf16 would stop growing at 256."""
    states = torch.rand(1, 2000, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    readout = Readout(("pooled",), 1, states, torch.ones(1, 2000), nn.Identity(), Recording({}))
    assert readout["pooled"].dtype == torch.bfloat16
    assert torch.equal(readout["pooled"], states.double().mean(1).bfloat16())


def test_untapped_feed_forward_is_named_and_layer_0_has_none() -> None:
    with pytest.raises(KeyError, match=r"ffn\.2 was not tapped"):
        Tapped(tiny("bert"), ["ffn.1"])(batch(False))["ffn.2"]
    with pytest.raises(UserError, match=r"ffn\.1 to ffn\.3"):
        Tapped(tiny("bert"), ["ffn.0"])
