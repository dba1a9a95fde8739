"""A term looks only at what both sides look at."""

from __future__ import annotations

import torch
from families import tiny
from torch import nn

from limbeck.lessons import Pair, Term
from limbeck.losses import attention_scores_mse
from limbeck.reduce import Counts
from limbeck.schedules import constant
from limbeck.taps import Tapped


def test_scores_are_compared_where_both_sides_see_the_key() -> None:
    """A layer that sees everything learns from a layer with a window: keys beyond the window count on neither side."""
    model = tiny("modernbert")
    kinds = model.config.layer_types
    wide, narrow = (1 + kinds.index(kind) for kind in ("full_attention", "sliding_attention"))
    ids = torch.arange(3, 25).view(2, 11)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    readout = Tapped(model, [f"scores.{wide}", f"scores.{narrow}"])(batch)
    there, here = readout[f"scores.{wide}"], readout[f"scores.{narrow}"]
    seen = readout.visible(f"scores.{narrow}")
    assert readout.visible(f"scores.{wide}") is None
    assert seen is not None
    expected = torch.stack(
        [(there - here)[b, :, i, seen[b, 0, i]].square().mean() for b in range(2) for i in range(11)]
    ).mean()
    for pair in (Pair(f"scores.{wide}", f"scores.{narrow}"), Pair(f"scores.{narrow}", f"scores.{wide}")):
        term = Term("attention", attention_scores_mse, (pair,), constant(1.0))
        value = term.of_readouts(readout, readout, nn.ModuleDict(), batch, Counts(22, 22, 0))
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
