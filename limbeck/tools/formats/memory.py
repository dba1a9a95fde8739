"""The model in memory that a file is held against: a student whose layers are stored and multiplied as the file has them, and how it
answers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from limbeck.errors import UserError
from limbeck.families import family
from limbeck.models.compressed import Compressed, Grid
from limbeck.tools.formats.format import Batch, Runner, reads_types
from limbeck.tools.formats.int8 import GroupedLinear, IntegerEmbedding, IntegerLinear

LAYERS = (nn.Linear, nn.Embedding, Conv1D)
Integer = IntegerLinear | GroupedLinear | IntegerEmbedding


def factorise(model: PreTrainedModel, compressed: Compressed) -> PreTrainedModel:
    """Puts the two factors in the place of each factorised layer, in place; the bias stays on the outer one.

    A head that is tied to a factorised embedding gets the same factors transposed.

    Raises:
        UserError: the factors are of a layer that the model does not have, or of another shape.
    """
    tied = _tied(model)
    for name, (down, up) in compressed.factors.items():
        layer = dict(model.named_modules()).get(name)
        shape = (down.shape[0], up.shape[0]) if isinstance(layer, nn.Embedding) else (up.shape[0], down.shape[1])
        if not isinstance(layer, LAYERS) or shape != matrix(layer).shape:
            raise UserError(f"{name}: its factors fit no layer of the model; export the student of its run anew")
        if isinstance(layer, nn.Embedding):
            rows = nn.Embedding(*down.shape, padding_idx=layer.padding_idx, _weight=down)
            _put(model, name, _pair(rows, _linear(up, None)))
            if tied and tied[0] == name:
                head = model.get_submodule(tied[1])
                last = _linear(down, getattr(head, "bias", None))
                last.weight = rows.weight
                _put(model, tied[1], _pair(_linear(up.T.contiguous(), None), last))
        else:
            _put(model, name, _pair(_linear(down, None), _linear(up, getattr(layer, "bias", None))))
    return model


def quantise(model: PreTrainedModel, compressed: Compressed) -> PreTrainedModel:
    """Puts layers of whole numbers in the place of those that are quantised, in place; where none is, of all linear layers and tables.

    A head that is tied to its embedding stays so: both read one table of bytes.
    """
    tied, grids = _tied(model), grids_of(model, compressed)
    for name, grid in grids.items():
        _put(model, name, _whole(model.get_submodule(name), grid))
    if tied and tied[0] in grids:
        model.get_submodule(tied[1])._buffers["weight"] = model.get_submodule(tied[0])._buffers["weight"]
    return model


def grids_of(model: PreTrainedModel, compressed: Compressed) -> dict[str, Grid]:
    """Which layers are quantised and how; where nothing is said, every linear layer and table to 8 bits a row. Tied ones alike.

    Raises:
        UserError: one of them is no layer of the model.
    """
    layers = [name for name, layer in model.named_modules() if isinstance(layer, LAYERS)]
    grids, tied = dict(compressed.quantised) or dict.fromkeys(layers, Grid()), _tied(model)
    if odd := sorted(set(grids) - set(layers)):
        raise UserError(f"{odd[0]}: quantised, and no layer of the model; export the student of its run anew")
    if tied and (grid := grids.get(tied[0]) or grids.get(tied[1])):
        grids |= dict.fromkeys(tied, grid)
    return grids


def of_model(model: PreTrainedModel) -> Runner:
    """How a model in memory answers, in one pass of its own."""
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if reads_types(model.config) else [])]
    how = {"use_cache": False} if family(model.config.model_type).causal else {}

    @torch.no_grad()
    def run(batch: Batch) -> Tensor:
        return model(**{name: batch[name] for name in names if name in batch}, **how).logits

    return run


def integer_layers(model: PreTrainedModel) -> Iterator[tuple[str, Integer]]:
    """The layers of whole numbers of a twin."""
    for name, layer in model.named_modules():
        if isinstance(layer, Integer):
            yield name, layer


def _whole(layer: nn.Module, grid: Grid) -> nn.Module:
    if isinstance(layer, nn.Embedding):
        return IntegerEmbedding(layer.weight, grid)
    kind = GroupedLinear if grid.group else IntegerLinear
    return kind(matrix(layer), getattr(layer, "bias", None), grid)


def matrix(layer: nn.Module) -> Tensor:
    """The weights, outputs first; of a table as they are. A view: what is written to it is written to the layer."""
    weight: Tensor = layer.weight  # pyright: ignore
    return weight.T if isinstance(layer, Conv1D) else weight


def _tied(model: PreTrainedModel) -> tuple[str, str] | None:
    """The names of an embedding and of the head that has its weights."""
    names = {id(layer): name for name, layer in model.named_modules()}
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if isinstance(table, nn.Sequential) and isinstance(head, nn.Sequential):  # factorised
        return (f"{names[id(table)]}.down", f"{names[id(head)]}.up") if table[0].weight is head[1].weight else None
    same = head is not None and getattr(head, "weight", None) is getattr(table, "weight", None)
    return (names[id(table)], names[id(head)]) if same else None


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach())
    return layer


def _pair(down: nn.Module, up: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(down=down, up=up))


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)
