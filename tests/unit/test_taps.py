"""Taps against transformers' own `output_hidden_states` and eager `output_attentions`, for every family, with padding."""

from __future__ import annotations

import copy

import pytest
import torch
from families import CAUSAL, CONFIGS, tiny

from limbeck import attention
from limbeck.errors import UserError
from limbeck.taps import Tapped

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
