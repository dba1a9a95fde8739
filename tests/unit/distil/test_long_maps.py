"""Losses on attention maps in blocks of queries: value and gradient of the whole map, for every family and kind of mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import CONFIGS, tiny

from limbeck.distil import lessons
from limbeck.distil.lessons import Pair, Term
from limbeck.distil.reduce import Counts
from limbeck.distil.schedules import constant
from limbeck.losses import LOSSES
from limbeck.losses.facts import facts_of
from limbeck.models.taps import Tapped

TAPS = {"attention_scores_mse": "scores", "attention_mse": "probs", "attention_kl": "scores"}


def learned(family: str, loss: str, padded: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The term of one batch, and its gradients."""
    tap, model = TAPS[loss], tiny(family, seed=1).double()
    theirs, mine = Tapped(tiny(family, seed=2).double(), [f"{tap}.2"]), Tapped(model, [f"{tap}.1"])
    ids = torch.randint(5, 50, (3, 11), generator=torch.Generator().manual_seed(0))
    attended = torch.ones_like(ids)
    if padded:
        attended[1, 7:] = attended[2, 4:] = 0
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": attended, "labels": ids, "select": attended.bool()}
    term = Term("map", LOSSES[loss], (Pair(f"{tap}.1", f"{tap}.2"),), constant(1.0))
    with torch.no_grad():
        answer = theirs(batch)
    value = term.of_readouts(mine(batch), answer, torch.nn.ModuleDict(), batch, Counts.of([batch]))
    value.backward()
    return value.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_every_loss_that_may_be_made_in_parts_is_here() -> None:
    assert set(TAPS) == {name for name, loss in LOSSES.items() if facts_of(loss).by_query}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("loss", sorted(TAPS))
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_blocks_of_queries(family: str, loss: str, padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, gradients = learned(family, loss, padded)
    made = []
    monkeypatch.setattr(lessons, "LARGE", 3 * 4 * 11 * 3)  # three queries of four heads, more of fewer
    plain = lessons.checkpoint
    monkeypatch.setattr(lessons, "checkpoint", lambda of, some, **how: made.append(some) or plain(of, some, **how))
    value, found = learned(family, loss, padded)
    assert len(made) > 1
    torch.testing.assert_close(value, whole, rtol=1e-12, atol=1e-13)
    assert gradients.keys() == found.keys() and gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-13)
