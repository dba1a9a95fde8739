"""Whatever the shapes and the masks: the value is that of the naive loops, and the gradient is finite."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.losses import LOSSES
from parity.cases import CASES, inputs, loss_and_gradients
from parity.naive import NAIVE

MASKS = ["none", "random", "a row of padding", "padding alone", "sparse"]


def masked(kind: str, mask: Tensor) -> Tensor:
    """The mask of the inputs, with less in it."""
    if kind == "a row of padding":
        mask[-1] = False
    if kind == "padding alone":
        mask[:] = False
    if kind == "sparse":
        mask &= torch.arange(mask.numel()).reshape(mask.shape) % 3 == 1
    return mask


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_and_mask(name: str, data: st.DataObject) -> None:
    case = CASES[name]
    sizes = {axis: data.draw(st.integers(1, most), axis) for axis, most in {"B": 3, "T": 4, "S": 4}.items()}
    sizes |= {axis: data.draw(st.integers(2, 7), axis) for axis in "VWCD"}
    sizes["k"] = data.draw(st.integers(1, sizes["V"]), "k")
    mask, setting = data.draw(st.sampled_from(MASKS)), data.draw(st.sampled_from(case.settings))
    made = inputs(name, seed=data.draw(st.integers(0, 9999)), masked=mask != "none", **sizes)
    if "mask" in made:
        made["mask"] = masked(mask, made["mask"])
    value, gradients = loss_and_gradients(LOSSES[case.loss], made, case, setting)
    torch.testing.assert_close(value, NAIVE[case.loss](**made, **setting), rtol=1e-9, atol=1e-9)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
