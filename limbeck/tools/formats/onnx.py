"""ONNX, in fp32 and with int8 weights and activations: written by torch.onnx, run by onnxruntime."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from limbeck.families import family
from limbeck.models.compressed import Compressed
from limbeck.tools.formats import memory
from limbeck.tools.formats.format import Batch, Format, Runner, input_names

FILE = "model.onnx"
LARGE = 1 << 30  # bytes of weights that a file of protobuf is not trusted with: they lie beside it
SMALL = (
    64  # bytes of constants that are computed ahead: shapes, and no weights, of which tied ones would be stored twice
)
OPSET = 23  # the first with an operator of attention
FOUR = 4  # bits: the fewest that are stored


class _Answer(nn.Module):
    """A model as a function of tensors alone."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.how = {"use_cache": False} if family(model.config.model_type).causal else {}

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **types, **self.how).logits


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a model as `model.onnx`, of any number of rows of any length; its padding is hidden by `attention_mask`.

    Layers of whole numbers are stored in bytes, two to a byte where none needs more than 4 bits. Where the traces of a source
    stood nothing is left.
    """
    names = input_names(model.config, tokenizer)
    ids = torch.arange(1, 15).reshape(2, 7) % model.config.vocab_size
    seen = torch.ones_like(ids)
    seen[1, 5:] = 0
    example = (ids, seen, torch.zeros_like(ids))[: len(names)]
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _Answer(model).eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=(free,) * len(names),
            verbose=False,
            optimize=False,
        )
        assert program is not None
        how = {"input_size_limit": SMALL, "should_fold": lambda node: False if node.op_type == "Transpose" else None}
        importlib.import_module("onnxscript.optimizer").optimize_ir(program.model, **how)
    graph = program.model.graph
    few = [name for name, layer in memory.integer_layers(model) if layer.bits <= FOUR]
    _pack(graph, {f"model.{name}.weight" for name in few})
    _unfused(graph)
    _without_traces(graph)
    size = sum(value.const_value.nbytes for value in graph.initializers.values())  # pyright: ignore
    program.save(folder / FILE, external_data=size > LARGE)


def _pack(graph: Any, names: set[str]) -> None:
    """Stores tensors of small whole numbers in 4 bits each, and has them unpacked where they are read."""
    if not names:
        return
    ir, types = importlib.import_module("onnx_ir"), importlib.import_module("ml_dtypes")
    for name in sorted(names & set(graph.initializers)):
        old = graph.initializers[name]
        packed = ir.Value(name=f"{name}.packed")
        packed.const_value = ir.Tensor(old.const_value.numpy().astype(types.int4), name=packed.name)
        packed.shape, packed.dtype = old.shape, ir.DataType.INT4
        node = ir.node("Cast", [packed], {"to": int(ir.DataType.INT8)})
        node.outputs[0].shape, node.outputs[0].dtype = old.shape, ir.DataType.INT8
        old.replace_all_uses_with(node.outputs[0])
        del graph.initializers[name]
        graph.register_initializer(packed)
        graph.insert_before(graph[0], node)


def _unfused(graph: Any) -> None:
    """Writes the addition before a norm as a sum of two: onnxruntime makes one operator of an addition and a norm, which on a
    processor takes twice the time of both."""
    ir = importlib.import_module("onnx_ir")
    for norm in [node for node in graph if node.op_type == "LayerNormalization"]:
        add = norm.inputs[0].producer()
        if add is not None and add.op_type == "Add":
            node = ir.node("Sum", add.inputs)
            node.outputs[0].shape, node.outputs[0].dtype = add.outputs[0].shape, add.outputs[0].dtype
            graph.insert_before(add, node)
            add.outputs[0].replace_all_uses_with(node.outputs[0])
            graph.remove(add, safe=True)


def _without_traces(graph: Any) -> None:
    """Removes what the exporter notes of the source: it is long, and names the folders of this machine."""
    for node in graph.all_nodes():
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    graph.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own words: of what it could not do there is an error."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.utils._pytree")]
    before = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(noisy, before, strict=True):
            logger.setLevel(level)


def runner(folder: Path) -> Runner:
    """Answers by onnxruntime, on as many threads as torch has."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")  # without VNNI sums of bytes overflow
    session = runtime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(batch: Batch) -> Tensor:
        ids = batch["input_ids"]
        whole = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids), **batch}
        (logits,) = session.run(None, {name: np.ascontiguousarray(whole[name]) for name in names})
        return torch.from_numpy(logits)

    return run


def usage(config: PretrainedConfig, names: Sequence[str]) -> str:
    """Five lines."""
    return """import onnxruntime, transformers
options, tokenizer = onnxruntime.SessionOptions(), transformers.AutoTokenizer.from_pretrained(".")
options.add_session_config_entry("session.x64quantprecision", "1")  # exact also on processors without VNNI
session, inputs = onnxruntime.InferenceSession("model.onnx", options), tokenizer(["A text to read."], return_tensors="np")
print(session.run(None, {one.name: inputs[one.name] for one in session.get_inputs()})[0])"""


ONNX = Format(
    name="onnx",
    about="ONNX in fp32, for onnxruntime.",
    packages=("onnx", "onnxscript", "onnxruntime"),
    bound=1e-4,
    refusal=lambda config, compressed: None,
    twin=memory.factorise,
    write=write,
    runner=runner,
    usage=usage,
)


def _twin(model: PreTrainedModel, compressed: Compressed) -> PreTrainedModel:
    return memory.quantise(memory.factorise(model, compressed), compressed)


ONNX_INT8 = replace(
    ONNX,
    name="onnx-int8",
    about="ONNX with int8 weights, the embedding included, and activations that become 8 bits as they come, for onnxruntime.",
    bound=0.05,
    twin=_twin,
)
