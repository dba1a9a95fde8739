"""torchao: the weights as whole numbers in a folder that transformers reads, with torchao and without limbeck."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from limbeck.families import family
from limbeck.models import pretrained
from limbeck.models.compressed import Compressed, Grid, from_grid, on_grid
from limbeck.tools.formats import memory
from limbeck.tools.formats.format import Format, Runner

FILE = "model.safetensors"
GRIDS = "limbeck_grids"  # of the twin: layer -> its grid


def refusal(config: PretrainedConfig, compressed: Compressed) -> str | None:
    """Why not."""
    if family(config.model_type).transposed:
        return f"torchao has no quantised form of the layers of {config.model_type}; export to onnx-int8 or gguf"
    if odd := [name for name in compressed.quantised if name.rpartition(".")[0] in compressed.factors]:
        return f"{odd[0]} is quantised and one of two factors, which torchao's folders do not have; export to onnx-int8"
    return None


def twin(model: PreTrainedModel, compressed: Compressed) -> PreTrainedModel:
    """The same model with the weights that whole numbers and scales give, in fp32; factors are multiplied out."""
    grids = memory.grids_of(model, compressed)
    for name, grid in grids.items():
        layer: Any = model.get_submodule(name)
        layer.weight = nn.Parameter(from_grid(*on_grid(layer.weight, grid)), requires_grad=False)
    model.tie_weights()
    setattr(model, GRIDS, grids)
    return model


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes it as transformers does: `model.safetensors` with a byte for each weight, whatever its bits."""
    transformers: Any = importlib.import_module("transformers")
    ao: Any = importlib.import_module("torchao.quantization")
    whole = copy.deepcopy(model)
    grids: dict[str, Grid] = getattr(whole, GRIDS)
    done: dict[int, nn.Parameter] = {}  # tied layers share a tensor
    for name, grid in grids.items():
        layer: Any = whole.get_submodule(name)
        if id(layer.weight) not in done:
            numbers, scale = on_grid(layer.weight, grid)
            done[id(layer.weight)] = nn.Parameter(
                ao.IntxUnpackedToInt8Tensor(
                    qdata=numbers,
                    scale=scale,
                    zero_point=torch.zeros_like(scale, dtype=torch.int8),
                    target_dtype=getattr(torch, f"int{grid.bits}"),
                    block_size=(1, grid.group or numbers.shape[1]),
                    dtype=torch.float32,
                    activation_quantization=None,
                ),
                requires_grad=False,
            )
    for name in grids:
        layer = whole.get_submodule(name)
        layer.weight = done[id(layer.weight)]
    config = transformers.TorchAoConfig(
        ao.IntxWeightOnlyConfig(weight_dtype=torch.int8), include_input_output_embeddings=True
    )
    whole.config.quantization_config = config
    whole.config.architectures = [type(whole).__name__]
    once = {
        name for name, _ in whole.named_parameters()
    }  # tied ones by their first name: transformers cannot tell these alike
    more = {name for name, _ in whole.named_parameters(remove_duplicate=False)} - once
    state = {name: tensor for name, tensor in whole.state_dict().items() if name not in more}
    support = importlib.import_module("torchao.prototype.safetensors.safetensors_support")
    tensors, said = support.flatten_tensor_state_dict(state)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / FILE, said | {"format": "pt"})
    whole.config.save_pretrained(folder)


def runner(folder: Path) -> Runner:
    """Answers by transformers and torchao."""
    config = pretrained.config_of(pretrained.Source(source=str(folder)))
    with pretrained.quiet():
        model = pretrained.kind_of(config).from_pretrained(folder, dtype=torch.float32)
    return memory.of_model(model.eval())


def usage(config: PretrainedConfig, names: Sequence[str]) -> str:
    """Five lines."""
    kind = pretrained.kind_of(config).__name__
    return f"""from transformers import {kind}, AutoTokenizer  # and torchao, which is installed
model, tokenizer = {kind}.from_pretrained("."), AutoTokenizer.from_pretrained(".")
inputs = tokenizer(["A text to read."], return_tensors="pt")
read = {{name: inputs[name] for name in {list(names)}}}
print(model(**read).logits)"""


TORCHAO = Format(
    name="torchao",
    about="Weights in whole numbers with their scales, a byte for each, read by transformers with torchao.",
    packages=("torchao",),
    bound=1e-4,
    refusal=refusal,
    twin=twin,
    write=write,
    runner=runner,
    usage=usage,
)
