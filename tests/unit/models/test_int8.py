"""Teachers with int8 weights; where torchao is not installed, only the refusal is tested."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
from kernel import batch, bert

import limbeck
from limbeck.errors import UserError
from limbeck.models import fingerprint, int8
from limbeck.models.taps import Tapped

installed = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")


def test_it_needs_torchao(train: Callable[..., limbeck.Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.models.int8.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"teacher_precision: int8 needs torchao; pip install"):
        train("int8", train={"teacher_precision": "int8"})


@installed
def test_weights_are_rounded_and_the_effect_is_what_it_says() -> None:
    """No weight moves by more than half a step of its output, max |w| / 127; the KL is that of its formula."""
    model, plain, one = bert(64, 3, seed=1).float(), bert(64, 3, seed=1).float(), batch(rows=4)
    before = fingerprint.digest(model.named_parameters())
    effect = int8.int8(model, one)
    for name, module in plain.named_modules():
        if isinstance(module, torch.nn.Linear):
            found = model.get_submodule(name)
            assert isinstance(found, torch.nn.Linear)
            weight, moved = module.weight.data, (found.weight.dequantize() - module.weight.data).abs()
            assert (moved <= weight.abs().amax(1, keepdim=True) / 127 * 0.51).all() and moved.max() > 0
    kept = one["select"]
    mine, theirs = (Tapped(it)(one)["logits"][kept].double() for it in (bert(64, 3, seed=1).float(), model))
    kl = (mine.softmax(-1) * (mine.log_softmax(-1) - theirs.log_softmax(-1))).sum(-1).mean()
    assert effect.kl == pytest.approx(kl.item(), rel=1e-3) and 0 < effect.kl < 0.05
    assert effect.agreement == pytest.approx((mine.argmax(-1) == theirs.argmax(-1)).double().mean().item())
    assert before != fingerprint.digest(model.named_parameters()) == fingerprint.digest(model.named_parameters())


@installed
def test_a_run_says_what_it_changed(train: Callable[..., limbeck.Run]) -> None:
    live, run = train("live"), train("int8", train={"teacher_precision": "int8"})
    told = run.manifest["teacher"]
    assert 0 < told["int8"]["kl"] < 0.1 and 0 < told["int8"]["agreement"] <= 1
    assert told["sha256"] != live.manifest["teacher"]["sha256"] and "int8" not in live.manifest["teacher"]
    mine, theirs = run.metrics[0]["loss"], live.metrics[0]["loss"]
    assert mine != theirs and mine == pytest.approx(theirs, rel=0.1)
