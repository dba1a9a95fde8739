"""Layers of whole numbers against their formulas in fp64, and what becomes of inputs against onnxruntime's own operator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.models.compressed import Grid, from_grid, on_grid
from limbeck.tools.formats.int8 import GroupedLinear, IntegerEmbedding, IntegerLinear, dynamic_quantize


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0])
def test_inputs_become_whole_as_onnxruntime_makes_them(shift: float) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    node = onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    kinds = {"q": onnx.TensorProto.UINT8, "s": onnx.TensorProto.FLOAT, "z": onnx.TensorProto.UINT8}
    given = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, None])]
    made = [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]
    graph = onnx.helper.make_graph([node], "one", given, made)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = drawn(40, 50) + shift
    for ours, theirs in zip(dynamic_quantize(x), session.run(None, {"x": x.numpy()}), strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_linear_layer(bits: int) -> None:
    weight, bias, x = drawn(7, 12), drawn(7, seed=1), drawn(3, 5, 12, seed=2)
    layer = IntegerLinear(weight, bias, Grid(bits))
    (numbers, scale, zero), (whole, step) = dynamic_quantize(x), on_grid(weight, Grid(bits))
    inputs = (numbers.double() - zero.double()) * scale.double()
    expected = inputs @ (whole.double() * step.double()).T + bias.double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert (layer(x) - (x @ weight.T + bias)).abs().max() < (0.1 if bits == 8 else 1.5)


def test_groups_and_tables() -> None:
    weight, x, grid = drawn(6, 8), drawn(2, 8, seed=1), Grid(4, 4)
    dense = from_grid(*on_grid(weight, grid))
    torch.testing.assert_close(GroupedLinear(weight, None, grid)(x), x @ dense.T)
    ids = torch.tensor([[0, 5], [2, 2]])
    torch.testing.assert_close(IntegerEmbedding(weight, grid)(ids), dense[ids])
